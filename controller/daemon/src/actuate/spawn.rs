//! Starting one engine process, as fast as the system allows: this stands between a held request and its
//! first token.

use super::identity::{InstanceFile, InstancePaths, ProcessHandle};
use super::tend::Outside;
use super::{ActuateError, Models};
use crate::clock::monotonic_ns;
use crate::config::DaemonConfig;
use crate::foreign::{EngineError, EngineSpec, Values};
use crate::model_store::store_root;
use crate::registry::ModelRecord;
use controller_core::snapshot::Placement;
use engine_wire::control::AdapterSpec;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// A process that was just started.
pub(super) struct Spawned {
    pub process: ProcessHandle,
    /// Where its notices come from; none of an engine that is not ours, which gives none.
    pub stdout: Option<OwnedFd>,
    pub outside: Option<Outside>,
    pub paths: InstancePaths,
    pub spawned_at_ns: u64,
}

/// What to start.
pub(super) struct Start<'a> {
    pub instance: &'a str,
    pub model: &'a str,
    pub revision: &'a str,
    pub placement: &'a Placement,
}

/// Starts an engine and writes its instance file.
pub(super) fn spawn(config: &DaemonConfig, start: &Start<'_>, models: &Models) -> Result<Spawned, ActuateError> {
    let record = record_of(start, models)?;
    let paths = InstancePaths::new(&config.state_dir, start.instance);
    // A socket of an earlier process with this name would make the engine's bind fail.
    paths.remove();
    let log =
        File::create(&paths.log).map_err(|source| ActuateError::StateFolder { path: paths.log.clone(), source })?;
    let spawned_at_ns = monotonic_ns();
    let (mut command, outside) = match &record.engine {
        None => (command(config, start, record, &paths.socket), None),
        Some(engine) => {
            let (command, outside) = foreign_command(start, record, engine)?;
            (command, Some(outside))
        }
    };
    let stdout = match (&outside, log.try_clone()) {
        (Some(_), Ok(log)) => Stdio::from(log),
        _ => Stdio::piped(),
    };
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(log)
        .spawn()
        .map_err(|source| not_spawned(config, record, source))?;
    let kill_and_report = |mut child: std::process::Child, source: io::Error| {
        let _ = child.kill();
        let _ = child.wait();
        ActuateError::StateFolder { path: paths.file.clone(), source }
    };
    // Our child is not reaped before we say so, so its pid is surely its own here.
    let process = match ProcessHandle::open(child.id()) {
        Ok(process) => process,
        Err(source) => return Err(kill_and_report(child, source)),
    };
    let mut file = InstanceFile::new(
        start.instance,
        start.model,
        start.revision,
        (process.pid, process.start_ticks),
        start.placement.cores(),
        start.placement.bytes(),
        spawned_at_ns,
    );
    file.outside = outside.clone();
    if let Err(source) = file.write(&paths.file) {
        return Err(kill_and_report(child, source));
    }
    if outside.is_some() {
        confine(&process, &start.placement.cores());
    }
    let stdout = child.stdout.take().map(OwnedFd::from);
    Ok(Spawned { process, stdout, outside, paths, spawned_at_ns })
}

/// What a spare process is told to become this engine; none where that cannot be said in a line of JSON.
pub(super) fn args(
    config: &DaemonConfig,
    start: &Start<'_>,
    record: &ModelRecord,
    socket: &Path,
) -> Option<Vec<String>> {
    let command = command(config, start, record, socket);
    // After the name of the subcommand.
    command.get_args().skip(1).map(|arg| arg.to_str().map(str::to_owned)).collect()
}

/// The record of a model that is to be started, whose files are as they were registered.
pub(super) fn record_of<'a>(start: &Start<'_>, models: &'a Models) -> Result<&'a ModelRecord, ActuateError> {
    let record = models.get(start.model).filter(|record| record.revision == start.revision);
    let record = record.ok_or_else(|| ActuateError::UnknownModel(start.model.to_owned()))?;
    if record.head.is_none() {
        check_unchanged(record)?;
    }
    Ok(record)
}

/// The command line of an engine that is not ours, and how it will be reached.
fn foreign_command(
    start: &Start<'_>,
    record: &ModelRecord,
    engine: &EngineSpec,
) -> Result<(Command, Outside), ActuateError> {
    // It cannot be handed a socket, so it is told a port that is free a moment before; if somebody else takes it
    // meanwhile, the engine ends and is started again.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    let port = port.map_err(ActuateError::NoPort)?.port();
    let words = engine.words(&Values {
        path: &record.path.to_string_lossy(),
        port,
        name: start.model,
        context_tokens: record.context_tokens,
        slots: engine.slots,
        cores: &start.placement.cores(),
    })?;
    let mut words = words.iter();
    let mut command = Command::new(words.next().ok_or(EngineError::EmptyCommand)?);
    command.process_group(0).args(words);
    Ok((command, Outside { port, health: engine.health.clone(), slots: engine.slots }))
}

fn not_spawned(config: &DaemonConfig, record: &ModelRecord, source: io::Error) -> ActuateError {
    match &record.engine {
        None => ActuateError::Spawn { program: config.engine_exe.clone(), source },
        Some(engine) if source.kind() == io::ErrorKind::NotFound => {
            ActuateError::NoProgram { program: engine.program(), engine: engine.kind }
        }
        Some(engine) => ActuateError::Spawn { program: engine.program().into(), source },
    }
}

/// Confines a process that has only begun to its cores: the threads that it makes inherit them.
fn confine(process: &ProcessHandle, cores: &[u32]) {
    let mut set = CpuSet::new();
    cores.iter().filter(|core| (**core as usize) < CpuSet::MAX_CPU).for_each(|core| set.set(*core as usize));
    let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
    if let Err(error) = sched_setaffinity(pid, &set) {
        tracing::warn!(pid = process.pid, ?cores, %error, "an engine cannot be confined to its cores");
    }
}

/// The engine's command line. Its own process group keeps a terminal's Ctrl-C and hang-up from it, so it
/// outlives us by its lease.
fn command(config: &DaemonConfig, start: &Start<'_>, record: &ModelRecord, socket: &Path) -> Command {
    let cores: Vec<String> = start.placement.cores().iter().map(u32::to_string).collect();
    let mut command = Command::new(&config.engine_exe);
    command
        .process_group(0)
        .arg("engine")
        .arg("--model")
        .arg(record.served_path())
        .args(["--port", "0", "--name", start.model, "--instance", start.instance, "--revision", start.revision])
        .arg("--control")
        .arg(socket)
        .args(["--lease-ms", &config.lease_ms.to_string()])
        .args(["--cores", &cores.join(",")])
        .args(["--kv-bytes", &config.kv_bytes.to_string()])
        .args(["--compute", config.compute.as_flag()]);
    if record.head.is_some() {
        command.arg("--store").arg(store_root(&config.state_dir)).arg("--segments").arg(&config.segments);
    }
    if let Some(quantise) = record.quantise {
        command.args(["--quantise", &quantise.to_string()]);
    }
    if let Some(kv_type) = config.kv_type {
        command.args(["--kv-type", kv_type.as_flag()]);
    }
    let adapters: Vec<AdapterSpec> = record.adapters.iter().map(|adapter| adapter.spec(record)).collect();
    if !adapters.is_empty()
        && let Ok(json) = serde_json::to_string(&adapters)
    {
        command.args(["--adapter-set", &json]);
    }
    command
}

/// A revision names the files' content. Hashing it again here would cost more than the start itself, so
/// size and modification time stand for it.
fn check_unchanged(record: &ModelRecord) -> Result<(), ActuateError> {
    let describe = |source| ActuateError::Checkpoint { model: record.name.clone(), path: record.path.clone(), source };
    let stamp = engine_store::stamp(&record.path).map_err(describe)?;
    if (stamp.bytes, stamp.modified_unix_ns) == (record.file_bytes, record.modified_unix_ns) {
        return Ok(());
    }
    Err(ActuateError::CheckpointChanged { model: record.name.clone(), path: record.path.clone() })
}

/// Log files kept; older ones are deleted when the daemon starts.
const LOGS_KEPT: usize = 100;
/// Bytes that all kept logs may have.
const LOGS_KEPT_BYTES: u64 = 64 << 20;

/// Creates the folders of a state folder and deletes the oldest logs beyond what is kept.
///
/// # Errors
/// When the state folder cannot be written.
pub(crate) fn prepare_folders(state_dir: &Path) -> Result<(), ActuateError> {
    for name in ["engines", "logs"] {
        let path = state_dir.join(name);
        std::fs::create_dir_all(&path).map_err(|source| ActuateError::StateFolder { path, source })?;
    }
    let logs = state_dir.join("logs");
    let entries = std::fs::read_dir(&logs).map_err(|source| ActuateError::StateFolder { path: logs, source })?;
    let mut files: Vec<_> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let metadata = entry.metadata().ok()?;
            Some((metadata.modified().ok()?, metadata.len(), entry.path()))
        })
        .collect();
    files.sort();
    let mut bytes = 0;
    for (kept, (_, length, path)) in files.iter().rev().enumerate() {
        bytes += length;
        if kept >= LOGS_KEPT || bytes > LOGS_KEPT_BYTES {
            let _ = std::fs::remove_file(path);
        }
    }
    Ok(())
}
