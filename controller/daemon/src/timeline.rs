//! What each cold start was made of: from the decision to the first token, by the clock that controller and engine
//! share, and where the weights were. Metric, API answer, database entry and text of one record.

use crate::fleet::Instance;
use controller_core::Nanos;
use controller_core::snapshot::{InstanceId, ModelName, Revision};
use engine_wire::control::{StartPhases, Tier};
use serde::{Deserialize, Serialize};
use std::borrow::Borrow;
use std::fmt::Write;

/// An engine that nobody has asked so long after it was ready was started ahead of its requests.
const UNASKED_NS: Nanos = 1_000_000_000;

/// One start of an engine of ours. Phases follow each other; each is the time since the end of the one before, ms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartRecord {
    pub at_unix_s: u64,
    pub model: ModelName,
    pub revision: Revision,
    pub instance: InstanceId,
    /// A spare process adopted the model: `spawn_ms` is then what that took.
    #[serde(default)]
    pub spare: bool,
    /// Where the weights were.
    pub tier: Tier,
    /// Bytes of them that were read from disk.
    pub read_bytes: u64,
    /// From the look at the load that decided it to the beginning of the process.
    pub decision_ms: f64,
    /// Until the process listened: exec, options, runtime, port; or until a spare one had been told what to be.
    pub spawn_ms: f64,
    /// Until its weights were where it computes with them: adopted, read or mapped.
    pub load_ms: f64,
    /// Until it could compute: threads, KV pool, scheduler.
    pub ready_ms: f64,
    /// Until its first token; none where nobody waited for one.
    pub first_token_ms: Option<f64>,
}

impl StartRecord {
    /// What is known of an engine's start, once it is whole: it is ready, and has made the first token if anybody waits
    /// for one.
    pub(crate) fn of(id: &str, instance: &Instance, at_unix_s: u64) -> Option<Self> {
        let telemetry = instance.telemetry.as_ref()?;
        let phases = &telemetry.phases;
        let (tier, listening_at_ns, ready_at_ns) = (phases.tier?, instance.listening_at_ns?, telemetry.ready_at_ns?);
        let first = phases.first_token_ms.or(phases.first_step_ms).map(|ms| at_ns(phases, ms));
        let asked = telemetry.requests_total > telemetry.cancelled_total;
        if first.is_none() && (asked || telemetry.at_ns.saturating_sub(ready_at_ns) < UNASKED_NS) {
            return None;
        }
        let between = |from: Nanos, to: Nanos| to.saturating_sub(from) as f64 / 1e6;
        // The engine tells the end of its own phases better than the line about its port, which came later.
        let listened_at_ns = at_ns(phases, phases.listening_ms).max(instance.spawned_at_ns).min(listening_at_ns);
        let loaded_at_ns = at_ns(phases, phases.mapped_ms).max(listened_at_ns);
        Some(Self {
            at_unix_s,
            model: instance.model.clone(),
            revision: instance.revision.clone(),
            instance: id.to_owned(),
            spare: phases.spare,
            tier,
            read_bytes: phases.read_bytes,
            decision_ms: between(instance.decided_at_ns, instance.spawned_at_ns),
            spawn_ms: between(instance.spawned_at_ns, listened_at_ns),
            load_ms: between(listened_at_ns, loaded_at_ns),
            ready_ms: between(loaded_at_ns, ready_at_ns),
            first_token_ms: first.map(|first_at_ns| between(ready_at_ns, first_at_ns)),
        })
    }

    /// Phases by name, in the order in which they happen.
    pub fn phases(&self) -> [(&'static str, Option<f64>); 5] {
        [
            ("decision", Some(self.decision_ms)),
            (if self.spare { "adopt" } else { "spawn" }, Some(self.spawn_ms)),
            ("load", Some(self.load_ms)),
            ("ready", Some(self.ready_ms)),
            ("first_token", self.first_token_ms),
        ]
    }

    /// Up to its readiness, ms: what a cold start counts as.
    pub(crate) fn until_ready_ms(&self) -> f64 {
        self.decision_ms + self.spawn_ms + self.load_ms + self.ready_ms
    }

    /// All of it, ms.
    pub fn total_ms(&self) -> f64 {
        self.phases().iter().filter_map(|(_, ms)| *ms).sum()
    }
}

/// CLOCK_MONOTONIC so many ms after a process began.
fn at_ns(phases: &StartPhases, ms: f64) -> Nanos {
    phases.began_at_ns.saturating_add((ms * 1e6) as u64)
}

/// Starts as text, in the order given.
pub fn render_starts<S: Borrow<StartRecord>>(starts: &[S], now_unix_s: u64) -> String {
    let mut text = String::new();
    for start in starts.iter().map(Borrow::borrow) {
        let ms = |(name, ms): &(&str, Option<f64>)| ms.map(|ms| format!("{} {ms:.1}", name.replace('_', " ")));
        let phases: Vec<String> = start.phases().iter().filter_map(ms).collect();
        let from = match start.tier {
            Tier::Memory => "weights in memory".to_owned(),
            Tier::Disk => format!("{:.1} MB from disk", start.read_bytes as f64 / 1e6),
            Tier::File => "weights in mapped files".to_owned(),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "  start     {}, {} s ago, {from}: {:.1} ms ({})",
            start.instance,
            now_unix_s.saturating_sub(start.at_unix_s),
            start.total_ms(),
            phases.join(", ")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_reads_as_text() {
        let start = StartRecord {
            at_unix_s: 100,
            model: "m".to_owned(),
            revision: "r".to_owned(),
            instance: "m-1-1".to_owned(),
            spare: false,
            tier: Tier::Disk,
            read_bytes: 2_500_000,
            decision_ms: 0.25,
            spawn_ms: 4.0,
            load_ms: 10.0,
            ready_ms: 1.5,
            first_token_ms: Some(5.0),
        };
        let warm = StartRecord { spare: true, tier: Tier::Memory, first_token_ms: None, ..start.clone() };
        insta::assert_snapshot!(render_starts(&[start, warm], 107), @r"
          start     m-1-1, 7 s ago, 2.5 MB from disk: 20.8 ms (decision 0.2, spawn 4.0, load 10.0, ready 1.5, first token 5.0)
          start     m-1-1, 7 s ago, weights in memory: 15.8 ms (decision 0.2, adopt 4.0, load 10.0, ready 1.5)
        ");
    }
}
