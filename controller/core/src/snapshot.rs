//! All that the controller knows at one moment. Counters are running totals, so that a lost or doubled
//! report changes nothing; every part says when it was observed.

use crate::Nanos;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Name under which a model is called.
pub type ModelName = String;
/// Identity of one engine process, unique for ever within a state folder.
pub type InstanceId = String;
/// Digest of weights (and adapter) and parameters.
pub type Revision = String;

/// The node as observed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    pub now_ns: Nanos,
    /// This controller's epoch: one higher at each start, kept in the state database.
    pub epoch: u64,
    pub node: NodeView,
    pub models: BTreeMap<ModelName, ModelView>,
    pub instances: BTreeMap<InstanceId, InstanceView>,
}

/// Devices and memory that may be given out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    pub observed_at_ns: Nanos,
    /// Cores that instances may be placed on.
    pub cores: Vec<u32>,
    /// Cores of one instance.
    pub cores_per_instance: u32,
    /// Memory that instances may use in all, bytes. Weights that lie in memory for the next start have what is left.
    pub memory_budget_bytes: u64,
    #[serde(default)]
    pub weights: NodeWeights,
}

/// Weights on the node, over all models.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeWeights {
    /// Most that may lie in host memory while no instance uses it, bytes.
    pub idle_bytes_max: u64,
    /// What lies there so of the registered models, bytes; what several share counts once.
    pub idle_bytes: u64,
    /// How fast weights have come from disk, bytes/s; 0 while that has not been measured.
    pub disk_bytes_per_s: f64,
    /// Whose weights are being brought into memory ahead of a start.
    pub bringing: Option<Revision>,
}

/// A registered model and its demand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelView {
    pub revision: Revision,
    /// Expected bytes of one instance that are its own: KV pool and scratch, and the weights where they are not shared.
    pub instance_bytes: u64,
    pub demand: Demand,
    /// Cold-start durations measured so far, ms, newest last; bounded. Kept across restarts.
    pub cold_start_ms: Vec<f64>,
    /// The weights that all its instances on a node share; none where each has its own.
    #[serde(default)]
    pub weights: Option<WeightsView>,
}

/// Weights that instances map, and where they are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WeightsView {
    /// All of them.
    pub bytes: u64,
    /// Where the next start would find them.
    pub tier: WeightsTier,
    /// Of them in host memory, whoever else has the same.
    pub memory_bytes: u64,
    /// What of that would come free without them: nobody maps it, and no other model in memory has the same.
    pub freeable_bytes: u64,
    /// A process maps some of them.
    pub mapped: bool,
    /// Cold starts from memory, and from disk, ms, newest last; bounded. Kept across restarts.
    pub memory_start_ms: Vec<f64>,
    pub disk_start_ms: Vec<f64>,
}

/// The place from which a start takes its weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightsTier {
    /// In host memory, whole.
    Memory,
    /// Some of them on disk alone.
    #[default]
    Disk,
    /// Not on this node.
    Absent,
}

/// Demand on a model, joined by the reconciler from the gateway's and the kernel's counters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Demand {
    pub observed_at_ns: Nanos,
    pub fidelity: Fidelity,
    /// Requests that arrived since the controller began: named by the gateway.
    pub arrivals_total: u64,
    /// This model's share of requests that the kernel saw begin and the gateway has not named yet.
    pub unidentified: f64,
    /// This model's share of all requests that the kernel saw and the gateway had not named, each added when it was
    /// seen and taken back when it was named: with `arrivals_total` the running total of offered load. May be negative
    /// where names and shares differ. It differs from `unidentified` in that nothing is ever written off.
    #[serde(default)]
    pub unnamed_total: f64,
    /// Requests waiting for an instance now.
    pub held: u32,
    /// Requests at an instance now.
    pub in_flight: u32,
    pub prompt_tokens_total: u64,
    pub output_tokens_total: u64,
    /// This model's share of connections that the kernel saw made, each shared out when it was made.
    #[serde(default)]
    pub connections_total: f64,
    /// Turns of conversations since the gateway began, and the newest of them, oldest first.
    #[serde(default)]
    pub turns_total: u64,
    #[serde(default)]
    pub turns: Vec<Turn>,
}

/// One request, and the conversation that it is a turn of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// Any name that no other conversation has.
    pub session: u64,
    pub at_ns: Nanos,
}

/// How well demand is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fidelity {
    /// The gateway's counters alone.
    #[default]
    Gateway,
    /// Gateway counters, checked against and completed by the kernel's.
    Kernel,
}

/// A running (or starting, or dying) engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceView {
    pub observed_at_ns: Nanos,
    pub model: ModelName,
    pub revision: Revision,
    pub state: InstanceState,
    pub placement: Placement,
    pub spawned_at_ns: Nanos,
    pub ready_at_ns: Option<Nanos>,
    /// Sequences in the batch and waiting inside the engine.
    pub running: u32,
    pub waiting: u32,
    pub prefill_tokens_total: u64,
    pub decode_tokens_total: u64,
    pub requests_total: u64,
    pub busy_ns_total: u64,
    /// Steps computed; 0 from an engine that does not tell.
    #[serde(default)]
    pub steps_total: u64,
    /// Last time it had a request, or when it became ready.
    pub last_used_at_ns: Nanos,
    pub resident_bytes: u64,
    /// It did not get the CPUs or the memory that it needs: what it serves meanwhile is no measure of it.
    #[serde(default)]
    pub disturbed: bool,
}

/// Where an instance is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    Starting,
    Ready,
    Draining,
}

/// Where an instance runs: a list of shards, all or nothing. A set of cores, a GPU and a MIG slice are
/// the same kind of thing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    pub shards: Vec<Shard>,
}

/// A slice of one device and the bytes used on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    pub device: DeviceSlice,
    pub bytes: u64,
}

/// A part of a device that is given out whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceSlice {
    /// These CPU cores.
    Cores(Vec<u32>),
}

impl Placement {
    /// The CPU cores of all shards.
    pub fn cores(&self) -> Vec<u32> {
        self.shards
            .iter()
            .flat_map(|shard| match &shard.device {
                DeviceSlice::Cores(cores) => cores.iter().copied(),
            })
            .collect()
    }

    /// Bytes over all shards.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes).sum()
    }
}
