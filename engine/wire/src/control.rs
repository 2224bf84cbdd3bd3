//! The engine's control protocol: JSON lines over a Unix socket, one [`Command`] answered by one
//! [`Reply`]. Versioned, because engines outlive the controller that started them and a newer one adopts them.
//!
//! Fencing: every command but `Hello` carries the controller's epoch; an engine refuses an epoch
//! lower than the highest it has seen, so a controller that was thought dead cannot drain an adopted engine.
//! Before it loads, the engine also prints [`Notice`]s as JSON lines on stdout, so that its parent
//! learns port and readiness without polling.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Version of this protocol; an engine with another major version is drained and replaced, not driven.
pub const PROTOCOL: u32 = 1;
/// An engine with no `Renew` for this long finishes its streams and exits.
pub const DEFAULT_LEASE_MS: u64 = 60_000;

/// Controller to engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "command", deny_unknown_fields)]
pub enum Command {
    /// Who are you? Answered with [`Reply::Hello`].
    Hello { protocol: u32 },
    /// Renew the lease and report. Answered with [`Reply::Telemetry`].
    Renew { epoch: u64, lease_ms: u64 },
    /// Take no new request, finish those in hand, exit; at the deadline exit anyway.
    Drain { epoch: u64, deadline_ms: u64 },
    /// Serve these low-rank adapters, and no others, beside the base model. They are read when a request first names
    /// them; one that is left out goes when its last request has ended. Answered with [`Reply::Done`]. Only for
    /// engines whose [`Hello::adapters_max`] is not 0.
    Adapters { epoch: u64, adapters: Vec<AdapterSpec> },
    /// To a spare process: become the engine that these arguments of `foreshock engine` describe. Answered with
    /// [`Reply::Done`], from which on it is that engine, at the same port, and its socket has the path that the arguments name.
    Adopt { epoch: u64, args: Vec<String> },
    /// To a spare process: read what these models' heads say, ahead of adopting one of them, and forget all others.
    /// Answered with [`Reply::Done`] at once; it is done in the background.
    Prepare { epoch: u64, heads: Vec<HeadSpec> },
}

/// A model of the store that a spare process may be told to adopt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadSpec {
    /// The store's folder.
    pub store: PathBuf,
    /// Of the model in the store.
    pub revision: String,
}

/// Heads that a spare process keeps in mind at most.
pub const HEADS_MAX: usize = 32;

/// An adapter that an engine is to serve.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterSpec {
    /// The model name that requests give.
    pub name: String,
    /// Folder in PEFT's format.
    pub path: PathBuf,
    /// Revision of the model that base and adapter make; hops name it.
    pub revision: String,
    /// Digest of the adapter's files, checked when they are read; none accepts any.
    pub digest: Option<String>,
}

/// Adapters that one engine serves at most.
pub const ADAPTERS_MAX: usize = 64;

/// Engine to controller.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reply")]
pub enum Reply {
    Hello(Hello),
    Telemetry(Telemetry),
    /// A spare process has nothing to report but itself.
    Spare(SpareReport),
    /// The command was taken.
    Done,
    /// It was not.
    Refused {
        message: String,
    },
}

/// What a spare process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpareReport {
    pub resident_bytes: u64,
    /// Heads that it has read.
    pub heads: u32,
}

/// Identity of a running engine: all that a controller needs to adopt it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    pub protocol: u32,
    pub instance: String,
    pub model: String,
    pub revision: String,
    pub pid: u32,
    /// Loopback TCP port that serves the hop and the OpenAI API.
    pub port: u16,
    pub cores: Vec<u32>,
    /// CLOCK_MONOTONIC when the process began, ns.
    pub started_at_ns: u64,
    /// CLOCK_MONOTONIC when it could first compute, ns; none while it loads.
    pub ready_at_ns: Option<u64>,
    /// Highest controller epoch seen.
    pub epoch: u64,
    /// Adapters that it serves at most: 0 from an engine that is older than they are, or whose model takes none.
    #[serde(default)]
    pub adapters_max: u32,
    /// It has no model yet and waits to be given one.
    #[serde(default)]
    pub spare: bool,
}

/// Where an engine is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineState {
    Loading,
    Ready,
    Draining,
}

/// Totals since the engine began, and the requests that ended since the last report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Telemetry {
    /// CLOCK_MONOTONIC when taken, ns.
    pub at_ns: u64,
    pub state: EngineState,
    pub ready_at_ns: Option<u64>,
    /// Sequences in the running batch, and those waiting for KV blocks or a slot.
    pub running: u32,
    pub waiting: u32,
    pub kv_blocks_total: u32,
    pub kv_blocks_used: u32,
    pub prefill_tokens_total: u64,
    pub decode_tokens_total: u64,
    /// Tokens of which vectors were made; 0 from an engine that is older than this field.
    #[serde(default)]
    pub encode_tokens_total: u64,
    /// Tokens handed to requests; the first of each comes out of its prefill.
    #[serde(default)]
    pub output_tokens_total: u64,
    /// Tokens of requests as they joined the batch: found in the prefix cache, and not. 0 from an engine that
    /// is older than these fields.
    #[serde(default)]
    pub prefix_hit_tokens_total: u64,
    #[serde(default)]
    pub prefix_miss_tokens_total: u64,
    /// Drafts made, their tokens, and those of these that were drawn as well.
    #[serde(default)]
    pub drafts_total: u64,
    #[serde(default)]
    pub draft_tokens_total: u64,
    #[serde(default)]
    pub draft_tokens_accepted_total: u64,
    pub requests_total: u64,
    pub cancelled_total: u64,
    pub steps_total: u64,
    #[serde(default)]
    pub preemptions_total: u64,
    /// Time of all steps by phase.
    #[serde(default)]
    pub step_phases: StepPhases,
    /// Time spent inside forward steps, ns.
    pub busy_ns_total: u64,
    pub resident_bytes: u64,
    pub phases: StartPhases,
    /// Requests ended since the last report, oldest first; bounded, the rest counted.
    pub finished: Vec<FinishedRequest>,
    pub finished_dropped_total: u64,
}

/// Where the time of steps went, totals in ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepPhases {
    /// Choosing what to compute.
    pub schedule_ns: u64,
    /// The forward pass on the device.
    pub forward_ns: u64,
    /// Drawing tokens from logits.
    pub sample_ns: u64,
    /// Handing tokens on.
    pub deliver_ns: u64,
}

impl StepPhases {
    /// By name, in the order in which they happen.
    pub fn each(&self) -> [(&'static str, u64); 4] {
        [
            ("schedule", self.schedule_ns),
            ("forward", self.forward_ns),
            ("sample", self.sample_ns),
            ("deliver", self.deliver_ns),
        ]
    }
}

/// Where an engine's weights were when it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// In shared memory, all of them.
    Memory,
    /// On disk, in the store, from where they were read into shared memory.
    Disk,
    /// In files that the engine maps: a checkpoint that is not in the store, or one for which memory was short.
    File,
}

impl Tier {
    /// As a metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::File => "file",
        }
    }
}

/// What a start cost, phase by phase, ms from the process's beginning, or from the command to a spare process that adopted
/// the model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StartPhases {
    /// CLOCK_MONOTONIC of what the phases count from, ns; 0 from an engine that is older than this field.
    #[serde(default)]
    pub began_at_ns: u64,
    /// Where the weights were; none while they load, and from an engine that does not say.
    #[serde(default)]
    pub tier: Option<Tier>,
    /// Bytes of weights that were read from disk.
    #[serde(default)]
    pub read_bytes: u64,
    /// The process was there already, as a spare.
    #[serde(default)]
    pub spare: bool,
    pub listening_ms: f64,
    pub mapped_ms: f64,
    pub ready_ms: f64,
    /// End of the first forward step; none before it.
    pub first_step_ms: Option<f64>,
    pub first_token_ms: Option<f64>,
}

/// One request as its engine saw it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FinishedRequest {
    pub request_id: String,
    /// The adapter that it named; none for the base model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    pub prompt_tokens: u32,
    pub cached_tokens: u32,
    pub output_tokens: u32,
    /// From arrival to joining the batch.
    pub queue_ms: f64,
    /// From arrival to the first token's sending.
    pub ttft_ms: f64,
    /// Mean time between tokens; none with fewer than two.
    pub itl_ms_mean: Option<f64>,
    /// CLOCK_MONOTONIC of arrival, first token's write and last token's write, ns.
    pub arrived_at_ns: u64,
    pub first_token_at_ns: u64,
    pub last_token_at_ns: u64,
    pub outcome: Outcome,
    /// Whether it ended because its token limit was reached.
    #[serde(default)]
    pub cut_at_limit: bool,
}

impl FinishedRequest {
    /// How it ended, in vLLM's words.
    pub fn finished_reason(&self) -> &'static str {
        match (self.outcome, self.cut_at_limit) {
            (Outcome::Finished, true) => "length",
            (Outcome::Finished, false) => "stop",
            (Outcome::Cancelled | Outcome::Failed, _) => "abort",
        }
    }
}

/// How a request ended at its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Finished,
    Cancelled,
    Failed,
}

/// A line on the engine's stdout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "notice")]
pub enum Notice {
    /// The port is bound: requests may be sent and wait inside until the model is loaded.
    Listening { port: u16, pid: u32, at_ns: u64 },
    /// The model can compute.
    Ready { at_ns: u64 },
    /// The start failed; the process exits after this line.
    Failed { message: String },
}
