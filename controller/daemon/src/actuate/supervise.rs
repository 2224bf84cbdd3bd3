//! The two tasks of one engine. One holds the process: notices, exit, escalation from asking to SIGTERM to
//! SIGKILL. The other holds the control socket, where an engine that hangs may keep it waiting.

use super::control::ControlClient;
use super::exit::{self, Circumstances, Exit};
use super::identity::{InstancePaths, ProcessHandle};
use super::tend::{LoadOf, Outside, Tended, Verdict, tend};
use super::{EngineEvent, EngineEventKind};
use crate::clock::monotonic_ns;
use controller_core::snapshot::InstanceId;
use controller_witness::{ExitReason as Ended, Witness};
use engine_wire::control::{AdapterSpec, Notice, PROTOCOL};
use rustix::process::Signal;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// An engine that is past its drain deadline gets this long to notice by itself.
const DRAIN_GRACE: Duration = Duration::from_millis(500);
/// From SIGTERM to SIGKILL.
const TERM_GRACE: Duration = Duration::from_secs(2);
/// The same for an engine that is not ours, which may have workers to end.
const OUTSIDE_TERM_GRACE: Duration = Duration::from_secs(5);
/// The kernel's event of an end is there within this time, or was lost.
const EXIT_EVENT_LIMIT: Duration = Duration::from_millis(20);
/// An ended process that was reaped tells how it ended within this time.
const REAPED_LIMIT: Duration = Duration::from_millis(5);
/// While an engine has not made its control socket, the next try comes after this long.
const CONNECT_EVERY: Duration = Duration::from_millis(10);

/// A drain that was ordered.
#[derive(Clone, Copy, Debug)]
pub(super) struct DrainOrder {
    pub deadline: Instant,
    /// No protocol to ask by: begin with SIGTERM.
    pub by_signal: bool,
}

/// What both tasks know of their engine.
#[derive(Clone)]
pub(super) struct Link {
    pub instance: InstanceId,
    pub epoch: u64,
    pub lease_ms: u64,
    pub renew_every: Duration,
    pub paths: InstancePaths,
    pub events: mpsc::Sender<EngineEvent>,
    pub drain: watch::Receiver<Option<DrainOrder>>,
    /// What it is to serve; the value it began with is known to it.
    pub adapters: watch::Receiver<Vec<AdapterSpec>>,
    pub witness: Arc<OnceLock<Arc<Witness>>>,
    /// What the gateway knows of the work at an engine that tells nothing by itself.
    pub load: Arc<OnceLock<LoadOf>>,
    /// The control connection broke: the engine may have ended.
    pub broke: Arc<Notify>,
}

/// How an engine is driven.
pub(super) enum Reach {
    /// Ours: notices on its stdout where we started it, and a connection where it has made its socket.
    Own { stdout: Option<OwnedFd>, client: Option<ControlClient> },
    /// Somebody else's.
    Outside(Outside),
}

/// As [`Reach`], ready to be waited for.
pub(super) enum Driven {
    Own { notices: Option<pipe::Receiver>, client: Option<ControlClient> },
    Outside(Tended),
}

impl Link {
    /// A full queue makes the task wait, and with it only this engine's reports.
    pub(super) async fn report(&self, kind: EngineEventKind) {
        let _ = self.events.send(EngineEvent { instance: self.instance.clone(), kind }).await;
    }

    /// What the pidfd left open, the kernel's own event may tell: how an adopted process ended, and whether
    /// a SIGKILL was the out-of-memory killer's.
    async fn how_it_ended(&self, pid: u32, ended: Ended) -> Ended {
        let Some(witness) = self.witness.get() else { return ended };
        let told = match ended {
            Ended::Unknown | Ended::Signaled { .. } => witness.exit_reason(pid, EXIT_EVENT_LIMIT).await,
            Ended::Exited(_) => None,
        };
        witness.unwatch_pid(pid);
        told.unwrap_or(ended)
    }
}

/// Supervises until the process ends; then cleans up and reports the exit. `pidfd` is a second descriptor of the
/// process, to wait by.
pub(super) async fn supervise(mut link: Link, process: ProcessHandle, pidfd: OwnedFd, driven: Driven) {
    // A set aborts its tasks when dropped, so the renewing and the tending end with the process.
    let mut beside = JoinSet::new();
    let (verdict_sender, mut verdicts) = mpsc::channel(1);
    let is_outside = matches!(driven, Driven::Outside(_));
    let (notices, adopted) = match driven {
        Driven::Own { notices, client } => {
            // One that was started here is our child, and its notices come.
            let adopted = client.is_some() && notices.is_none();
            beside.spawn(renew(link.clone(), client));
            (notices, adopted)
        }
        Driven::Outside(engine) => {
            beside.spawn(tend(link.clone(), engine, verdict_sender));
            (None, false)
        }
    };
    let oom_kills_before = exit::oom_kills();
    let mut notices = notices.map(|pipe| BufReader::new(pipe).lines());
    let mut circumstances = Circumstances::default();
    let mut escalation = Escalation::default();
    let ended = how_it_ends(pidfd, link.broke.clone(), &process, adopted);
    tokio::pin!(ended);
    let ended = loop {
        tokio::select! {
            ended = &mut ended => break ended,
            line = next_line(&mut notices) => match line {
                Some(line) => notice(&link, &line).await,
                None => notices = None,
            },
            order = next_order(&mut link.drain, circumstances.asked_to_drain) => {
                circumstances.asked_to_drain = true;
                escalation = Escalation::after(order, is_outside);
            }
            // The channel of an engine that is ours is closed, which only takes this branch away.
            Some(verdict) = verdicts.recv() => match verdict {
                Verdict::Idle => {
                    process.signal(Signal::TERM);
                    escalation = Escalation::terminated();
                }
                Verdict::GivenUp => {
                    circumstances.gave_up = true;
                    process.signal_group(Signal::KILL);
                }
            },
            signal = escalation.due() => {
                circumstances.we_killed |= signal == Signal::KILL;
                tracing::warn!(instance = link.instance, ?signal, "the engine did not end by its deadline");
                process.signal(signal);
                escalation.advance();
            }
        }
    };
    // Exit comes first over what was written before it, so the last words are read now.
    while let Some(line) = next_buffered(&mut notices).await {
        notice(&link, &line).await;
    }
    if is_outside {
        // Workers that it left behind would keep memory, or a GPU, that is given to others from here on.
        process.signal_group(Signal::KILL);
    }
    link.paths.remove();
    circumstances.oom_kills_rose = exit::oom_kills() > oom_kills_before;
    let ended = link.how_it_ended(process.pid, ended).await;
    let (reason, detail) = exit::judge(ended, circumstances);
    link.report(EngineEventKind::Exited(Exit { at_ns: monotonic_ns(), reason, detail })).await;
}

/// Waits for the process's end. Of somebody else's child the pidfd gives the reason only once its parent has reaped it. A
/// broken control connection is as sure a sign to look, and the reason is then the kernel witness's to tell.
async fn how_it_ends(pidfd: OwnedFd, broke: Arc<Notify>, process: &ProcessHandle, adopted: bool) -> Ended {
    let by_pidfd = controller_witness::exit::wait(pidfd);
    tokio::pin!(by_pidfd);
    let told = tokio::select! {
        told = &mut by_pidfd => Some(told),
        () = found_ended(&broke, process), if adopted => timeout(REAPED_LIMIT, by_pidfd).await.ok(),
    };
    told.and_then(Result::ok).unwrap_or(Ended::Unknown)
}

/// Waits for a broken control connection behind which the process has ended. An ending process closes its
/// sockets a moment before it counts as ended.
async fn found_ended(broke: &Notify, process: &ProcessHandle) {
    loop {
        broke.notified().await;
        for _ in 0..20 {
            if process.has_ended() {
                return;
            }
            sleep(Duration::from_millis(1)).await;
        }
    }
}

/// The signals that follow a drain order.
#[derive(Default)]
struct Escalation {
    term_at: Option<Instant>,
    kill_at: Option<Instant>,
}

impl Escalation {
    /// An engine that is not ours does not know of the order: it hears of it by a signal, at the deadline or, before
    /// that, when nothing is at it any more.
    fn after(order: DrainOrder, is_outside: bool) -> Self {
        if is_outside {
            return Self { term_at: Some(order.deadline), kill_at: Some(order.deadline + OUTSIDE_TERM_GRACE) };
        }
        if order.by_signal {
            return Self { term_at: Some(Instant::now()), kill_at: Some(order.deadline) };
        }
        let term_at = order.deadline + DRAIN_GRACE;
        Self { term_at: Some(term_at), kill_at: Some(term_at + TERM_GRACE) }
    }

    /// SIGTERM was sent to an engine that is not ours.
    fn terminated() -> Self {
        Self { term_at: None, kill_at: Some(Instant::now() + OUTSIDE_TERM_GRACE) }
    }

    /// Waits for the next signal that is due; for ever when none is.
    async fn due(&self) -> Signal {
        match (self.term_at, self.kill_at) {
            (Some(at), _) => {
                sleep_until(at).await;
                Signal::TERM
            }
            (None, Some(at)) => {
                sleep_until(at).await;
                Signal::KILL
            }
            (None, None) => std::future::pending().await,
        }
    }

    fn advance(&mut self) {
        if self.term_at.take().is_none() {
            self.kill_at = None;
        }
    }
}

type Lines = tokio::io::Lines<BufReader<pipe::Receiver>>;

async fn next_line(notices: &mut Option<Lines>) -> Option<String> {
    match notices {
        // An unreadable line (not UTF-8) ends the notices; telemetry still tells port and readiness.
        Some(lines) => lines.next_line().await.ok().flatten(),
        None => std::future::pending().await,
    }
}

/// What is still in the pipe of an ended process. A process it left behind may hold the pipe open, hence
/// the time limit.
async fn next_buffered(notices: &mut Option<Lines>) -> Option<String> {
    let lines = notices.as_mut()?;
    timeout(Duration::from_millis(50), lines.next_line()).await.ok()?.ok()?
}

/// The first drain order; a later one changes nothing.
async fn next_order(drain: &mut watch::Receiver<Option<DrainOrder>>, taken: bool) -> DrainOrder {
    if taken {
        return std::future::pending().await;
    }
    match drain.wait_for(Option::is_some).await.map(|order| *order) {
        Ok(Some(order)) => order,
        _ => std::future::pending().await,
    }
}

async fn notice(link: &Link, line: &str) {
    let kind = match serde_json::from_str(line) {
        Ok(Notice::Listening { port, .. }) => EngineEventKind::Listening { port },
        Ok(Notice::Ready { at_ns }) => EngineEventKind::Ready { at_ns },
        Ok(Notice::Failed { message }) => EngineEventKind::Failed { message },
        Err(_) => {
            tracing::debug!(instance = link.instance, line, "the engine printed something else than a notice");
            return;
        }
    };
    link.report(kind).await;
}

/// Renews the lease and reports telemetry until it is dropped; passes a drain order on.
async fn renew(mut link: Link, mut client: Option<ControlClient>) {
    let mut drain_sent = false;
    let mut retry = CONNECT_EVERY;
    loop {
        if client.is_none() {
            client = connect(&link).await;
        }
        if let Some(connected) = &mut client {
            match exchange(&mut link, connected, &mut drain_sent).await {
                Ok(()) => retry = CONNECT_EVERY,
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    link.report(EngineEventKind::Fenced { message: error.to_string() }).await;
                    return;
                }
                Err(error) => {
                    tracing::debug!(instance = link.instance, %error, "control connection lost");
                    link.broke.notify_one();
                    client = None;
                }
            }
        }
        let pause = if client.is_some() { link.renew_every } else { retry };
        if client.is_none() {
            retry = (retry * 2).min(link.renew_every);
        }
        // An order that comes while connected is passed on at once; unconnected, the next try is near anyway.
        let order_is_passed_on = drain_sent || client.is_none();
        tokio::select! {
            () = sleep(pause) => {}
            _ = next_order(&mut link.drain, order_is_passed_on) => {}
            () = new_adapters(&mut link.adapters, client.is_some()) => {}
            () = closed(&mut client) => {
                link.broke.notify_one();
                client = None;
            }
        }
    }
}

/// A new list of adapters for an engine that can be told of it.
async fn new_adapters(adapters: &mut watch::Receiver<Vec<AdapterSpec>>, connected: bool) {
    if connected && adapters.changed().await.is_ok() {
        return adapters.mark_changed();
    }
    std::future::pending().await
}

async fn closed(client: &mut Option<ControlClient>) {
    match client {
        Some(client) => client.closed().await,
        None => std::future::pending().await,
    }
}

async fn connect(link: &Link) -> Option<ControlClient> {
    let mut client = ControlClient::connect(&link.paths.socket).await.ok()?;
    let hello = client.hello().await.ok()?;
    if hello.protocol != PROTOCOL || hello.instance != link.instance {
        tracing::warn!(instance = link.instance, ?hello, "somebody else answers at the engine's control socket");
        return None;
    }
    if hello.port != 0 {
        link.report(EngineEventKind::Listening { port: hello.port }).await;
    }
    Some(client)
}

async fn exchange(link: &mut Link, client: &mut ControlClient, drain_sent: &mut bool) -> io::Result<()> {
    let order = *link.drain.borrow();
    if let Some(order) = order
        && !*drain_sent
    {
        let left = order.deadline.saturating_duration_since(Instant::now());
        client.drain(link.epoch, left.as_millis() as u64).await?;
        *drain_sent = true;
    }
    if link.adapters.has_changed().unwrap_or(false) {
        let adapters = link.adapters.borrow_and_update().clone();
        let told = client.adapters(link.epoch, &adapters).await;
        // Not told for sure: once more, at the next connection.
        match told.inspect_err(|_| link.adapters.mark_changed())? {
            Ok(()) => link.report(EngineEventKind::Adapters(adapters)).await,
            Err(message) => tracing::error!(instance = link.instance, message, "an engine refused its adapters"),
        }
    }
    let telemetry = client.renew(link.epoch, link.lease_ms).await?;
    link.report(EngineEventKind::Telemetry(Box::new(telemetry))).await;
    Ok(())
}
