//! The command line. Every option may also come from the environment (`FORESHOCK_...`), which is read
//! here and nowhere else.

use clap::{Args, Parser, Subcommand, ValueEnum};
use controller_daemon::foreign::{EngineAsk, EngineKind};
use engine_instance::AdapterSpec;
use engine_store::Quantisation;
use std::net::SocketAddr;
use std::path::PathBuf;

/// An autoscaling controller driven by eBPF, with its own LLM serving engine.
#[derive(Parser)]
#[command(name = "foreshock", version, about)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run gateway, controller and node agent; engines start and stop by demand.
    Serve(ServeArgs),
    /// Run one engine instance: an OpenAI-compatible server by itself.
    Engine(EngineArgs),
    /// The model registry.
    Models(ModelsArgs),
    /// Why a model has the instances it has.
    Explain(ExplainArgs),
    /// Models, instances, demand, latencies and GPUs of a running serve, live.
    Top(TopArgs),
    /// A trace against scaling policies in a simulated fleet: a table, JSON and plots.
    Simulate(SimulateArgs),
    /// Watch an engine that somebody else runs, without touching it: demand, service, and the load that it will bear.
    Attach(AttachArgs),
}

/// Where state is kept.
#[derive(Args, Clone, Debug)]
pub struct StateArgs {
    /// State folder [default: $XDG_STATE_HOME/foreshock or ~/.local/state/foreshock].
    #[arg(long, env = "FORESHOCK_STATE")]
    pub state: Option<PathBuf>,
}

/// Where weights in memory are.
#[derive(Args, Clone, Debug)]
pub struct SegmentsArgs {
    /// Folder of shared memory where engines have their weights, this user's alone [default: /dev/shm/foreshock-UID].
    #[arg(long, env = "FORESHOCK_SEGMENTS")]
    pub segments: Option<PathBuf>,
}

#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    #[command(flatten)]
    pub state: StateArgs,
    #[command(flatten)]
    pub segments: SegmentsArgs,
    /// Weights that stay in shared memory while no engine uses them, bytes [default: half of --memory-bytes].
    #[arg(long, env = "FORESHOCK_IDLE_WEIGHTS_BYTES")]
    pub idle_weights_bytes: Option<u64>,
    /// What decides whose weights those are: the planner, or for comparison who used them last, or nobody.
    #[arg(long, value_enum, default_value_t = Tiers::Planned, hide = true)]
    pub tiers: Tiers,
    /// Data port: the OpenAI API.
    #[arg(long, env = "FORESHOCK_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Admin port: decisions, instances, registry.
    #[arg(long, env = "FORESHOCK_ADMIN", default_value = "127.0.0.1:8081")]
    pub admin: SocketAddr,
    /// Attach no kernel probes; demand comes from the gateway's counters alone.
    #[arg(long, env = "FORESHOCK_NO_PROBES")]
    pub no_probes: bool,
    /// Share of all CPUs that the kernel probes may take before the costliest are turned off for a while, percent.
    #[arg(long, env = "FORESHOCK_PROBE_BUDGET", value_name = "PERCENT", default_value_t = 2.0)]
    pub probe_budget: f64,
    /// Count the engines' CUDA calls for 2 s in every 30 s; costs each counted call microseconds.
    #[arg(long, env = "FORESHOCK_CUDA_PROBES", conflicts_with = "no_probes")]
    pub cuda_probes: bool,
    /// Decide and record, act on nothing.
    #[arg(long, env = "FORESHOCK_ADVISE")]
    pub advise: bool,
    /// Cores that engines may use [default: all that this process may].
    #[arg(long, env = "FORESHOCK_CORES", value_delimiter = ',')]
    pub cores: Vec<u32>,
    /// Cores of one instance [default: a quarter of them, at least 1].
    #[arg(long, env = "FORESHOCK_CORES_PER_INSTANCE")]
    pub cores_per_instance: Option<u32>,
    /// Memory that engines may use in all, bytes [default: 80% of what is available].
    #[arg(long, env = "FORESHOCK_MEMORY_BYTES")]
    pub memory_bytes: Option<u64>,
    /// KV cache of one instance, bytes.
    #[arg(long, env = "FORESHOCK_KV_BYTES", default_value_t = 256 << 20)]
    pub kv_bytes: u64,
    /// How keys and values are stored [default: f16, or f32 with --compute f32].
    #[arg(long, env = "FORESHOCK_KV_TYPE", value_enum)]
    pub kv_type: Option<KvType>,
    /// Idle time after which an instance costs more than a later cold start, seconds.
    #[arg(long, env = "FORESHOCK_IDLE_SECONDS", default_value_t = 30.0)]
    pub idle_seconds: f64,
    /// Time that an instance has for becoming ready before it is given up, milliseconds.
    #[arg(long, env = "FORESHOCK_START_TIMEOUT_MS", default_value_t = 120_000, value_parser = clap::value_parser!(u64).range(100..))]
    pub start_timeout_ms: u64,
    /// Longest time a request is held while its model starts, milliseconds.
    #[arg(long, env = "FORESHOCK_HOLD_TIMEOUT_MS", default_value_t = 60_000)]
    pub hold_timeout_ms: u64,
    /// Requests held per model before more are refused with 429.
    #[arg(long, env = "FORESHOCK_HOLD_LIMIT", default_value_t = 256)]
    pub hold_limit: usize,
    /// Time that running requests get to finish at shutdown, milliseconds.
    #[arg(long, env = "FORESHOCK_DRAIN_TIMEOUT_MS", default_value_t = 10_000)]
    pub drain_timeout_ms: u64,
    /// Engines without a controller for this long finish their streams and exit, milliseconds.
    #[arg(long, env = "FORESHOCK_LEASE_MS", default_value_t = 60_000)]
    pub lease_ms: u64,
    /// Engine processes that are kept ready to adopt a model [default: the planner's choice].
    #[arg(long, env = "FORESHOCK_SPARES", value_parser = clap::value_parser!(u32).range(0..=64))]
    pub spares: Option<u32>,
    /// Number format of the engines' arithmetic.
    #[arg(long, env = "FORESHOCK_COMPUTE", value_enum, default_value_t = Compute::Fast)]
    pub compute: Compute,
    /// Log as JSON lines.
    #[arg(long, env = "FORESHOCK_LOG_JSON")]
    pub log_json: bool,
}

/// Arithmetic of the CPU kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compute {
    /// Weights dequantised, all in f32: the reference.
    F32,
    /// Integer dot products on quantised activations.
    Fast,
}

/// How weights that no engine uses share memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Tiers {
    Planned,
    Lru,
    None,
}

/// When an engine drafts.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speculation {
    Off,
    /// When measured rates say that it pays.
    Auto,
    /// Whenever there is something to draft: for measurements.
    Always,
}

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KvType {
    F16,
    /// int8 with a scale per 64 numbers: nearly half the memory, and some more rounding.
    Q8,
}

#[derive(Args, Clone, Debug)]
pub struct EngineArgs {
    /// Checkpoint: a GGUF file or a Hugging Face folder.
    #[arg(long, required_unless_present = "spare")]
    pub model: Option<PathBuf>,
    /// Wait at the control socket to be told what to serve.
    #[arg(long, requires = "control", conflicts_with = "model", hide = true)]
    pub spare: bool,
    /// Round a folder's matrices at load: q8_0, q4_0 or q4_1 [default: as they are stored].
    #[arg(long)]
    pub quantise: Option<Quantisation>,
    /// TCP port; 0 takes a free one.
    #[arg(long, default_value_t = 8090)]
    pub port: u16,
    #[arg(long, default_value = "127.0.0.1")]
    pub host: std::net::IpAddr,
    /// Name under which the model is served [default: the file's name without its ending, or the folder's].
    #[arg(long)]
    pub name: Option<String>,
    /// What computes: `cpu`, or a GPU as `cuda` or `cuda:N`.
    #[arg(long, default_value = "cpu")]
    pub device: engine_instance::Device,
    /// On a GPU, f32 stands for inputs of products with 16 bits of precision instead of 8.
    #[arg(long, value_enum, default_value_t = Compute::Fast)]
    pub compute: Compute,
    /// Cores to run on, one thread each [default: all that this process may].
    #[arg(long, value_delimiter = ',')]
    pub cores: Vec<u32>,
    /// How keys and values are stored [default: f16, or f32 with --compute f32].
    #[arg(long, value_enum)]
    pub kv_type: Option<KvType>,
    /// KV cache, bytes [default: by available memory].
    #[arg(long)]
    pub kv_bytes: Option<u64>,
    /// A low-rank adapter in PEFT's format to serve beside the model; may be given several times.
    #[arg(long = "adapter", value_name = "NAME=PATH", value_parser = adapter)]
    pub adapters: Vec<AdapterSpec>,
    /// The same from the controller, as JSON.
    #[arg(long, requires = "control", hide = true, value_parser = adapter_set)]
    pub adapter_set: Option<AdapterSet>,
    /// Requests that may wait inside before more are refused.
    #[arg(long, default_value_t = 256)]
    pub max_queue: usize,
    /// Time between two tokens of a stream that the prompts of others should leave to it, milliseconds.
    #[arg(long, default_value_t = 100)]
    pub itl_target_ms: u64,
    /// When to draft tokens from what a stream has said before; drafts save time and change no output.
    #[arg(long, value_enum, default_value_t = Speculation::Auto)]
    pub speculation: Speculation,
    /// Identity given by the controller.
    #[arg(long, requires = "control", hide = true)]
    pub instance: Option<String>,
    #[arg(long, hide = true)]
    pub revision: Option<String>,
    /// Store that holds the weights of `--revision`; `--model` is then its head.
    #[arg(long, requires = "revision", requires = "segments", hide = true)]
    pub store: Option<PathBuf>,
    /// Folder of shared memory that the weights lie in.
    #[arg(long, requires = "store", hide = true)]
    pub segments: Option<PathBuf>,
    /// Control socket: given by the controller, whose lease it then needs.
    #[arg(long, requires = "instance", hide = true)]
    pub control: Option<PathBuf>,
    #[arg(long, default_value_t = 60_000, hide = true)]
    pub lease_ms: u64,
}

/// The command line of one engine by itself, as a spare process is told it.
#[derive(Parser)]
#[command(name = "engine")]
pub struct EngineCli {
    #[command(flatten)]
    pub args: EngineArgs,
}

/// `NAME=PATH`. By itself an engine takes the files as they are, so the path stands for the revision.
fn adapter(text: &str) -> Result<AdapterSpec, String> {
    let (name, path) = text
        .split_once('=')
        .filter(|(name, path)| !name.is_empty() && !path.is_empty())
        .ok_or("expected NAME=PATH: the model name that requests give, and a folder with adapter_config.json in it")?;
    let (name, revision) = (name.to_owned(), "unregistered".to_owned());
    Ok(AdapterSpec { name, path: path.into(), revision, digest: None })
}

/// Adapters as the controller lists them.
#[derive(Clone, Debug)]
pub struct AdapterSet(pub Vec<AdapterSpec>);

fn adapter_set(json: &str) -> Result<AdapterSet, String> {
    serde_json::from_str(json).map(AdapterSet).map_err(|error| error.to_string())
}

#[derive(Args, Clone, Debug)]
pub struct ModelsArgs {
    #[command(subcommand)]
    pub command: ModelsCommand,
}

#[derive(Subcommand, Clone, Debug)]
pub enum ModelsCommand {
    /// Take a checkpoint, a GGUF file or a Hugging Face folder, into the store and register it under a name; or register
    /// a low-rank adapter of a registered model.
    Add {
        name: String,
        /// A path, or an address to fetch: http(s)://HOST/..., s3://BUCKET/KEY, hf://ORG/REPO[@REVISION][/FILE.gguf]. Credentials
        /// come from the environment: AWS_*, HF_TOKEN, HF_ENDPOINT.
        path: PathBuf,
        /// PATH is an adapter's folder in PEFT's format, and this the model that it changes.
        #[arg(long)]
        base: Option<String>,
        /// Round a folder's matrices at load: q8_0, q4_0 or q4_1 [default: as they are stored].
        #[arg(long, conflicts_with = "base")]
        quantise: Option<Quantisation>,
        #[command(flatten)]
        engine: EngineOptions,
        #[command(flatten)]
        segments: SegmentsArgs,
        #[command(flatten)]
        state: StateArgs,
    },
    /// List registered models.
    Ls {
        #[command(flatten)]
        state: StateArgs,
    },
    /// Forget a model; its instances are drained, its files stay (`gc` removes those of the store).
    Rm {
        name: String,
        #[command(flatten)]
        segments: SegmentsArgs,
        #[command(flatten)]
        state: StateArgs,
    },
    /// Read every byte that the store has of one model, or of all, and say which are not as they were written.
    Verify {
        name: Option<String>,
        #[command(flatten)]
        state: StateArgs,
    },
    /// Remove from the store what no registered model needs.
    Gc {
        #[command(flatten)]
        state: StateArgs,
    },
    /// What a registered model, or a file or folder, is made of.
    Inspect {
        name_or_path: String,
        #[command(flatten)]
        state: StateArgs,
    },
}

/// An engine that is not ours.
#[derive(Args, Clone, Debug)]
pub struct EngineOptions {
    /// Engine that serves the checkpoint: llama-server, vllm, trtllm-serve or custom [default: our own].
    #[arg(long, conflicts_with_all = ["base", "quantise"])]
    pub engine: Option<EngineKind>,
    /// Command line in place of the engine's usual one; {path}, {port}, {name}, {context}, {context_all}, {slots}, {cores} and {threads} are filled in for each instance.
    #[arg(long, requires = "engine")]
    pub engine_command: Option<String>,
    /// Path that answers 200 once the engine can serve [default: /health].
    #[arg(long, requires = "engine")]
    pub health_path: Option<String>,
    /// Longest sequence, tokens [default: the model's, 4096 at most].
    #[arg(long, requires = "engine")]
    pub context_tokens: Option<u32>,
    /// Requests that an instance computes at a time [default: 4].
    #[arg(long, requires = "engine")]
    pub slots: Option<u32>,
    /// Memory of one instance, bytes [default: the files, the KV cache of all slots, and 256 MiB].
    #[arg(long, requires = "engine")]
    pub engine_memory_bytes: Option<u64>,
}

impl EngineOptions {
    /// The engine as it is asked for; none for our own.
    pub fn asked(self) -> Option<EngineAsk> {
        Some(EngineAsk {
            kind: self.engine?,
            command: self.engine_command,
            health: self.health_path,
            context_tokens: self.context_tokens,
            slots: self.slots,
            memory_bytes: self.engine_memory_bytes,
        })
    }
}

#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// Registered model.
    pub model: String,
    /// Newest decisions to show.
    #[arg(long, default_value_t = 20)]
    pub limit: usize,
    #[command(flatten)]
    pub state: StateArgs,
}

#[derive(Args, Clone, Debug)]
pub struct TopArgs {
    /// Admin port of the serve to watch.
    #[arg(long, env = "FORESHOCK_ADMIN", default_value = "127.0.0.1:8081")]
    pub admin: SocketAddr,
    /// Time between two looks, milliseconds.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    pub every_ms: u64,
    /// Print one frame as text and end; so it does too when stdout is no terminal.
    #[arg(long)]
    pub once: bool,
}

#[derive(Args, Clone, Debug)]
pub struct AttachArgs {
    /// Process whose listening TCP ports are watched, until it ends; may be given several times.
    #[arg(long = "pid", value_name = "PID", required_unless_present = "ports")]
    pub pids: Vec<u32>,
    /// TCP port to watch, whoever listens there; may be given several times.
    #[arg(long = "port", value_name = "PORT")]
    pub ports: Vec<u16>,
    /// Name to show [default: the process's, or the port].
    #[arg(long)]
    pub name: Option<String>,
    /// Watch for one period, print what was seen, and end.
    #[arg(long)]
    pub once: bool,
    /// One JSON object a line: what is watched, then each port at each period, and the ends of processes.
    #[arg(long)]
    pub json: bool,
    /// Period of what is shown, milliseconds.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    pub every_ms: u64,
    /// Time to first token that the objective allows, milliseconds.
    #[arg(long, default_value_t = 1_000.0)]
    pub slo_ttft_ms: f64,
    /// Time between two tokens that it allows, milliseconds.
    #[arg(long, default_value_t = 100.0)]
    pub slo_itl_ms: f64,
    /// Share of the first tokens, and of the gaps between tokens, that must keep to it.
    #[arg(long, default_value_t = 0.95)]
    pub slo_quantile: f64,
    /// Serve /metrics on this address.
    #[arg(long)]
    pub listen: Option<SocketAddr>,
}

#[derive(Args, Clone, Debug)]
pub struct SimulateArgs {
    /// Trace: CSV as of Azure (with an optional column Model), JSON lines as of Mooncake, or counts per bin; may be gzipped.
    #[arg(long, conflicts_with_all = ["generate", "prometheus"])]
    pub trace: Option<PathBuf>,
    /// A made-up trace: poisson:RATE, bursty:RATE:TIMES, diurnal:PEAK:PERIOD_S, flash-crowd:RATE:TIMES or sparse:MODELS:RATE.
    #[arg(long, value_parser = crate::simulate::shape, conflicts_with = "prometheus")]
    pub generate: Option<crate::simulate::NamedShape>,
    /// The load of an existing deployment, from the Prometheus that scrapes it: the counters of foreshock or of vLLM.
    #[arg(long, value_name = "URL")]
    pub prometheus: Option<String>,
    /// Length of a made-up trace, or of the history that is asked for, hours.
    #[arg(long, default_value_t = 1.0)]
    pub hours: f64,
    /// Policy, or `all`; may be given several times: foreshock, static-peak, knative, hpa, keda, ray-serve, hybrid-histogram,
    /// serverless-llm, dynamo, oracle.
    #[arg(long, default_value = "foreshock")]
    pub policy: Vec<String>,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Mend what is wrong with the trace's lines, and count it.
    #[arg(long)]
    pub repair: bool,
    /// Begin this far into the trace, seconds.
    #[arg(long, default_value_t = 0.0)]
    pub from_s: f64,
    /// Length of the part that is simulated, seconds [default: to the end].
    #[arg(long)]
    pub for_s: Option<f64>,
    /// Devices of the fleet, one instance on each.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub devices: u32,
    /// Median cold start, seconds.
    #[arg(long, default_value_t = 10.0)]
    pub cold_start_s: f64,
    /// Target for the time to first token, milliseconds.
    #[arg(long, default_value_t = 2_000.0)]
    pub ttft_ms: f64,
    /// Target for the mean time between tokens of a request, milliseconds.
    #[arg(long, default_value_t = 60.0)]
    pub itl_ms: f64,
    /// Price of a device, per hour.
    #[arg(long, default_value_t = 2.0)]
    pub price_per_h: f64,
    /// How full an instance is to be, as a share of its batch [default: the policy's own].
    #[arg(long)]
    pub fill: Option<f64>,
    /// How long an instance is kept, in times of the policy's default.
    #[arg(long)]
    pub keep: Option<f64>,
    /// What stands in for an engine: `scheduled`, its own scheduler and blocks step by step, or `fluid`, a batch in straight lines,
    /// faster.
    #[arg(long, default_value = "scheduled", value_parser = crate::simulate::engines)]
    pub engines: controller_sim::fleet::Engines,
    /// Devices, nodes, instances, disks and the controller fail, something at least once a minute.
    #[arg(long)]
    pub faults: bool,
    /// Folder for simulation.json and the plots.
    #[arg(long, default_value = "simulation")]
    pub out: PathBuf,
}
