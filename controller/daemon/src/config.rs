//! What the daemon needs to know, as plain typed values. The binary fills it in from the command line and
//! has it checked once, before any port is bound; nothing here reads the environment.

use controller_core::snapshot::NodeView;
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;

/// Configuration of one [`Daemon`](crate::Daemon).
#[derive(Clone, Debug)]
pub struct DaemonConfig {
    /// Folder of the database, control sockets, instance files and logs.
    pub state_dir: PathBuf,
    /// Cores that engines may be placed on.
    pub cores: Vec<u32>,
    pub cores_per_instance: u32,
    /// Memory that engines may use in all, bytes.
    pub memory_budget_bytes: u64,
    /// Folder of shared memory where engines have their weights.
    pub segments: PathBuf,
    /// For which kernels models of the store are laid out.
    pub kernel_layout: String,
    /// Weights that stay there while no engine uses them, bytes.
    pub idle_weights_bytes: u64,
    /// KV pool of one instance, bytes.
    pub kv_bytes: u64,
    /// Engines without a controller for this long finish their streams and exit.
    pub lease_ms: u64,
    /// Time that engines get to finish when the daemon itself shuts down.
    pub drain_deadline_ms: u64,
    /// Program that runs an engine: this very binary, unless a test says otherwise.
    pub engine_exe: PathBuf,
    pub compute: ComputeMode,
    /// How engines store keys and values; none leaves it to them.
    pub kv_type: Option<KvType>,
    /// Engine processes that are kept ready to adopt a model; none leaves their number to the planner.
    pub spares: Option<u32>,
    /// Decide and record, act on nothing.
    pub advise: bool,
    /// At shutdown drain the engines; if false they live on by their lease, to be adopted.
    pub drain_on_shutdown: bool,
    /// Settings of the pure planner.
    pub policy: controller_core::Policy,
}

/// Arithmetic of the engines' kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComputeMode {
    /// Everything in f32: the reference.
    F32,
    /// Integer dot products on quantised activations.
    Fast,
}

impl ComputeMode {
    /// As the engine's `--compute` takes it.
    pub fn as_flag(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Fast => "fast",
        }
    }
}

/// How engines store keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    F16,
    /// int8 with scales: nearly half of f16's memory.
    Q8,
}

impl KvType {
    /// As the engine's `--kv-type` takes it.
    pub fn as_flag(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8 => "q8",
        }
    }
}

/// A setting that cannot work.
#[derive(Debug, Error, PartialEq)]
pub enum ConfigError {
    #[error("no core is left for engines; name at least one with --cores")]
    NoCores,
    #[error("core {0} is named twice in --cores")]
    CoreTwice(u32),
    #[error("--cores-per-instance {per_instance} does not fit the {cores} cores given to engines")]
    CoresPerInstance { per_instance: u32, cores: usize },
    #[error(
        "the memory budget of {budget} bytes does not even hold one KV cache of {kv} bytes; raise --memory-bytes or lower --kv-bytes"
    )]
    Memory { budget: u64, kv: u64 },
    #[error("--lease-ms {0} is too short; engines need at least {MIN_LEASE_MS} ms between renewals")]
    Lease(u64),
}

/// Below this a busy machine would lose engines to late renewals.
const MIN_LEASE_MS: u64 = 1_000;

impl DaemonConfig {
    /// Checks the settings against each other.
    ///
    /// # Errors
    /// Names the first setting that cannot work.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.cores.is_empty() {
            return Err(ConfigError::NoCores);
        }
        let mut sorted = self.cores.clone();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(ConfigError::CoreTwice(pair[0]));
        }
        if self.cores_per_instance == 0 || self.cores_per_instance as usize > self.cores.len() {
            return Err(ConfigError::CoresPerInstance {
                per_instance: self.cores_per_instance,
                cores: self.cores.len(),
            });
        }
        if self.memory_budget_bytes <= self.kv_bytes {
            return Err(ConfigError::Memory { budget: self.memory_budget_bytes, kv: self.kv_bytes });
        }
        if self.lease_ms < MIN_LEASE_MS {
            return Err(ConfigError::Lease(self.lease_ms));
        }
        Ok(())
    }

    /// The node as the planner sees it.
    pub(crate) fn node(&self, now_ns: u64) -> NodeView {
        NodeView {
            observed_at_ns: now_ns,
            cores: self.cores.clone(),
            cores_per_instance: self.cores_per_instance,
            memory_budget_bytes: self.memory_budget_bytes,
            weights: Default::default(),
        }
    }

    /// Time that an engine which tells nothing by itself has for becoming ready: a little less than the planner gives
    /// it, so that the reason is found before its end.
    pub(crate) fn start_limit(&self) -> Duration {
        Duration::from_millis(self.policy.start_timeout_ms / 20 * 19)
    }

    /// How often a lease is renewed: often enough for fresh telemetry, and never less than ten times a lease.
    pub(crate) fn renew_every(&self) -> Duration {
        Duration::from_millis((self.lease_ms / 10).min(150))
    }
}
