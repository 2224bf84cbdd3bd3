//! Instances, their starts, and the memory that they and their weights take.

use super::{Panel, Unit, query};

pub(super) const INSTANCES: &[Panel] = &[
    Panel {
        title: "Instances",
        description: "Instances by state, and how many the plan wants.",
        unit: Unit::Count,
        queries: &[
            query("sum by (model, state) (foreshock_instances{model=~\"$model\"})", "{{model}} {{state}}"),
            query("sum by (model) (foreshock_wanted_instances{model=~\"$model\"})", "{{model}} wanted"),
        ],
    },
    Panel {
        title: "Cold starts and exits",
        description: "Starts and ends of instances within ten minutes, ends by reason.",
        unit: Unit::Count,
        queries: &[
            query(
                "sum by (model) (increase(foreshock_cold_starts_total{model=~\"$model\"}[10m]))",
                "started: {{model}}",
            ),
            query(
                "sum by (model, reason) (increase(foreshock_instance_exits_total{model=~\"$model\"}[10m])) or vector(0)",
                "ended: {{model}} {{reason}}",
            ),
        ],
    },
    Panel {
        title: "Cold-start time",
        description: "From the decision to start to readiness, over all starts since Foreshock began.",
        unit: Unit::Seconds,
        queries: &[
            query(
                "histogram_quantile(0.5, sum by (le, model) (foreshock_cold_start_seconds_bucket{model=~\"$model\"}))",
                "p50 {{model}}",
            ),
            query(
                "histogram_quantile(0.9, sum by (le, model) (foreshock_cold_start_seconds_bucket{model=~\"$model\"}))",
                "p90 {{model}}",
            ),
        ],
    },
    Panel {
        title: "Cold starts by phase",
        description: "Mean time of each phase: decision, process, weights, readiness, first token. By where the weights were: memory, disk or file.",
        unit: Unit::Seconds,
        queries: &[query(
            "sum by (tier, phase) (foreshock_cold_start_phase_seconds_sum{model=~\"$model\"}) \
             / sum by (tier, phase) (foreshock_cold_start_phase_seconds_count{model=~\"$model\"})",
            "{{tier}}: {{phase}}",
        )],
    },
    Panel {
        title: "Cold starts by tier",
        description: "Starts within ten minutes by where the weights were.",
        unit: Unit::Count,
        queries: &[query(
            "sum by (tier) (increase(foreshock_cold_start_phase_seconds_count{phase=\"load\",model=~\"$model\"}[10m]))",
            "{{tier}}",
        )],
    },
    Panel {
        title: "Weights in shared memory",
        description: "Mapped by engines, or kept for the next start; and what was discarded because room was wanted.",
        unit: Unit::Bytes,
        queries: &[
            query("sum by (state) (foreshock_weights_shared_bytes)", "{{state}}"),
            query("sum(foreshock_weights_discarded_bytes_total) or vector(0)", "discarded in all"),
        ],
    },
    Panel {
        title: "Weights by tier",
        description: "Weights of the registered models in memory, and on disk alone; and what was read ahead of starts.",
        unit: Unit::Bytes,
        queries: &[
            query("sum by (tier) (foreshock_weights_tier_bytes)", "{{tier}}"),
            query("sum(foreshock_weights_prefetched_bytes_total) or vector(0)", "read ahead in all"),
        ],
    },
    Panel {
        title: "Moves of weights",
        description: "Within ten minutes: weights read ahead of a start, and weights that left memory.",
        unit: Unit::Count,
        queries: &[
            query(
                "sum by (outcome) (increase(foreshock_weights_prefetches_total[10m])) or vector(0)",
                "read ahead: {{outcome}}",
            ),
            query(
                "sum by (reason) (increase(foreshock_weights_evictions_total[10m])) or vector(0)",
                "left: {{reason}}",
            ),
        ],
    },
    Panel {
        title: "Memory",
        description: "Memory given to instances, and what may be given in all.",
        unit: Unit::Bytes,
        queries: &[query("foreshock_memory_placed_bytes", "placed"), query("foreshock_memory_budget_bytes", "budget")],
    },
    Panel {
        title: "Spare processes",
        description: "Engine processes that wait for a model, and starts within ten minutes that one was used for.",
        unit: Unit::Count,
        queries: &[
            query("sum by (state) (foreshock_spares)", "{{state}}"),
            query("sum by (outcome) (increase(foreshock_spare_adoptions_total[10m])) or vector(0)", "{{outcome}}"),
        ],
    },
    Panel {
        title: "Memory of spare processes",
        description: "Resident memory of those that are ready.",
        unit: Unit::Bytes,
        queries: &[query("sum(foreshock_spares_bytes)", "resident")],
    },
];
