//! Panels of engines as the kernel serves them, and of what watching costs.

use super::{Panel, Unit, query};

pub const ENGINES: &[Panel] = &[
    Panel {
        title: "Threads of engines",
        description: "What engines' threads did, on average. A run queue beside on_cpu: they want more CPUs than they get.",
        unit: Unit::Count,
        queries: &[query(
            "sum by (model, state) (foreshock_engine_threads{model=~\"$model\",state!=\"asleep\"})",
            "{{state}}: {{model}}",
        )],
    },
    Panel {
        title: "Waits for a CPU and for disks",
        description: "Each wait of an engine's thread for a CPU, and each block I/O, in the last window.",
        unit: Unit::Seconds,
        queries: &[
            query(
                "max by (model, quantile) (foreshock_engine_run_queue_wait_seconds{model=~\"$model\"})",
                "CPU, {{quantile}}: {{model}}",
            ),
            query(
                "max by (model, quantile) (foreshock_engine_block_seconds{model=~\"$model\"})",
                "block I/O, {{quantile}}: {{model}}",
            ),
        ],
    },
    Panel {
        title: "Block I/O of engines",
        description: "Bytes that engines read and wrote: checkpoints as they load.",
        unit: Unit::Bytes,
        queries: &[query(
            "sum by (model, direction) (rate(foreshock_engine_block_bytes_total{model=~\"$model\"}[$__rate_interval]))",
            "{{direction}}/s: {{model}}",
        )],
    },
    Panel {
        title: "Disturbed engines and major faults",
        description: "Instances that did not get what they need, by reason, and page faults that waited for a disk, 1/s.",
        unit: Unit::Count,
        queries: &[
            query(
                "sum by (model, reason) (foreshock_engine_disturbed{model=~\"$model\"})",
                "disturbed by {{reason}}: {{model}}",
            ),
            query(
                "sum by (model) (rate(foreshock_engine_major_faults_total{model=~\"$model\"}[$__rate_interval]))",
                "major faults: {{model}}",
            ),
        ],
    },
    Panel {
        title: "Pressure on the node",
        description: "Share of the last 10 s in which some tasks, or all, waited for a resource.",
        unit: Unit::Share,
        queries: &[query("max by (resource, kind) (foreshock_pressure_ratio)", "{{resource}}, {{kind}}")],
    },
];

pub const PROBES: &[Panel] = &[
    Panel {
        title: "CPU share of the probes",
        description: "Of all CPUs, beside the budget above which groups of probes are turned off.",
        unit: Unit::Share,
        queries: &[
            query("sum by (probe) (foreshock_probe_cpu_ratio)", "{{probe}}"),
            query("max(foreshock_probe_budget_ratio)", "budget"),
        ],
    },
    Panel {
        title: "Time of a probe's run",
        description: "Mean in the last window.",
        unit: Unit::Seconds,
        queries: &[query("max by (probe) (foreshock_probe_run_seconds)", "{{probe}}")],
    },
    Panel {
        title: "Runs of the probes",
        description: "How often each kernel program runs.",
        unit: Unit::PerSecond,
        queries: &[query("sum by (probe) (rate(foreshock_probe_runs_total[$__rate_interval]))", "{{probe}}")],
    },
    Panel {
        title: "Groups of probes",
        description: "0 while a group is off because the probes cost too much.",
        unit: Unit::Count,
        queries: &[query("min by (group) (foreshock_probe_group_on)", "{{group}}")],
    },
    Panel {
        title: "Memory of the probes' maps",
        description: "In the kernel.",
        unit: Unit::Bytes,
        queries: &[query("sum(foreshock_probe_maps_bytes)", "maps")],
    },
];
