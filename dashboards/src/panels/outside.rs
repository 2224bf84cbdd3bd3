//! Panels of what packets alone say of engines.

use super::{Panel, Unit, query};

pub const PANELS: &[Panel] = &[
    Panel {
        title: "Batch and queue",
        description: "Requests that engines work on and that wait inside them, by the times of their packets alone.",
        unit: Unit::Count,
        queries: &[
            query("sum by (model) (foreshock_outside_batch{model=~\"$model\"})", "batch: {{model}}"),
            query("sum by (model) (foreshock_outside_queue{model=~\"$model\"})", "queue: {{model}}"),
        ],
    },
    Panel {
        title: "Load and knee",
        description: "Requests that arrive, and the load at which the latency objective will break; 0 until it is known.",
        unit: Unit::PerSecond,
        queries: &[
            query("sum by (model) (foreshock_outside_load_requests_per_second{model=~\"$model\"})", "load: {{model}}"),
            query(
                "sum by (model) (foreshock_outside_knee_requests_per_second{model=~\"$model\"}) or vector(0)",
                "knee: {{model}}",
            ),
        ],
    },
    Panel {
        title: "Headroom",
        description: "Share of the knee that is still free.",
        unit: Unit::Share,
        queries: &[query(
            "min by (model) (foreshock_outside_headroom_ratio{model=~\"$model\"}) or vector(0)",
            "{{model}}",
        )],
    },
];
