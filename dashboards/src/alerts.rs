//! dashboards/alerts.yaml: what somebody should be told, each with its reason and its first step.

use std::fmt::Write;

/// One alerting rule.
#[derive(Clone, Copy, Debug)]
pub struct Alert {
    pub name: &'static str,
    pub expression: &'static str,
    /// How long it must hold, in Prometheus' notation.
    pub lasting: &'static str,
    pub severity: Severity,
    /// What is wrong; may use `{{ $labels.model }}` and `{{ $value }}`.
    pub summary: &'static str,
    /// What to look at first.
    pub action: &'static str,
}

/// How urgent it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Clients are failing now.
    Critical,
    /// Service is worse than it should be, or will be.
    Warning,
}

/// All rules.
pub const ALERTS: &[Alert] = &[
    Alert {
        name: "ForeshockDown",
        expression: "absent(foreshock_build_info)",
        lasting: "1m",
        severity: Severity::Critical,
        summary: "No Foreshock is being scraped.",
        action: "Is `foreshock serve` running? Engines finish their streams and exit when their lease ends.",
    },
    Alert {
        name: "ForeshockControllerStalled",
        expression: "rate(foreshock_ticks_total[2m]) == 0",
        lasting: "1m",
        severity: Severity::Critical,
        summary: "The controller has stopped deciding: nothing scales any more.",
        action: "Read the log of `foreshock serve`; a restart adopts the running engines.",
    },
    Alert {
        name: "ForeshockHeldWithoutInstance",
        expression: "sum by (model) (foreshock_held_requests) > 0 unless on (model) \
                     sum by (model) (foreshock_instances{state=~\"starting|ready\"}) > 0",
        lasting: "30s",
        severity: Severity::Critical,
        summary: "{{ $labels.model }}: {{ $value }} requests wait and no instance is up or starting.",
        action: "Run `foreshock explain {{ $labels.model }}`: it says what was decided and why (often NoRoom).",
    },
    Alert {
        name: "ForeshockHeldTooLong",
        expression: "histogram_quantile(0.99, sum by (le, model) (rate(foreshock_hold_seconds_bucket[5m]))) > 15",
        lasting: "2m",
        severity: Severity::Warning,
        summary: "{{ $labels.model }}: requests wait {{ $value | humanizeDuration }} for an instance (p99).",
        action: "Compare cold starts and the forecast on the dashboard: warming comes too late or starts are slow.",
    },
    Alert {
        name: "ForeshockRequestsRejected",
        expression: "sum by (model) (increase(foreshock_rejected_total{reason=\"queue_full\"}[5m])) > 0",
        lasting: "0m",
        severity: Severity::Warning,
        summary: "{{ $labels.model }}: clients got 429 because the hold queue was full.",
        action: "More demand than the node can serve: add cores or memory, or raise --hold-limit for short bursts.",
    },
    Alert {
        name: "ForeshockStreamsFailing",
        expression: "sum by (model, reason) (increase(foreshock_failed_streams_total[5m])) > 0",
        lasting: "0m",
        severity: Severity::Critical,
        summary: "{{ $labels.model }}: streams ended with an error event ({{ $labels.reason }}).",
        action: "No other instance could go on with them: look at instance exits and logs/<instance>.log.",
    },
    Alert {
        name: "ForeshockInstancesDying",
        expression: "sum by (model, reason) (increase(foreshock_instance_exits_total{reason!=\"drained\"}[10m])) > 2",
        lasting: "0m",
        severity: Severity::Warning,
        summary: "{{ $labels.model }}: engines keep ending by themselves ({{ $labels.reason }}).",
        action: "Read logs/<instance>.log in the state folder; `oom` means that the memory budget is too high.",
    },
    Alert {
        name: "ForeshockStartsFailing",
        expression: "sum by (model) (increase(foreshock_cold_starts_total[10m])) > 0 unless on (model) \
                     sum by (model) (increase(foreshock_cold_start_seconds_count[10m])) > 0",
        lasting: "2m",
        severity: Severity::Critical,
        summary: "{{ $labels.model }}: instances are started and none becomes ready.",
        action: "Run `foreshock models inspect {{ $labels.model }}` and read logs/<instance>.log.",
    },
    Alert {
        name: "ForeshockTtftHigh",
        expression: "histogram_quantile(0.99, sum by (le, model) \
                     (rate(foreshock_ttft_seconds_bucket{vantage=\"gateway\"}[5m]))) > 5",
        lasting: "5m",
        severity: Severity::Warning,
        summary: "{{ $labels.model }}: time to first token is {{ $value | humanizeDuration }} (p99).",
        action: "Compare the kernel's, the gateway's and the engine's figures: the gap shows where the time goes.",
    },
    Alert {
        name: "ForeshockDemandUnserved",
        expression: "sum(rate(foreshock_kernel_requests_total{port_role=\"gateway\"}[2m])) > \
                     1.5 * sum(rate(foreshock_requests_total[2m])) + 1",
        lasting: "2m",
        severity: Severity::Critical,
        summary: "The kernel sees more requests than the gateway answers.",
        action: "User space is saturated or stuck: look at CPU use and the accept queue of the data port.",
    },
    Alert {
        name: "ForeshockKvNearlyFull",
        expression: "foreshock_kv_blocks_used / foreshock_kv_blocks > 0.95",
        lasting: "5m",
        severity: Severity::Warning,
        summary: "{{ $labels.model }}: {{ $value | humanizePercentage }} of the KV blocks are in use.",
        action: "Sequences wait for blocks: give instances more KV memory (--kv-bytes) or more instances.",
    },
    Alert {
        name: "ForeshockKernelEventsLost",
        expression: "increase(foreshock_kernel_events_lost_total[5m]) > 0",
        lasting: "0m",
        severity: Severity::Warning,
        summary: "The probes' ring buffer was full: {{ $value }} events are missing from kernel figures.",
        action: "Counters stay right; timelines have gaps. The witness was starved of CPU.",
    },
    Alert {
        name: "ForeshockProbesDetached",
        expression: "min by (probe) (foreshock_probes_attached) == 0",
        lasting: "5m",
        severity: Severity::Warning,
        summary: "Kernel probe {{ $labels.probe }} is not attached: demand comes from the gateway alone.",
        action: "GET /v1/foreshock/probes on the admin port says what is missing. Silence this under --no-probes.",
    },
];

/// The rules as a Prometheus rule file. JSON strings are YAML strings, so quoting is serde_json's.
pub fn rules() -> String {
    let mut file = String::from(
        "# Generated by `cargo xtask codegen` from dashboards/src/alerts.rs; do not edit.\n\
         groups:\n  - name: foreshock\n    rules:\n",
    );
    for alert in ALERTS {
        // Writing to a String cannot fail.
        let _ = write!(
            file,
            "      - alert: {}\n        expr: {}\n        for: {}\n        labels:\n          severity: {}\n        \
             annotations:\n          summary: {}\n          description: {}\n",
            alert.name,
            quoted(alert.expression),
            alert.lasting,
            alert.severity.label(),
            quoted(alert.summary),
            quoted(alert.action),
        );
    }
    file
}

impl Severity {
    fn label(self) -> &'static str {
        match self {
            Severity::Critical => "critical",
            Severity::Warning => "warning",
        }
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
