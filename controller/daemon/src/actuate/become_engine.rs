//! From a spare process to an engine; where that fails, from nothing, at once: the request behind it waits.

use super::EngineEventKind;
use super::Models;
use super::exit::{Exit, ExitReason};
use super::identity::{InstanceFile, ProcessHandle};
use super::spares::{Seat, Spare};
use super::spawn::{self, Start};
use super::supervise::{Driven, Link, supervise};
use crate::clock::monotonic_ns;
use crate::config::DaemonConfig;
use crate::daemon::watch_process;
use controller_core::snapshot::{ModelName, Placement, Revision};
use metrics::counter;
use rustix::process::Signal;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::unix::pipe;
use tokio::time::timeout;

/// Longest that a spare process may take to say that it has become an engine. Loading comes after.
const ADOPT_LIMIT: Duration = Duration::from_millis(250);

/// A start, as it was decided.
pub(super) struct Order {
    pub config: Arc<DaemonConfig>,
    pub model: ModelName,
    pub revision: Revision,
    pub placement: Placement,
    pub spawned_at_ns: u64,
    /// What the engine is told.
    pub args: Vec<String>,
    /// The model's record alone.
    pub models: Models,
}

/// A process that is supervised as an engine.
type Engine = (ProcessHandle, OwnedFd, Driven);

/// Makes an engine of a spare process and supervises it to its end.
pub(super) async fn become_engine(link: Link, spare: Spare, order: Order) {
    let engine = match adopt(&link, &spare, &order).await {
        Ok(seat) => {
            outcome("adopted");
            settle(&link, &spare, &order);
            let Spare { process, .. } = spare;
            let driven = Driven::Own { notices: seat.notices, client: Some(seat.client) };
            process.fd.try_clone().map(|pidfd| (process, pidfd, driven))
        }
        Err(error) => {
            outcome("failed");
            tracing::warn!(instance = link.instance, pid = spare.process.pid, %error, "a spare process was lost");
            discard(spare);
            respawn(&link, &order).await
        }
    };
    match engine {
        Ok((process, pidfd, driven)) => supervise(link, process, pidfd, driven).await,
        Err(error) => {
            link.paths.remove();
            link.report(EngineEventKind::Failed { message: error.to_string() }).await;
            let detail = "it could not be started".to_owned();
            let exit = Exit { at_ns: monotonic_ns(), reason: ExitReason::Crashed, detail };
            link.report(EngineEventKind::Exited(exit)).await;
        }
    }
}

fn outcome(outcome: &'static str) {
    counter!(telemetry::SPARE_ADOPTIONS_TOTAL.name, "outcome" => outcome).increment(1);
}

/// Tells the process what to be. Requests may be sent to its port from then on.
async fn adopt(link: &Link, spare: &Spare, order: &Order) -> io::Result<Seat> {
    let told = async {
        let seat = spare.seat.lock().await.take();
        let mut seat = seat.ok_or_else(|| io::Error::other("its connection is gone"))?;
        seat.client.adopt(link.epoch, order.args.clone()).await?;
        link.report(EngineEventKind::Listening { port: spare.port }).await;
        // The new identity, and how many adapters it takes.
        let hello = seat.client.hello().await?;
        match hello.instance == link.instance && hello.port == spare.port {
            true => Ok(seat),
            false => Err(io::Error::other("it has become something else")),
        }
    };
    timeout(ADOPT_LIMIT, told).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Its files, as if it had been started for this. Without them it runs all the same, and its socket tells what it is.
fn settle(link: &Link, spare: &Spare, order: &Order) {
    let file = InstanceFile::new(
        &link.instance,
        &order.model,
        &order.revision,
        (spare.process.pid, spare.process.start_ticks),
        order.placement.cores(),
        order.placement.bytes(),
        order.spawned_at_ns,
    );
    let written = file.write(&link.paths.file).and_then(|()| std::fs::rename(&spare.paths.log, &link.paths.log));
    if let Err(error) = written {
        tracing::warn!(instance = link.instance, %error, "the files of an engine cannot be written");
    }
}

/// Ends a process that was to become an engine and did not.
fn discard(spare: Spare) {
    spare.process.signal(Signal::KILL);
    let _ = std::fs::remove_file(&spare.paths.socket);
    let _ = std::fs::remove_file(&spare.paths.log);
    // A child of ours has to be reaped.
    tokio::spawn(controller_witness::exit::wait(spare.process.fd));
}

async fn respawn(link: &Link, order: &Order) -> io::Result<Engine> {
    let Order { config, model, revision, placement, models, .. } = order;
    let start = Start { instance: &link.instance, model, revision, placement };
    let spawned = spawn::spawn(config, &start, models).map_err(|error| io::Error::other(error.to_string()))?;
    let (process, spawned_at_ns) = (spawned.process, spawned.spawned_at_ns);
    link.report(EngineEventKind::Respawned { pid: process.pid, spawned_at_ns }).await;
    if let Some(witness) = link.witness.get() {
        watch_process(witness, process.pid);
    }
    let notices = spawned.stdout.map(pipe::Receiver::from_owned_fd).transpose()?;
    let pidfd = process.fd.try_clone()?;
    Ok((process, pidfd, Driven::Own { notices, client: None }))
}
