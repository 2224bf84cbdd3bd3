//! `foreshock attach`: watches an engine that somebody else runs, through the kernel alone, and says what is asked of
//! it, what service it gives and how much more it will bear. The engine is not touched.

mod find;
mod frame;

use crate::cli::AttachArgs;
use crate::config::InputError;
use crate::recorder;
use anyhow::{Context, Result, bail, ensure};
use controller_core::outside::Slo;
use controller_daemon::OutsideWatch;
use controller_daemon::clock::monotonic_ns;
use controller_witness::{ExitReason, PortRole, RequestRecord, Witness, WitnessOptions, exit};
use find::Target;
use frame::{Ended, Frame, Probes};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// How long the kernel may take to say how a process ended, once it has.
const EXIT_WORD: Duration = Duration::from_millis(200);
/// Home, and everything below is gone.
const CLEAR: &str = "\x1b[H\x1b[J";

/// Watches until a signal, the end of the named processes, or one frame with `--once`.
pub fn run(args: &AttachArgs) -> Result<()> {
    let slo = slo(args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(watch(args, slo))
}

fn slo(args: &AttachArgs) -> Result<Slo> {
    let slo = Slo { ttft_ms: args.slo_ttft_ms, itl_ms: args.slo_itl_ms, quantile: args.slo_quantile };
    let times = [slo.ttft_ms, slo.itl_ms].iter().all(|ms| ms.is_finite() && *ms > 0.0);
    ensure!(times, InputError("--slo-ttft-ms and --slo-itl-ms must be above 0".into()));
    let quantile = slo.quantile > 0.0 && slo.quantile < 1.0;
    ensure!(quantile, InputError("--slo-quantile must lie between 0 and 1, as 0.95".into()));
    Ok(slo)
}

async fn watch(args: &AttachArgs, slo: Slo) -> Result<()> {
    let targets = find::targets(&args.pids, &args.ports, args.name.as_deref())?;
    // Opened before anything else, so that another process with the same number is never taken for it.
    let processes: Vec<_> = args
        .pids
        .iter()
        .map(|pid| exit::open(*pid).map(|fd| (*pid, fd)).with_context(|| format!("watching process {pid}")))
        .collect::<Result<_>>()?;
    let all_namespaces = targets.iter().any(|target| target.foreign_namespace);
    let witness = Arc::new(Witness::attach(WitnessOptions { all_namespaces, ..WitnessOptions::default() })?);
    if !witness.sees_requests() {
        bail!("nothing can be watched. {}", witness.summary());
    }
    let _metrics = serve_metrics(args).await?;
    let records = witness.subscribe();
    for target in &targets {
        witness.watch(target.port, PortRole::Foreign { name: target.name.clone() })?;
    }
    let outside = OutsideWatch::start(&witness, slo);
    let (told, ends) = mpsc::channel(args.pids.len().max(1));
    for (pid, process) in processes {
        witness.watch_pid(pid)?;
        let (witness, told) = (witness.clone(), told.clone());
        tokio::spawn(async move {
            let _ = told.send((pid, ended(&witness, pid, exit::wait(process).await.ok()).await)).await;
        });
    }
    drop(told);
    let mut output = Output { args, slo, targets, witness, outside, ended: BTreeMap::new(), tty: false };
    output.tty = !args.json && !args.once && std::io::stdout().is_terminal();
    match output.go_on(records, ends).await {
        // Whoever read it has seen enough.
        Err(error) if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) => {
            Ok(())
        }
        outcome => outcome,
    }
}

/// How a process ended: as its descriptor says, or else the kernel.
async fn ended(witness: &Witness, pid: u32, reason: Option<ExitReason>) -> ExitReason {
    match reason {
        Some(reason) if reason != ExitReason::Unknown => reason,
        _ => witness.exit_reason(pid, EXIT_WORD).await.unwrap_or(ExitReason::Unknown),
    }
}

/// /metrics where `--listen` wants it.
async fn serve_metrics(args: &AttachArgs) -> Result<Option<JoinHandle<()>>> {
    let Some(addr) = args.listen else { return Ok(None) };
    let metrics = recorder::install()?;
    let listener = TcpListener::bind(addr)
        .await
        .with_context(|| format!("cannot listen on {addr}; choose another with --listen"))?;
    let route = engine_http::metrics_route(move || metrics.render());
    let filter = engine_http::with_fallback(route, engine_http::Limits::default());
    let serving = engine_http::serve(listener, filter, std::future::pending(), engine_http::ServeOptions::default());
    Ok(Some(tokio::spawn(serving)))
}

/// Everything that is written.
struct Output<'a> {
    args: &'a AttachArgs,
    slo: Slo,
    targets: Vec<Target>,
    witness: Arc<Witness>,
    outside: OutsideWatch,
    ended: BTreeMap<u16, Ended>,
    /// The screen is drawn anew each time.
    tty: bool,
}

impl Output<'_> {
    async fn go_on(
        &mut self,
        mut records: broadcast::Receiver<Arc<RequestRecord>>,
        mut ends: mpsc::Receiver<(u32, ExitReason)>,
    ) -> Result<()> {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let mut alive: BTreeSet<u32> = self.args.pids.iter().copied().collect();
        self.begin()?;
        let period = Duration::from_millis(self.args.every_ms);
        let mut every = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                record = records.recv() => match record {
                    Ok(record) => self.ended.entry(record.port).or_default().count(&record),
                    // What was not told is among the lost samples.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => bail!("the probes' reader has stopped"),
                },
                _ = every.tick() => {
                    self.frames()?;
                    if self.args.once {
                        return Ok(());
                    }
                }
                Some((pid, reason)) = ends.recv() => {
                    alive.remove(&pid);
                    self.process_ended(pid, reason)?;
                    if alive.is_empty() && self.args.ports.is_empty() {
                        return self.frames();
                    }
                }
                _ = interrupt.recv() => return self.frames(),
                _ = terminate.recv() => return self.frames(),
            }
        }
    }

    /// Says what is watched.
    fn begin(&self) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if self.args.json {
            let targets = self.targets.iter();
            let rows: Vec<_> = targets
                .map(|t| json!({ "port": t.port, "pid": t.pid, "name": t.name, "listening": t.listening }))
                .collect();
            writeln!(out, "{}", json!({ "watching": rows, "probes": self.witness.probes() }))?;
            return Ok(out.flush()?);
        }
        for Target { port, name, pid, listening, foreign_namespace } in &self.targets {
            let owner = pid.map_or_else(String::new, |pid| format!(" of process {pid}"));
            let silent = if *listening { "" } else { "; nobody listens there yet" };
            let counted = if *foreign_namespace { "; counted in every network namespace" } else { "" };
            writeln!(out, "watching port {port}{owner} as {name}{silent}{counted}")?;
        }
        Ok(out.flush()?)
    }

    fn process_ended(&self, pid: u32, reason: ExitReason) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if self.args.json {
            writeln!(out, "{}", json!({ "process_ended": { "pid": pid, "reason": reason } }))?;
        } else {
            writeln!(out, "process {pid} {}", in_words(reason))?;
        }
        Ok(out.flush()?)
    }

    /// Every port as it is now.
    fn frames(&self) -> Result<()> {
        let probes = Probes {
            summary: self.witness.summary(),
            events_lost: self.witness.events_lost(),
            samples_lost: self.outside.samples_lost(),
        };
        let mut out = std::io::stdout().lock();
        if self.tty {
            write!(out, "{CLEAR}foreshock attach, every {} ms; Ctrl-C ends\n\n", self.args.every_ms)?;
        }
        for target in &self.targets {
            let Some(outside) = self.outside.view(target.port) else { continue };
            let ended = self.ended.get(&target.port).copied().unwrap_or_default();
            let counts = self.witness.counters(target.port);
            let frame = Frame::new(monotonic_ns(), target, counts, ended, outside, &probes);
            if self.args.json {
                writeln!(out, "{}", serde_json::to_string(&frame)?)?;
            } else if self.tty || self.args.once {
                writeln!(out, "{}", frame.block(&self.slo))?;
            } else {
                writeln!(out, "{}", frame.line(&self.slo))?;
            }
        }
        Ok(out.flush()?)
    }
}

fn in_words(reason: ExitReason) -> String {
    match reason {
        ExitReason::Exited(code) => format!("exited with code {code}"),
        ExitReason::Signaled { signal, oom: true, .. } => format!("was killed for want of memory (signal {signal})"),
        ExitReason::Signaled { signal, core: true, .. } => format!("ended by signal {signal} and left a core"),
        ExitReason::Signaled { signal, .. } => format!("ended by signal {signal}"),
        ExitReason::Unknown => "ended; nobody could say how".to_owned(),
    }
}
