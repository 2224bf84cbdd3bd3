//! From arguments to one validated configuration, before any port is bound; and from errors to exit codes.

use crate::cli::{SegmentsArgs, ServeArgs, StateArgs};
use anyhow::{Context, Result, bail, ensure};
use std::path::PathBuf;

/// Bad configuration or an unreadable input: what the user gave must change.
pub const EXIT_INPUT: u8 = 2;
/// A port is taken.
pub const EXIT_PORT: u8 = 3;
/// Anything else.
pub const EXIT_OTHER: u8 = 1;

/// Marks an error as the user's to mend.
#[derive(Debug)]
pub struct InputError(pub String);

impl std::fmt::Display for InputError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InputError {}

/// The exit code that an error calls for.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.downcast_ref::<InputError>().is_some() {
        return EXIT_INPUT;
    }
    let taken = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::AddrInUse);
    if taken { EXIT_PORT } else { EXIT_OTHER }
}

/// The state folder: as given, or where this user's state belongs.
pub fn state_dir(args: &StateArgs) -> Result<PathBuf> {
    if let Some(dir) = &args.state {
        return Ok(dir.clone());
    }
    if let Some(base) = std::env::var_os("XDG_STATE_HOME").filter(|base| !base.is_empty()) {
        return Ok(PathBuf::from(base).join("foreshock"));
    }
    match std::env::var_os("HOME").filter(|home| !home.is_empty()) {
        Some(home) => Ok(PathBuf::from(home).join(".local/state/foreshock")),
        None => bail!(InputError("no HOME and no --state: give a state folder with --state".into())),
    }
}

/// Where engines have their weights in memory.
pub fn segments_dir(args: &SegmentsArgs) -> PathBuf {
    args.segments.clone().unwrap_or_else(engine_store::Segments::default_folder)
}

/// Resources of this node that engines may use.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub cores: Vec<u32>,
    pub cores_per_instance: u32,
    pub memory_budget_bytes: u64,
}

/// Reads what the node has and checks what was asked of it.
pub fn node(args: &ServeArgs) -> Result<Node> {
    let allowed = allowed_cores()?;
    let mut cores = if args.cores.is_empty() { allowed.clone() } else { args.cores.clone() };
    cores.sort_unstable();
    cores.dedup();
    if let Some(core) = cores.iter().find(|core| !allowed.contains(core)) {
        bail!(InputError(format!("--cores names core {core}, but this process may run on {allowed:?} only")));
    }
    let cores_per_instance = args.cores_per_instance.unwrap_or((cores.len() as u32 / 4).max(1));
    if cores_per_instance == 0 || cores_per_instance as usize > cores.len() {
        let have = cores.len();
        bail!(InputError(format!("--cores-per-instance is {cores_per_instance}, but engines have {have} cores")));
    }
    let memory_budget_bytes = match args.memory_bytes {
        Some(bytes) => bytes,
        None => available_bytes()? / 10 * 8,
    };
    Ok(Node { cores, cores_per_instance, memory_budget_bytes })
}

/// Checks the rest of the arguments.
pub fn validate(args: &ServeArgs) -> Result<()> {
    let check = |good: bool, what: &str| if good { Ok(()) } else { Err(InputError(what.into())) };
    check(args.idle_seconds.is_finite() && args.idle_seconds >= 0.0, "--idle-seconds must be a number of at least 0")?;
    check((0.0..=100.0).contains(&args.probe_budget), "--probe-budget must be a number from 0 to 100")?;
    check(args.hold_limit >= 1, "--hold-limit must be at least 1")?;
    check(args.hold_timeout_ms >= 1, "--hold-timeout-ms must be at least 1")?;
    check(args.lease_ms >= 1_000, "--lease-ms must be at least 1000, or a busy controller could lose its engines")?;
    check(args.kv_bytes >= 1 << 20, "--kv-bytes must be at least 1048576")?;
    Ok(())
}

/// Cores in this process's affinity mask.
pub fn allowed_cores() -> Result<Vec<u32>> {
    let set = rustix::thread::sched_getaffinity(None).context("reading this process's CPU affinity")?;
    let cores: Vec<u32> =
        (0..rustix::thread::CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).map(|core| core as u32).collect();
    ensure!(!cores.is_empty(), "the CPU affinity mask is empty");
    Ok(cores)
}

fn available_bytes() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let line =
        text.lines().find(|line| line.starts_with("MemAvailable:")).context("no MemAvailable in /proc/meminfo")?;
    let kib: u64 = line.split_whitespace().nth(1).and_then(|v| v.parse().ok()).context("MemAvailable is no number")?;
    Ok(kib * 1024)
}
