//! The dashboard's panels. `$model` is the reader's choice of models and `$__rate_interval` Grafana's
//! window. Counters of rare events end in `or vector(0)`, because their series does not exist before the
//! first event and zero is the truth then.

mod engine_view;
mod gpu;
mod instances;
mod outside;

/// A titled group of panels.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub title: &'static str,
    pub panels: &'static [Panel],
}

/// One time series panel.
#[derive(Clone, Copy, Debug)]
pub struct Panel {
    pub title: &'static str,
    /// What a reader learns from it.
    pub description: &'static str,
    pub unit: Unit,
    pub queries: &'static [Query],
}

/// One expression and the name of its series.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    pub expression: &'static str,
    pub legend: &'static str,
}

/// Unit of a panel's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Count,
    PerSecond,
    Seconds,
    Bytes,
    /// From 0 to 1.
    Share,
}

impl Unit {
    /// Grafana's name for it.
    pub fn grafana(self) -> &'static str {
        match self {
            Unit::Count => "short",
            Unit::PerSecond => "cps",
            Unit::Seconds => "s",
            Unit::Bytes => "bytes",
            Unit::Share => "percentunit",
        }
    }
}

const fn query(expression: &'static str, legend: &'static str) -> Query {
    Query { expression, legend }
}

/// The dashboard from top to bottom.
pub const ROWS: &[Row] = &[
    Row { title: "Demand and service", panels: DEMAND },
    Row { title: "Latency, by who measured it", panels: LATENCY },
    Row { title: "Instances", panels: instances::INSTANCES },
    Row { title: "Engines", panels: ENGINES },
    Row { title: "Forecast and decisions", panels: DECISIONS },
    Row { title: "The kernel as witness", panels: KERNEL },
    Row { title: "Engines as the kernel serves them", panels: engine_view::ENGINES },
    Row { title: "What the probes cost", panels: engine_view::PROBES },
    Row { title: "Engines from outside", panels: outside::PANELS },
    Row { title: "GPUs", panels: gpu::PANELS },
];

const DEMAND: &[Panel] = &[
    Panel {
        title: "Demand against served",
        description: "Requests that the kernel and the gateway saw arrive, and those answered with 200. A gap is unmet demand.",
        unit: Unit::PerSecond,
        queries: &[
            query(
                "sum(rate(foreshock_kernel_requests_total{port_role=\"gateway\"}[$__rate_interval]))",
                "kernel: all requests",
            ),
            query(
                "sum by (model) (rate(foreshock_arrivals_total{model=~\"$model\"}[$__rate_interval]))",
                "arrived: {{model}}",
            ),
            query(
                "sum by (model) (rate(foreshock_repetitions_total{model=~\"$model\"}[$__rate_interval]))",
                "asked again after a refusal: {{model}}",
            ),
            query(
                "sum by (model) (rate(foreshock_requests_total{model=~\"$model\",code=\"200\"}[$__rate_interval]))",
                "served: {{model}}",
            ),
        ],
    },
    Panel {
        title: "Held and in flight",
        description: "Requests that wait for an instance, and requests at one.",
        unit: Unit::Count,
        queries: &[
            query("sum by (model) (foreshock_held_requests{model=~\"$model\"})", "held: {{model}}"),
            query("sum by (model) (foreshock_in_flight_requests{model=~\"$model\"})", "in flight: {{model}}"),
        ],
    },
    Panel {
        title: "Tokens",
        description: "Prompt and output tokens metered for clients.",
        unit: Unit::PerSecond,
        queries: &[
            query(
                "sum by (model) (rate(foreshock_prompt_tokens_total{model=~\"$model\"}[$__rate_interval]))",
                "prompt: {{model}}",
            ),
            query(
                "sum by (model) (rate(foreshock_output_tokens_total{model=~\"$model\"}[$__rate_interval]))",
                "output: {{model}}",
            ),
        ],
    },
    Panel {
        title: "Answers by status",
        description: "HTTP answers by status code.",
        unit: Unit::PerSecond,
        queries: &[query("sum by (code) (rate(foreshock_requests_total[$__rate_interval]))", "{{code}}")],
    },
    Panel {
        title: "Refused, resumed, failed",
        description: "Requests refused before an instance saw them; streams that went on elsewhere; streams that ended with an error.",
        unit: Unit::PerSecond,
        queries: &[
            query(
                "sum by (model, reason) (rate(foreshock_rejected_total{model=~\"$model\"}[$__rate_interval])) or vector(0)",
                "refused: {{model}} {{reason}}",
            ),
            query(
                "sum by (model) (rate(foreshock_resumed_streams_total{model=~\"$model\"}[$__rate_interval])) or vector(0)",
                "resumed: {{model}}",
            ),
            query(
                "sum by (model, reason) (rate(foreshock_failed_streams_total{model=~\"$model\"}[$__rate_interval])) or vector(0)",
                "failed: {{model}} {{reason}}",
            ),
        ],
    },
];

const LATENCY: &[Panel] = &[
    Panel {
        title: "Time to first token",
        description: "Median and p99 as the kernel, the gateway and the engine measured it. Kernel and engine measure at the instance, the gateway at its own edge: the gap is holding and hop.",
        unit: Unit::Seconds,
        queries: &[
            query(
                "histogram_quantile(0.5, sum by (le, vantage) (rate(foreshock_ttft_seconds_bucket{model=~\"$model\"}[$__rate_interval])))",
                "p50 {{vantage}}",
            ),
            query(
                "histogram_quantile(0.99, sum by (le, vantage) (rate(foreshock_ttft_seconds_bucket{model=~\"$model\"}[$__rate_interval])))",
                "p99 {{vantage}}",
            ),
        ],
    },
    Panel {
        title: "Inter-token latency",
        description: "Median and p99 of the requests' mean inter-token latency, by who measured it.",
        unit: Unit::Seconds,
        queries: &[
            query(
                "histogram_quantile(0.5, sum by (le, vantage) (rate(foreshock_itl_seconds_bucket{model=~\"$model\"}[$__rate_interval])))",
                "p50 {{vantage}}",
            ),
            query(
                "histogram_quantile(0.99, sum by (le, vantage) (rate(foreshock_itl_seconds_bucket{model=~\"$model\"}[$__rate_interval])))",
                "p99 {{vantage}}",
            ),
        ],
    },
    Panel {
        title: "Hold time and gateway overhead",
        description: "p99 of the wait for an instance, and of the gateway's own time per request.",
        unit: Unit::Seconds,
        queries: &[
            query(
                "histogram_quantile(0.99, sum by (le, model) (rate(foreshock_hold_seconds_bucket{model=~\"$model\"}[$__rate_interval])))",
                "held: {{model}}",
            ),
            query(
                "histogram_quantile(0.99, sum by (le, model) (rate(foreshock_gateway_overhead_seconds_bucket{model=~\"$model\"}[$__rate_interval])))",
                "gateway: {{model}}",
            ),
        ],
    },
];

const ENGINES: &[Panel] = &[
    Panel {
        title: "KV cache use",
        description: "Share of KV blocks in use; 0 where there is no instance.",
        unit: Unit::Share,
        queries: &[query(
            "sum by (model) (foreshock_kv_blocks_used{model=~\"$model\"}) / clamp_min(sum by (model) (foreshock_kv_blocks{model=~\"$model\"}), 1)",
            "{{model}}",
        )],
    },
    Panel {
        title: "Prefix cache",
        description: "Share of the tokens of joining requests whose keys and values were in the prefix cache already.",
        unit: Unit::Share,
        queries: &[query(
            "sum by (model) (rate(foreshock_prefix_cache_tokens_total{model=~\"$model\",outcome=\"hit\"}[$__rate_interval])) / clamp_min(sum by (model) (rate(foreshock_prefix_cache_tokens_total{model=~\"$model\"}[$__rate_interval])), 0.001)",
            "{{model}}",
        )],
    },
    Panel {
        title: "Speculation",
        description: "Drafted tokens per second. None are drafted where it would not pay; rejected ones cost time and change nothing.",
        unit: Unit::PerSecond,
        queries: &[query(
            "sum by (model, outcome) (rate(foreshock_spec_tokens_total{model=~\"$model\"}[$__rate_interval]))",
            "{{model}} {{outcome}}",
        )],
    },
    Panel {
        title: "Sequences",
        description: "Sequences in the running batches, and those that wait inside engines for a slot or for KV blocks.",
        unit: Unit::Count,
        queries: &[
            query("sum by (model) (foreshock_engine_running_sequences{model=~\"$model\"})", "running: {{model}}"),
            query("sum by (model) (foreshock_engine_waiting_sequences{model=~\"$model\"})", "waiting: {{model}}"),
        ],
    },
    Panel {
        title: "Engine work",
        description: "Tokens computed in prefill and decode, and seconds spent in forward steps per second.",
        unit: Unit::PerSecond,
        queries: &[
            query(
                "sum by (model, phase) (rate(foreshock_engine_tokens_total{model=~\"$model\"}[$__rate_interval]))",
                "{{model}} {{phase}}",
            ),
            query(
                "sum by (model) (rate(foreshock_engine_busy_seconds_total{model=~\"$model\"}[$__rate_interval])) or vector(0)",
                "{{model}} busy s/s",
            ),
        ],
    },
    Panel {
        title: "Step phases",
        description: "Mean time of a step's phases. Only forward is arithmetic: the rest should stay far below it.",
        unit: Unit::Seconds,
        queries: &[query(
            "sum by (model, phase) (rate(foreshock_engine_step_seconds_sum{model=~\"$model\"}[$__rate_interval])) / clamp_min(sum by (model, phase) (rate(foreshock_engine_step_seconds_count{model=~\"$model\"}[$__rate_interval])), 0.001)",
            "{{model}} {{phase}}",
        )],
    },
    Panel {
        title: "Tokens per step",
        description: "Mean tokens of a step, and sequences that were preempted per second.",
        unit: Unit::Count,
        queries: &[
            query(
                "sum by (model) (rate(foreshock_engine_step_tokens_sum{model=~\"$model\"}[$__rate_interval])) / clamp_min(sum by (model) (rate(foreshock_engine_step_tokens_count{model=~\"$model\"}[$__rate_interval])), 0.001)",
                "{{model}}",
            ),
            query(
                "sum by (model) (rate(foreshock_engine_preemptions_total{model=~\"$model\"}[$__rate_interval]))",
                "preempted/s: {{model}}",
            ),
        ],
    },
];

const DECISIONS: &[Panel] = &[
    Panel {
        title: "Forecast against actual",
        description: "Arrival rate forecast at the cold-start horizon (10%, 50% and 90% quantile), and the rate that came.",
        unit: Unit::PerSecond,
        queries: &[
            query(
                "sum by (model, quantile) (foreshock_forecast_requests_per_second{model=~\"$model\"})",
                "forecast {{quantile}}: {{model}}",
            ),
            query("sum by (model) (foreshock_actual_requests_per_second{model=~\"$model\"})", "actual: {{model}}"),
        ],
    },
    Panel {
        title: "Forecast: coverage and regret",
        description: "Share of outcomes at or below the 90% quantile that was planned for (0.9 is right; the plan takes the higher of two forecasts, so it may be above), and the loss beside the best expert's.",
        unit: Unit::Share,
        queries: &[
            query("max by (model) (foreshock_forecast_coverage_ratio{model=~\"$model\"})", "coverage: {{model}}"),
            query("max by (model) (foreshock_forecast_regret_ratio{model=~\"$model\"})", "regret: {{model}}"),
        ],
    },
    Panel {
        title: "Devices held",
        description: "Devices that a model's instances hold, on average: device-seconds per second, what it costs.",
        unit: Unit::Count,
        queries: &[query(
            "sum by (model) (rate(foreshock_device_seconds_total{model=~\"$model\"}[$__rate_interval]))",
            "{{model}}",
        )],
    },
    Panel {
        title: "Decisions",
        description: "Decisions by reason, and the actions taken, per second. `foreshock explain MODEL` tells each one's story.",
        unit: Unit::PerSecond,
        queries: &[
            query(
                "sum by (reason) (rate(foreshock_decisions_total{model=~\"$model\"}[$__rate_interval]))",
                "{{reason}}",
            ),
            query(
                "sum by (kind, outcome) (rate(foreshock_actions_total{model=~\"$model\"}[$__rate_interval]))",
                "{{kind}}: {{outcome}}",
            ),
        ],
    },
    Panel {
        title: "Controller",
        description: "Ticks per second, and the p99 of one tick's time in seconds.",
        unit: Unit::Count,
        queries: &[
            query("sum(rate(foreshock_ticks_total[$__rate_interval]))", "ticks per s"),
            query(
                "histogram_quantile(0.99, sum by (le) (rate(foreshock_tick_seconds_bucket[$__rate_interval])))",
                "p99 tick, s",
            ),
            query("sum by (version) (foreshock_build_info)", "version {{version}}"),
        ],
    },
];

const KERNEL: &[Panel] = &[
    Panel {
        title: "Connections",
        description: "Connection attempts and connections established at watched ports. Attempts without connections mean a full backlog.",
        unit: Unit::PerSecond,
        queries: &[
            query("sum by (port_role) (rate(foreshock_kernel_syns_total[$__rate_interval]))", "SYN: {{port_role}}"),
            query(
                "sum by (port_role) (rate(foreshock_kernel_connections_total[$__rate_interval]))",
                "established: {{port_role}}",
            ),
        ],
    },
    Panel {
        title: "Accept queue",
        description: "Connections that the kernel has and user space has not accepted: saturation that user space cannot see.",
        unit: Unit::Count,
        queries: &[query("max by (port_role) (foreshock_kernel_accept_queue)", "{{port_role}}")],
    },
    Panel {
        title: "Wait to be accepted",
        description: "How long connections that brought a request waited in the accept queue, at most.",
        unit: Unit::Seconds,
        queries: &[query(
            "histogram_quantile(0.99, sum by (le, port_role) (rate(foreshock_kernel_accept_wait_seconds_bucket[$__rate_interval])))",
            "p99: {{port_role}}",
        )],
    },
    Panel {
        title: "Faults of connections",
        description: "Resets by who sent them, and segments that servers sent again.",
        unit: Unit::PerSecond,
        queries: &[
            query(
                "sum by (port_role, sender) (rate(foreshock_kernel_resets_total[$__rate_interval]))",
                "reset by {{sender}}: {{port_role}}",
            ),
            query(
                "sum by (port_role) (rate(foreshock_kernel_retransmits_total[$__rate_interval]))",
                "sent again: {{port_role}}",
            ),
        ],
    },
    Panel {
        title: "Protocols",
        description: "New connections by what their client speaks. In HTTP/2 and TLS no requests are counted, only bytes.",
        unit: Unit::PerSecond,
        queries: &[query(
            "sum by (port_role, protocol) (rate(foreshock_kernel_protocol_connections_total[$__rate_interval]))",
            "{{protocol}}: {{port_role}}",
        )],
    },
    Panel {
        title: "Probes",
        description: "Whether each probe is attached, and events lost to a full ring buffer.",
        unit: Unit::Count,
        queries: &[
            query("min by (probe) (foreshock_probes_attached)", "{{probe}}"),
            query("increase(foreshock_kernel_events_lost_total[10m]) or vector(0)", "events lost in 10 min"),
        ],
    },
];
