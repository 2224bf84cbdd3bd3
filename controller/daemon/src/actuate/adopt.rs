//! Finding the engines that an earlier controller left behind. An instance file says which process to look
//! for; the process itself says, over its control socket, what it is and where it serves.

use super::ActuateError;
use super::control::ControlClient;
use super::identity::{InstanceFile, InstancePaths, ProcessHandle};
use super::supervise::Reach;
use controller_core::Nanos;
use controller_core::snapshot::{DeviceSlice, InstanceId, ModelName, Placement, Revision, Shard};
use engine_wire::control::{Hello, PROTOCOL};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long an engine that lives may take to answer: one that was just started has yet to make its socket.
const HELLO_DEADLINE: Duration = Duration::from_secs(3);

/// An engine found running.
#[derive(Clone, Debug, PartialEq)]
pub struct Adopted {
    pub instance: InstanceId,
    pub model: ModelName,
    pub revision: Revision,
    pub placement: Placement,
    pub pid: u32,
    /// None while it is not known: it binds its port yet, or is to be asked first whether it is ready.
    pub port: Option<u16>,
    /// It speaks another protocol or does not answer: it is being stopped.
    pub stopping: bool,
    pub spawned_at_ns: Nanos,
    pub ready_at_ns: Option<Nanos>,
}

/// What a scan hands to the Actuator: the engine, its process, and how it is driven.
pub(super) type Found = (Adopted, ProcessHandle, Reach);

/// Looks at every instance file and control socket of the state folder. What belongs to no live process
/// is removed.
///
/// # Errors
/// When the folder cannot be read.
pub(super) async fn scan(state_dir: &Path) -> Result<Vec<Found>, ActuateError> {
    let folder = state_dir.join("engines");
    let entries =
        std::fs::read_dir(&folder).map_err(|source| ActuateError::StateFolder { path: folder.clone(), source })?;
    let mut stems = BTreeSet::new();
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        match (path.file_stem().and_then(|stem| stem.to_str()), path.extension().and_then(|end| end.to_str())) {
            (Some(stem), Some("json" | "sock")) => {
                stems.insert(stem.to_owned());
            }
            // Half-written instance files of a controller that was killed.
            _ => drop(std::fs::remove_file(&path)),
        }
    }
    // All at once: the wait for engines that do not answer is one deadline, not one for each.
    let found = futures_util::future::join_all(stems.iter().map(|stem| examine(state_dir, stem))).await;
    Ok(found.into_iter().flatten().collect())
}

async fn examine(state_dir: &Path, stem: &str) -> Option<Found> {
    let paths = InstancePaths::of_stem(state_dir, stem);
    let found = match InstanceFile::read(&paths.file) {
        Ok(file) => by_file(&paths, &file).await,
        Err(error) => {
            tracing::debug!(file = %paths.file.display(), %error, "no instance file of this version");
            by_socket(&paths).await
        }
    };
    if found.is_none() {
        tracing::info!(instance = stem, "an engine of an earlier controller is gone; its files are removed");
        paths.remove();
    }
    found
}

/// The usual case: the file names a process, which must still be that process.
async fn by_file(paths: &InstancePaths, file: &InstanceFile) -> Option<Found> {
    let process = ProcessHandle::open_same(file.pid, file.pid_start_ticks)?;
    let mut engine = Adopted {
        instance: file.instance.clone(),
        model: file.model.clone(),
        revision: file.revision.clone(),
        placement: on_cores(file.cores.clone(), file.bytes),
        pid: file.pid,
        port: None,
        stopping: false,
        spawned_at_ns: file.spawned_at_ns,
        ready_at_ns: None,
    };
    if let Some(outside) = &file.outside {
        return Some((engine, process, Reach::Outside(outside.clone())));
    }
    let Some((client, hello)) = greet(&paths.socket, file).await else {
        tracing::warn!(
            instance = file.instance,
            pid = file.pid,
            "an engine of an earlier controller does not speak this control protocol; it is stopped"
        );
        engine.stopping = true;
        return Some((engine, process, Reach::Own { stdout: None, client: None }));
    };
    engine.port = Some(hello.port).filter(|port| *port != 0);
    engine.ready_at_ns = hello.ready_at_ns;
    Some((engine, process, Reach::Own { stdout: None, client: Some(client) }))
}

/// Asks until the engine answers, its process is gone, or the deadline passes.
async fn greet(socket: &Path, file: &InstanceFile) -> Option<(ControlClient, Hello)> {
    let deadline = Instant::now() + HELLO_DEADLINE;
    loop {
        if let Ok(mut client) = ControlClient::connect(socket).await {
            let hello = client.hello().await.ok()?;
            let is_driven = hello.protocol == PROTOCOL && hello.instance == file.instance && hello.pid == file.pid;
            return is_driven.then_some((client, hello));
        }
        ProcessHandle::open_same(file.pid, file.pid_start_ticks)?;
        if Instant::now() >= deadline {
            return None;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// The controller died between starting the engine and writing its file: only the socket is there.
async fn by_socket(paths: &InstancePaths) -> Option<Found> {
    let mut client = ControlClient::connect(&paths.socket).await.ok()?;
    let hello = client.hello().await.ok().filter(|hello| hello.protocol == PROTOCOL)?;
    let process = ProcessHandle::open(hello.pid).ok()?;
    let engine = Adopted {
        instance: hello.instance,
        model: hello.model,
        revision: hello.revision,
        // Its memory is not known; telemetry will tell what is resident.
        placement: on_cores(hello.cores, 0),
        pid: hello.pid,
        port: Some(hello.port).filter(|port| *port != 0),
        stopping: false,
        spawned_at_ns: hello.started_at_ns,
        ready_at_ns: hello.ready_at_ns,
    };
    Some((engine, process, Reach::Own { stdout: None, client: Some(client) }))
}

fn on_cores(cores: Vec<u32>, bytes: u64) -> Placement {
    Placement { shards: vec![Shard { device: DeviceSlice::Cores(cores), bytes }] }
}
