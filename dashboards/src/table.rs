//! Every metric Foreshock exports. Names follow Prometheus: base units, `_total` for counters, labels of
//! low cardinality.

/// Kind of a metric, as Prometheus has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Counter,
    Gauge,
    /// With these upper bounds.
    Histogram(&'static [f64]),
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

impl Metric {
    /// Unit of the values as the name states it; none for plain counts.
    pub fn unit(&self) -> Option<&'static str> {
        let base = self.name.strip_suffix("_total").unwrap_or(self.name);
        if base.ends_with("_per_second") {
            return Some("1/s");
        }
        [("_seconds", "s"), ("_bytes", "bytes")]
            .into_iter()
            .find_map(|(suffix, unit)| base.ends_with(suffix).then_some(unit))
    }

    /// The kind as Prometheus spells it.
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        }
    }
}

/// Upper bounds for latencies from 1 ms to 60 s, seconds.
pub const LATENCY_BUCKETS_S: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0,
    30.0, 60.0,
];

/// Upper bounds for the phases of a step, seconds.
pub const STEP_BUCKETS_S: &[f64] = &[
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
    0.5, 1.0,
];
/// Upper bounds for the parts of a cold start, seconds.
pub const START_BUCKETS_S: &[f64] = &[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0,
];
/// Upper bounds for the tokens of a step.
pub const STEP_TOKEN_BUCKETS: &[f64] =
    &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0];

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, labels, help }
}
const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, labels, help }
}
const fn latency(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Histogram(LATENCY_BUCKETS_S), labels, help }
}

// Gateway: what clients asked for and got.
pub const REQUESTS_TOTAL: Metric =
    counter("foreshock_requests_total", &["model", "route", "code"], "API requests answered, by HTTP status.");
pub const ARRIVALS_TOTAL: Metric = counter(
    "foreshock_arrivals_total",
    &["model"],
    "Generation requests that named a model: demand as the gateway counts it.",
);
pub const REPETITIONS_TOTAL: Metric = counter(
    "foreshock_repetitions_total",
    &["model"],
    "Requests that repeat, within a minute, one that was refused: no new demand, and not in foreshock_arrivals_total.",
);
pub const HELD_REQUESTS: Metric = gauge("foreshock_held_requests", &["model"], "Requests that wait for an instance.");
pub const IN_FLIGHT_REQUESTS: Metric = gauge("foreshock_in_flight_requests", &["model"], "Requests at an instance.");
pub const REJECTED_TOTAL: Metric =
    counter("foreshock_rejected_total", &["model", "reason"], "Requests refused before an instance saw them.");
pub const RESUMED_STREAMS_TOTAL: Metric = counter(
    "foreshock_resumed_streams_total",
    &["model"],
    "Streams that went on at another instance after theirs died.",
);
pub const FAILED_STREAMS_TOTAL: Metric =
    counter("foreshock_failed_streams_total", &["model", "reason"], "Streams that ended with an error event.");
pub const PROMPT_TOKENS_TOTAL: Metric =
    counter("foreshock_prompt_tokens_total", &["model", "tenant"], "Prompt tokens served: metered once per request.");
pub const OUTPUT_TOKENS_TOTAL: Metric =
    counter("foreshock_output_tokens_total", &["model", "tenant"], "Output tokens delivered: metered once per token.");
pub const HOLD_SECONDS: Metric =
    latency("foreshock_hold_seconds", &["model"], "Time a request waited for an instance.");
pub const GATEWAY_OVERHEAD_SECONDS: Metric = latency(
    "foreshock_gateway_overhead_seconds",
    &["model"],
    "Gateway's own time before a request leaves for its instance, holding not counted.",
);

// Service quality, by who measured it.
pub const TTFT_SECONDS: Metric = latency(
    "foreshock_ttft_seconds",
    &["model", "vantage"],
    "Time to first token, as measured by kernel, gateway or engine.",
);
pub const ITL_SECONDS: Metric = latency(
    "foreshock_itl_seconds",
    &["model", "vantage"],
    "Mean inter-token latency of a request, as measured by kernel, gateway or engine.",
);

// Engines.
pub const INSTANCES: Metric =
    gauge("foreshock_instances", &["model", "state"], "Engine instances by state: starting, ready, draining.");
pub const COLD_START_SECONDS: Metric =
    latency("foreshock_cold_start_seconds", &["model"], "From the decision to start an instance to its readiness.");
pub const COLD_START_PHASE_SECONDS: Metric = Metric {
    name: "foreshock_cold_start_phase_seconds",
    kind: Kind::Histogram(START_BUCKETS_S),
    labels: &["model", "phase", "tier"],
    help: "Parts of a cold start: decision, spawn (or adopt, by a spare process), load, ready, first_token. The tier is where the weights were: memory, disk or file.",
};
pub const SPARES: Metric = gauge(
    "foreshock_spares",
    &["state"],
    "Spare engine processes: wanted by the planner, ready to adopt a model, and being made.",
);
pub const SPARES_BYTES: Metric =
    gauge("foreshock_spares_bytes", &[], "Resident memory of the spare engine processes that are ready.");
pub const SPARE_ADOPTIONS_TOTAL: Metric = counter(
    "foreshock_spare_adoptions_total",
    &["outcome"],
    "Starts that a spare process was used for: adopted, or failed, upon which a process was started.",
);
pub const WEIGHTS_SHARED_BYTES: Metric = gauge(
    "foreshock_weights_shared_bytes",
    &["state"],
    "Weights in shared memory: mapped by an engine, or idle, kept for the next start.",
);
pub const WEIGHTS_DISCARDED_BYTES_TOTAL: Metric = counter(
    "foreshock_weights_discarded_bytes_total",
    &[],
    "Weights that left shared memory because no engine used them and room was wanted.",
);
pub const WEIGHTS_TIER_BYTES: Metric = gauge(
    "foreshock_weights_tier_bytes",
    &["tier"],
    "Weights of the registered models by where they are: in memory, or on disk alone. What models share counts for each.",
);
pub const WEIGHTS_EVICTIONS_TOTAL: Metric = counter(
    "foreshock_weights_evictions_total",
    &["reason"],
    "Times that weights left shared memory: planned, pressure (memory ran short), bound (more lay unused than may).",
);
pub const WEIGHTS_PREFETCHES_TOTAL: Metric = counter(
    "foreshock_weights_prefetches_total",
    &["outcome"],
    "Weights read from disk ahead of a start: whole, stopped, failed.",
);
pub const WEIGHTS_PREFETCHED_BYTES_TOTAL: Metric =
    counter("foreshock_weights_prefetched_bytes_total", &[], "Weights read from disk ahead of a start.");
pub const COLD_STARTS_TOTAL: Metric = counter("foreshock_cold_starts_total", &["model"], "Instances started.");
pub const INSTANCE_EXITS_TOTAL: Metric = counter(
    "foreshock_instance_exits_total",
    &["model", "reason"],
    "Engine processes that ended: drained, crashed, killed, oom.",
);
pub const KV_BLOCKS_USED: Metric =
    gauge("foreshock_kv_blocks_used", &["model"], "KV blocks in use, over all instances.");
pub const KV_BLOCKS_TOTAL: Metric =
    gauge("foreshock_kv_blocks", &["model"], "KV blocks there are, over all instances.");
pub const ENGINE_TOKENS_TOTAL: Metric = counter(
    "foreshock_engine_tokens_total",
    &["model", "phase"],
    "Tokens computed by engines, by phase: prefill, decode, encode (embeddings).",
);
pub const PREFIX_CACHE_TOKENS_TOTAL: Metric = counter(
    "foreshock_prefix_cache_tokens_total",
    &["model", "outcome"],
    "Tokens of requests as they joined a batch: found in the prefix cache (hit), or to be computed (miss).",
);
pub const SPEC_TOKENS_TOTAL: Metric = counter(
    "foreshock_spec_tokens_total",
    &["model", "outcome"],
    "Tokens drafted by looking up what a sequence said before: drawn as well (accepted), or not (rejected).",
);
pub const ENGINE_BUSY_SECONDS_TOTAL: Metric =
    counter("foreshock_engine_busy_seconds_total", &["model"], "Time engines spent in forward steps.");
pub const ENGINE_STEP_SECONDS: Metric = Metric {
    name: "foreshock_engine_step_seconds",
    kind: Kind::Histogram(STEP_BUCKETS_S),
    labels: &["model", "phase"],
    help: "Time of a step's phases: schedule, forward, sample, deliver. At the gateway, means over a report's steps.",
};
pub const ENGINE_STEP_TOKENS: Metric = Metric {
    name: "foreshock_engine_step_tokens",
    kind: Kind::Histogram(STEP_TOKEN_BUCKETS),
    labels: &["model"],
    help: "Tokens computed in a step, prefill and decode together. At the gateway, means over a report's steps.",
};
pub const ENGINE_PREEMPTIONS_TOTAL: Metric = counter(
    "foreshock_engine_preemptions_total",
    &["model"],
    "Sequences that gave up their KV blocks for others and were computed again.",
);
pub const ENGINE_RUNNING_SEQUENCES: Metric =
    gauge("foreshock_engine_running_sequences", &["model"], "Sequences in running batches.");
pub const ENGINE_WAITING_SEQUENCES: Metric =
    gauge("foreshock_engine_waiting_sequences", &["model"], "Sequences waiting inside engines.");
pub const ENGINE_THREADS: Metric = gauge(
    "foreshock_engine_threads",
    &["model", "state"],
    "Threads of engines by what they did in the last window, on average: on_cpu, run_queue, blocked, stopped, asleep.",
);
pub const ENGINE_RUN_QUEUE_WAIT_SECONDS: Metric = gauge(
    "foreshock_engine_run_queue_wait_seconds",
    &["model", "quantile"],
    "Waits of engines' threads for a CPU in the last window, each less than twice too long.",
);
pub const ENGINE_MAJOR_FAULTS_TOTAL: Metric =
    counter("foreshock_engine_major_faults_total", &["model"], "Page faults of engines that waited for a disk.");
pub const ENGINE_BLOCK_BYTES_TOTAL: Metric = counter(
    "foreshock_engine_block_bytes_total",
    &["model", "direction"],
    "Bytes that engines themselves read from and wrote to block devices: read, write.",
);
pub const ENGINE_BLOCK_SECONDS: Metric = gauge(
    "foreshock_engine_block_seconds",
    &["model", "quantile"],
    "Times of engines' block I/O in the last window, each less than twice too long.",
);
pub const ENGINE_DISTURBED: Metric = gauge(
    "foreshock_engine_disturbed",
    &["model", "reason"],
    "Instances that did not get what they need, so that capacity is not learned from them: run_queue, throttled, memory.",
);
pub const PRESSURE_RATIO: Metric = gauge(
    "foreshock_pressure_ratio",
    &["resource", "kind"],
    "Share of the last 10 s in which some tasks, or all, waited for cpu, memory or io, over the whole node.",
);

// Kernel.
pub const KERNEL_SYNS_TOTAL: Metric = counter(
    "foreshock_kernel_syns_total",
    &["port_role"],
    "TCP connection attempts (SYN) at watched ports, first attempts.",
);
pub const KERNEL_CONNECTIONS_TOTAL: Metric =
    counter("foreshock_kernel_connections_total", &["port_role"], "TCP connections established at watched ports.");
pub const KERNEL_REQUESTS_TOTAL: Metric =
    counter("foreshock_kernel_requests_total", &["port_role"], "HTTP requests that the kernel saw begin.");
pub const KERNEL_ACCEPT_QUEUE: Metric =
    gauge("foreshock_kernel_accept_queue", &["port_role"], "Connections that wait to be accepted.");
pub const KERNEL_ACCEPT_WAIT_SECONDS: Metric = latency(
    "foreshock_kernel_accept_wait_seconds",
    &["port_role"],
    "Time that connections waited to be accepted, of those that brought a request.",
);
pub const KERNEL_RESETS_TOTAL: Metric = counter(
    "foreshock_kernel_resets_total",
    &["port_role", "sender"],
    "TCP connections of watched ports that were reset, by who did (client or server).",
);
pub const KERNEL_RETRANSMITS_TOTAL: Metric =
    counter("foreshock_kernel_retransmits_total", &["port_role"], "Segments that servers on watched ports sent again.");
pub const KERNEL_PROTOCOL_CONNECTIONS_TOTAL: Metric = counter(
    "foreshock_kernel_protocol_connections_total",
    &["port_role", "protocol"],
    "Connections of watched ports by what the client speaks (http1, http2, tls, other). Requests are counted in http1 alone.",
);
pub const KERNEL_EVENTS_LOST_TOTAL: Metric =
    counter("foreshock_kernel_events_lost_total", &[], "Probe events dropped because the ring buffer was full.");
pub const PROBES_ATTACHED: Metric =
    gauge("foreshock_probes_attached", &["probe"], "1 when a kernel probe is attached, 0 when it is not.");
pub const PROBE_RUNS_TOTAL: Metric = counter("foreshock_probe_runs_total", &["probe"], "Runs of a kernel program.");
pub const PROBE_RUN_SECONDS: Metric = gauge(
    "foreshock_probe_run_seconds",
    &["probe"],
    "Mean time of a kernel program's run in the last window with any.",
);
pub const PROBE_CPU_RATIO: Metric =
    gauge("foreshock_probe_cpu_ratio", &["probe"], "Share of all CPUs' time that a kernel program took.");
pub const PROBE_BUDGET_RATIO: Metric = gauge(
    "foreshock_probe_budget_ratio",
    &[],
    "Share of all CPUs' time that the kernel programs may take before groups of them are turned off.",
);
pub const PROBE_GROUP_ON: Metric = gauge(
    "foreshock_probe_group_on",
    &["group"],
    "0 while a group of kernel programs is off because they cost too much: engine_view, tokens, bodies, counting.",
);
pub const PROBE_MAPS_BYTES: Metric = gauge("foreshock_probe_maps_bytes", &[], "Memory of the kernel programs' maps.");

// Engines as their packets show them.
pub const OUTSIDE_BATCH: Metric =
    gauge("foreshock_outside_batch", &["model"], "Requests that engines work on, by the times of their packets alone.");
pub const OUTSIDE_QUEUE: Metric =
    gauge("foreshock_outside_queue", &["model"], "Requests that wait inside engines, by the same.");
pub const OUTSIDE_LOAD_REQUESTS_PER_SECOND: Metric =
    gauge("foreshock_outside_load_requests_per_second", &["model"], "Requests that arrive at engines.");
pub const OUTSIDE_KNEE_REQUESTS_PER_SECOND: Metric = gauge(
    "foreshock_outside_knee_requests_per_second",
    &["model"],
    "Load at which the latency objective is expected to break; no series until enough streams were seen.",
);
pub const OUTSIDE_HEADROOM_RATIO: Metric =
    gauge("foreshock_outside_headroom_ratio", &["model"], "Share of that load which is still free; below 0 beyond it.");

// GPUs, as the driver's management library and the cards' own counters tell. `gpu` is an index, or index:instance under MIG.
pub const GPU_UP: Metric =
    gauge("foreshock_gpu_up", &["gpu"], "1 when a GPU was read a moment ago, 0 when it is lost or its driver hangs.");
pub const GPU_INFO: Metric = gauge("foreshock_gpu_info", &["gpu", "uuid", "name"], "1, with a GPU's name.");
pub const GPU_BUSY_RATIO: Metric =
    gauge("foreshock_gpu_busy_ratio", &["gpu"], "Share of the time in which a GPU ran anything.");
pub const GPU_COUNTER_RATIO: Metric = gauge(
    "foreshock_gpu_counter_ratio",
    &["gpu", "unit"],
    "The card's own counters, from Hopper on: sm, occupancy, tensor, memory_bandwidth.",
);
pub const GPU_MEMORY_USED_BYTES: Metric = gauge("foreshock_gpu_memory_used_bytes", &["gpu"], "GPU memory in use.");
pub const GPU_MEMORY_BYTES: Metric = gauge("foreshock_gpu_memory_bytes", &["gpu"], "GPU memory there is.");
pub const GPU_MODEL_MEMORY_BYTES: Metric =
    gauge("foreshock_gpu_model_memory_bytes", &["gpu", "model"], "GPU memory of a model's engine processes.");
pub const GPU_PCIE_BYTES_PER_SECOND: Metric =
    gauge("foreshock_gpu_pcie_bytes_per_second", &["gpu", "direction"], "PCIe traffic sent and received by a GPU.");
pub const GPU_POWER_WATTS: Metric = gauge("foreshock_gpu_power_watts", &["gpu"], "Power that a GPU draws.");
pub const GPU_TEMPERATURE_CELSIUS: Metric =
    gauge("foreshock_gpu_temperature_celsius", &["gpu"], "Temperature of a GPU.");
pub const GPU_CLOCK_HERTZ: Metric =
    gauge("foreshock_gpu_clock_hertz", &["gpu", "clock"], "Clocks of a GPU: sm, memory.");
pub const GPU_THROTTLED: Metric =
    gauge("foreshock_gpu_throttled", &["gpu", "reason"], "1 while a GPU's clocks are held down for this reason.");
pub const GPU_ECC_ERRORS_TOTAL: Metric = counter(
    "foreshock_gpu_ecc_errors_total",
    &["gpu", "kind"],
    "Memory errors of a GPU since its driver was loaded: corrected, uncorrected.",
);
pub const GPU_XID_ERRORS_TOTAL: Metric =
    counter("foreshock_gpu_xid_errors_total", &["gpu"], "Critical errors (Xid) of a GPU since watching began.");

pub const CUDA_CALLS_PER_SECOND: Metric = gauge(
    "foreshock_cuda_calls_per_second",
    &["model", "call"],
    "CUDA calls of a model's engines in the last window: launch, graph_launch, copy, allocate, free, context.",
);
pub const CUDA_BYTES_PER_SECOND: Metric = gauge(
    "foreshock_cuda_bytes_per_second",
    &["model", "call"],
    "Bytes copied to the device and allocated by a model's engines in the last window.",
);

// Controller.
pub const TICKS_TOTAL: Metric = counter("foreshock_ticks_total", &[], "Controller ticks.");
pub const TICK_SECONDS: Metric = latency("foreshock_tick_seconds", &[], "Time one tick took.");
pub const DECISIONS_TOTAL: Metric = counter("foreshock_decisions_total", &["model", "reason"], "Decisions by reason.");
pub const ACTIONS_TOTAL: Metric = counter("foreshock_actions_total", &["model", "kind", "outcome"], "Actions applied.");
pub const FORECAST_REQUESTS_PER_SECOND: Metric = gauge(
    "foreshock_forecast_requests_per_second",
    &["model", "quantile"],
    "Forecast arrival rate at the cold-start horizon.",
);
pub const FORECAST_COVERAGE_RATIO: Metric = gauge(
    "foreshock_forecast_coverage_ratio",
    &["model"],
    "Share of outcomes at or below the 0.9 quantile that had been planned for; the last 200 or so.",
);
pub const FORECAST_REGRET_RATIO: Metric = gauge(
    "foreshock_forecast_regret_ratio",
    &["model"],
    "Loss of the learned 0.9 quantile above that of the expert that did best in hindsight, as a share of it.",
);
pub const DEVICE_SECONDS_TOTAL: Metric = counter(
    "foreshock_device_seconds_total",
    &["model"],
    "Time that devices were held by instances, working or idle: what a model costs.",
);
pub const ACTUAL_REQUESTS_PER_SECOND: Metric =
    gauge("foreshock_actual_requests_per_second", &["model"], "Arrival rate observed over the last ticks.");
pub const WANTED_INSTANCES: Metric = gauge("foreshock_wanted_instances", &["model"], "Instances the plan wants.");
pub const MEMORY_BUDGET_BYTES: Metric =
    gauge("foreshock_memory_budget_bytes", &[], "Memory that instances may use in all.");
pub const MEMORY_PLACED_BYTES: Metric = gauge("foreshock_memory_placed_bytes", &[], "Memory given to instances.");
pub const BUILD_INFO: Metric = gauge("foreshock_build_info", &["version"], "1, with the version.");

/// All of them, in the order of this file: what the documentation lists and the tests walk.
pub const METRICS: &[Metric] = &[
    REQUESTS_TOTAL,
    ARRIVALS_TOTAL,
    REPETITIONS_TOTAL,
    HELD_REQUESTS,
    IN_FLIGHT_REQUESTS,
    REJECTED_TOTAL,
    RESUMED_STREAMS_TOTAL,
    FAILED_STREAMS_TOTAL,
    PROMPT_TOKENS_TOTAL,
    OUTPUT_TOKENS_TOTAL,
    HOLD_SECONDS,
    GATEWAY_OVERHEAD_SECONDS,
    TTFT_SECONDS,
    ITL_SECONDS,
    INSTANCES,
    COLD_START_SECONDS,
    COLD_START_PHASE_SECONDS,
    COLD_STARTS_TOTAL,
    SPARES,
    SPARES_BYTES,
    SPARE_ADOPTIONS_TOTAL,
    WEIGHTS_SHARED_BYTES,
    WEIGHTS_DISCARDED_BYTES_TOTAL,
    WEIGHTS_TIER_BYTES,
    WEIGHTS_EVICTIONS_TOTAL,
    WEIGHTS_PREFETCHES_TOTAL,
    WEIGHTS_PREFETCHED_BYTES_TOTAL,
    INSTANCE_EXITS_TOTAL,
    KV_BLOCKS_USED,
    KV_BLOCKS_TOTAL,
    ENGINE_TOKENS_TOTAL,
    PREFIX_CACHE_TOKENS_TOTAL,
    SPEC_TOKENS_TOTAL,
    ENGINE_BUSY_SECONDS_TOTAL,
    ENGINE_STEP_SECONDS,
    ENGINE_STEP_TOKENS,
    ENGINE_PREEMPTIONS_TOTAL,
    ENGINE_RUNNING_SEQUENCES,
    ENGINE_WAITING_SEQUENCES,
    ENGINE_THREADS,
    ENGINE_RUN_QUEUE_WAIT_SECONDS,
    ENGINE_MAJOR_FAULTS_TOTAL,
    ENGINE_BLOCK_BYTES_TOTAL,
    ENGINE_BLOCK_SECONDS,
    ENGINE_DISTURBED,
    PRESSURE_RATIO,
    KERNEL_SYNS_TOTAL,
    KERNEL_CONNECTIONS_TOTAL,
    KERNEL_REQUESTS_TOTAL,
    KERNEL_ACCEPT_QUEUE,
    KERNEL_ACCEPT_WAIT_SECONDS,
    KERNEL_RESETS_TOTAL,
    KERNEL_RETRANSMITS_TOTAL,
    KERNEL_PROTOCOL_CONNECTIONS_TOTAL,
    KERNEL_EVENTS_LOST_TOTAL,
    PROBES_ATTACHED,
    PROBE_RUNS_TOTAL,
    PROBE_RUN_SECONDS,
    PROBE_CPU_RATIO,
    PROBE_BUDGET_RATIO,
    PROBE_GROUP_ON,
    PROBE_MAPS_BYTES,
    OUTSIDE_BATCH,
    OUTSIDE_QUEUE,
    OUTSIDE_LOAD_REQUESTS_PER_SECOND,
    OUTSIDE_KNEE_REQUESTS_PER_SECOND,
    OUTSIDE_HEADROOM_RATIO,
    GPU_UP,
    GPU_INFO,
    GPU_BUSY_RATIO,
    GPU_COUNTER_RATIO,
    GPU_MEMORY_USED_BYTES,
    GPU_MEMORY_BYTES,
    GPU_MODEL_MEMORY_BYTES,
    GPU_PCIE_BYTES_PER_SECOND,
    GPU_POWER_WATTS,
    GPU_TEMPERATURE_CELSIUS,
    GPU_CLOCK_HERTZ,
    GPU_THROTTLED,
    GPU_ECC_ERRORS_TOTAL,
    GPU_XID_ERRORS_TOTAL,
    CUDA_CALLS_PER_SECOND,
    CUDA_BYTES_PER_SECOND,
    TICKS_TOTAL,
    TICK_SECONDS,
    DECISIONS_TOTAL,
    ACTIONS_TOTAL,
    FORECAST_REQUESTS_PER_SECOND,
    FORECAST_COVERAGE_RATIO,
    FORECAST_REGRET_RATIO,
    DEVICE_SECONDS_TOTAL,
    ACTUAL_REQUESTS_PER_SECOND,
    WANTED_INSTANCES,
    MEMORY_BUDGET_BYTES,
    MEMORY_PLACED_BYTES,
    BUILD_INFO,
];
