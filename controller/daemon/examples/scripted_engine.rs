//! An engine process without a model: it speaks the control protocol and the command line of `foreshock
//! engine`, and misbehaves on request. The daemon's tests drive real processes with it in milliseconds.
//!
//! The model's name is the script: `fails` refuses to start, `stubborn` ignores drains and SIGTERM,
//! `old` speaks protocol 0, `crashes` exits with code 7 once ready; any other behaves.

use engine_wire::control::{Command, EngineState, Hello, Notice, PROTOCOL, Reply, StartPhases, StepPhases, Telemetry};
use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};

struct Shared {
    epoch: u64,
    lease_ends: Instant,
    ready_at_ns: Option<u64>,
    drain_at: Option<Instant>,
    requests_total: u64,
}

fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A reader may be gone: the controller that started us was killed.
fn say(notice: &Notice) {
    let line = serde_json::to_string(notice).unwrap();
    let _ = writeln!(std::io::stdout(), "{line}");
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    assert_eq!(arguments[1], "engine");
    let options: HashMap<&str, &str> =
        arguments[2..].chunks(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect();
    let script = options["--name"].to_owned();
    eprintln!("scripted engine: {script}");
    if script == "fails" {
        say(&Notice::Failed { message: "tensor blk.0.attn_q.weight is truncated".to_owned() });
        std::process::exit(1);
    }
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = tcp.local_addr().unwrap().port();
    let lease = Duration::from_millis(options["--lease-ms"].parse().unwrap());
    let shared = Arc::new(Mutex::new(Shared {
        epoch: 0,
        lease_ends: Instant::now() + lease,
        ready_at_ns: None,
        drain_at: None,
        requests_total: 0,
    }));
    let hello = Hello {
        protocol: if script == "old" { 0 } else { PROTOCOL },
        instance: options["--instance"].to_owned(),
        model: script.clone(),
        revision: options["--revision"].to_owned(),
        pid: std::process::id(),
        port,
        cores: options["--cores"].split(',').map(|core| core.parse().unwrap()).collect(),
        started_at_ns: now_ns(),
        ready_at_ns: None,
        epoch: 0,
        adapters_max: 4,
        spare: false,
    };
    let control = UnixListener::bind(PathBuf::from(options["--control"])).unwrap();
    let serving = shared.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = control.accept().await {
            tokio::spawn(serve(stream, serving.clone(), hello.clone()));
        }
    });
    let count = shared.clone();
    tokio::spawn(async move {
        while tcp.accept().await.is_ok() {
            count.lock().unwrap().requests_total += 1;
        }
    });
    say(&Notice::Listening { port, pid: std::process::id(), at_ns: now_ns() });
    tokio::time::sleep(Duration::from_millis(20)).await;
    let ready_at_ns = now_ns();
    shared.lock().unwrap().ready_at_ns = Some(ready_at_ns);
    say(&Notice::Ready { at_ns: ready_at_ns });
    if script == "crashes" {
        std::process::exit(7);
    }
    wait_for_the_end(&shared, script == "stubborn").await;
}

async fn wait_for_the_end(shared: &Mutex<Shared>, stubborn: bool) {
    let mut term = signal(SignalKind::terminate()).unwrap();
    loop {
        tokio::select! {
            _ = term.recv() => if !stubborn { return },
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
        }
        let shared = shared.lock().unwrap();
        let drained = shared.drain_at.is_some_and(|at| Instant::now() >= at);
        if (drained && !stubborn) || Instant::now() >= shared.lease_ends {
            return;
        }
    }
}

async fn serve(stream: UnixStream, shared: Arc<Mutex<Shared>>, hello: Hello) {
    let (source, mut sink) = stream.into_split();
    let mut lines = BufReader::new(source).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let reply = answer(serde_json::from_str(&line).unwrap(), &mut shared.lock().unwrap(), &hello);
        let mut line = serde_json::to_vec(&reply).unwrap();
        line.push(b'\n');
        if sink.write_all(&line).await.is_err() {
            return;
        }
    }
}

fn answer(command: Command, shared: &mut Shared, hello: &Hello) -> Reply {
    if let Command::Renew { epoch, .. } | Command::Drain { epoch, .. } | Command::Adapters { epoch, .. } = &command {
        if *epoch < shared.epoch {
            return Reply::Refused { message: format!("epoch {epoch} is lower than {}", shared.epoch) };
        }
        shared.epoch = *epoch;
    }
    match command {
        Command::Hello { .. } => {
            Reply::Hello(Hello { ready_at_ns: shared.ready_at_ns, epoch: shared.epoch, ..hello.clone() })
        }
        Command::Adapters { .. } => Reply::Done,
        Command::Adopt { .. } | Command::Prepare { .. } => Reply::Refused { message: "it is no spare".to_owned() },
        Command::Drain { .. } => {
            shared.drain_at = Some(Instant::now() + Duration::from_millis(10));
            Reply::Done
        }
        Command::Renew { lease_ms, .. } => {
            shared.lease_ends = Instant::now() + Duration::from_millis(lease_ms);
            Reply::Telemetry(telemetry(shared))
        }
    }
}

fn telemetry(shared: &Shared) -> Telemetry {
    let state = match (shared.drain_at, shared.ready_at_ns) {
        (Some(_), _) => EngineState::Draining,
        (None, Some(_)) => EngineState::Ready,
        (None, None) => EngineState::Loading,
    };
    Telemetry {
        at_ns: now_ns(),
        state,
        ready_at_ns: shared.ready_at_ns,
        running: 0,
        waiting: 0,
        kv_blocks_total: 16,
        kv_blocks_used: 0,
        prefill_tokens_total: 0,
        encode_tokens_total: 0,
        decode_tokens_total: 0,
        output_tokens_total: 0,
        prefix_hit_tokens_total: 0,
        prefix_miss_tokens_total: 0,
        drafts_total: 0,
        draft_tokens_total: 0,
        draft_tokens_accepted_total: 0,
        requests_total: shared.requests_total,
        cancelled_total: 0,
        steps_total: 0,
        preemptions_total: 0,
        step_phases: StepPhases::default(),
        busy_ns_total: 0,
        resident_bytes: 1 << 20,
        phases: StartPhases::default(),
        finished: vec![],
        finished_dropped_total: 0,
    }
}
