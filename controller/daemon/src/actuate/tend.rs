//! Looks after an engine that is not ours from outside: asks it whether it is ready, tells of its work what the gateway
//! knows of it, and lets it end once nothing is at it any more. It has no lease: without a controller it runs on, and
//! the next one adopts it.

use super::EngineEventKind;
use super::supervise::Link;
use crate::clock::monotonic_ns;
use controller_core::Nanos;
use controller_gateway::EndpointLoad;
use engine_wire::control::{EngineState, StartPhases, StepPhases, Telemetry};
use serde::{Deserialize, Serialize};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

/// What the gateway knows of the work at an instance; none once it lists it no more and its last request has ended.
pub type LoadOf = Arc<dyn Fn(&str) -> Option<EndpointLoad> + Send + Sync>;

/// How one instance is reached: part of its instance file, since the engine itself cannot be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outside {
    pub port: u16,
    /// Path that answers 200 once it can serve.
    pub health: String,
    /// Requests that it computes at a time; more wait inside.
    pub slots: u32,
}

/// What is to become of a tended engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is to end, and nothing is at it.
    Idle,
    /// It did not become ready in time.
    GivenUp,
}

/// Pause between two questions to an engine that starts. Short, because requests are held meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(10);
/// Longest that an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Longest that its end may take, from an engine that does not close as it was asked to.
const REST_LIMIT: Duration = Duration::from_millis(50);
/// Most that is read of one.
const ANSWER_BYTES: u64 = 64 << 10;
/// Pause between two looks at an engine that is to end.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// An engine and the process that it is.
pub(super) struct Tended {
    pub outside: Outside,
    pub pid: u32,
    /// CLOCK_MONOTONIC, ns.
    pub spawned_at_ns: Nanos,
    /// Time from then on for becoming ready.
    pub start_limit: Duration,
}

/// Tends an engine until there is a verdict.
pub(super) async fn tend(mut link: Link, engine: Tended, verdicts: mpsc::Sender<Verdict>) {
    let verdict = match until_ready(&mut link, &engine).await {
        Start::Ready => report(&mut link, &engine).await,
        Start::Drained => Verdict::Idle,
        Start::Late { last } => {
            let message = format!(
                "it did not answer 200 at http://127.0.0.1:{}{} within {} s (last: {last}); its own words are in {}",
                engine.outside.port,
                engine.outside.health,
                engine.start_limit.as_secs_f32(),
                link.paths.log.display()
            );
            link.report(EngineEventKind::Failed { message }).await;
            Verdict::GivenUp
        }
    };
    // Nobody listens any more when the process has ended meanwhile.
    let _ = verdicts.send(verdict).await;
}

/// How a start went.
enum Start {
    Ready,
    /// It is no longer wanted, and has had no request.
    Drained,
    Late {
        last: String,
    },
}

async fn until_ready(link: &mut Link, engine: &Tended) -> Start {
    loop {
        let last = match ask(&engine.outside).await {
            Ok(200) => return Start::Ready,
            Ok(status) => format!("status {status}"),
            Err(error) => error.to_string(),
        };
        if link.drain.borrow().is_some() {
            return Start::Drained;
        }
        let since = Duration::from_nanos(monotonic_ns().saturating_sub(engine.spawned_at_ns));
        if since >= engine.start_limit {
            return Start::Late { last };
        }
        sleep(ASK_EVERY).await;
    }
}

/// The status of the health path.
async fn ask(outside: &Outside) -> io::Result<u16> {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, outside.port));
    let exchange = async {
        let mut stream = TcpStream::connect(addr).await?;
        let request = format!("GET {} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n", outside.health);
        stream.write_all(request.as_bytes()).await?;
        let mut head = [0; 12];
        stream.read_exact(&mut head).await?;
        // Read to its end, or closing would look to the engine like a fault of the peer's.
        let mut rest = stream.take(ANSWER_BYTES);
        let _ = timeout(REST_LIMIT, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
        let status = head.strip_prefix(b"HTTP/1.").and_then(|rest| std::str::from_utf8(&rest[2..]).ok()?.parse().ok());
        status.ok_or_else(|| io::Error::other("the answer is not HTTP"))
    };
    timeout(ANSWER_LIMIT, exchange).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Says that it is ready, then what its work is, until it is to end and nothing is at it.
async fn report(link: &mut Link, engine: &Tended) -> Verdict {
    let ready_at_ns = monotonic_ns();
    // Requests go there from here on and not before: one that loads would refuse them.
    link.report(EngineEventKind::Listening { port: engine.outside.port }).await;
    link.report(EngineEventKind::Ready { at_ns: ready_at_ns }).await;
    let mut due = Instant::now();
    loop {
        let load = link.load.get().and_then(|load| load(&link.instance));
        let draining = link.drain.borrow().is_some();
        if draining && load.is_none() {
            return Verdict::Idle;
        }
        if due <= Instant::now() {
            due = Instant::now() + link.renew_every;
            let state = if draining { EngineState::Draining } else { EngineState::Ready };
            let telemetry = telemetry(engine, state, ready_at_ns, &load.unwrap_or_default());
            link.report(EngineEventKind::Telemetry(Box::new(telemetry))).await;
        }
        if draining {
            sleep(LOOK_EVERY).await;
        } else {
            tokio::select! {
                () = sleep(link.renew_every) => {}
                _ = link.drain.changed() => {}
            }
        }
    }
}

/// What our own engines tell by themselves, as far as it can be known from outside.
fn telemetry(engine: &Tended, state: EngineState, ready_at_ns: Nanos, load: &EndpointLoad) -> Telemetry {
    let computed = load.prompt_tokens_total.saturating_sub(load.cached_tokens_total);
    let ready_ms = ready_at_ns.saturating_sub(engine.spawned_at_ns) as f64 / 1e6;
    Telemetry {
        at_ns: monotonic_ns(),
        state,
        ready_at_ns: Some(ready_at_ns),
        running: load.running.min(engine.outside.slots),
        waiting: load.running.saturating_sub(engine.outside.slots),
        kv_blocks_total: 0,
        kv_blocks_used: 0,
        prefill_tokens_total: computed,
        decode_tokens_total: load.output_tokens_total,
        encode_tokens_total: 0,
        output_tokens_total: load.output_tokens_total,
        prefix_hit_tokens_total: load.cached_tokens_total,
        prefix_miss_tokens_total: computed,
        drafts_total: 0,
        draft_tokens_total: 0,
        draft_tokens_accepted_total: 0,
        requests_total: load.requests_total,
        cancelled_total: load.cancelled_total,
        steps_total: 0,
        preemptions_total: 0,
        step_phases: StepPhases::default(),
        busy_ns_total: load.busy.as_nanos() as u64,
        resident_bytes: resident_bytes(engine.pid),
        phases: StartPhases { listening_ms: ready_ms, ready_ms, ..StartPhases::default() },
        finished: Vec::new(),
        finished_dropped_total: 0,
    }
}

/// Resident memory of a process; 0 when it has ended.
fn resident_bytes(pid: u32) -> u64 {
    let Ok(statm) = std::fs::read_to_string(format!("/proc/{pid}/statm")) else { return 0 };
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}
