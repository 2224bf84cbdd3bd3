//! Engines as the kernel serves them: looks at each process now and then, and finds those that do not get what they
//! need. What such an engine serves says nothing of what one can do, so capacity is not learned from it.

use crate::view::View;
use controller_core::snapshot::{InstanceId, InstanceView};
use controller_witness::{ProcessView, Times, Witness};
use metrics::{counter, gauge};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Time between two looks.
const WINDOW: Duration = Duration::from_millis(500);
/// Above this share of the time in which its threads wanted a CPU, an engine waited for one too long.
const RUN_QUEUE_RATIO_LIMIT: f64 = 0.25;
/// An engine that wants less of a CPU than this share is idle, and says nothing.
const LEAST_WANTED: f64 = 0.05;
/// Share of a window in which all tasks of the node waited for memory.
const MEMORY_FULL_LIMIT: f64 = 0.01;

/// What keeps an engine from its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Disturbance {
    /// Its threads wait for CPUs.
    RunQueue,
    /// Its cgroup has used up its quota of CPU time.
    Throttled,
    /// The node has too little memory.
    Memory,
}

impl Disturbance {
    const ALL: [Self; 3] = [Self::RunQueue, Self::Throttled, Self::Memory];

    fn label(self) -> &'static str {
        match self {
            Self::RunQueue => "run_queue",
            Self::Throttled => "throttled",
            Self::Memory => "memory",
        }
    }
}

/// An engine's process, and what was found in the last window.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct EngineView {
    #[serde(flatten)]
    pub process: ProcessView,
    pub disturbed: Option<Disturbance>,
}

/// The latest look at every engine. Cheap to clone.
#[derive(Clone, Default)]
pub struct EngineViews(Arc<Mutex<BTreeMap<InstanceId, EngineView>>>);

impl EngineViews {
    /// All of them.
    pub fn all(&self) -> BTreeMap<InstanceId, EngineView> {
        self.locked().clone()
    }

    /// Marks those that were disturbed in the last window.
    pub(crate) fn mark(&self, instances: &mut BTreeMap<InstanceId, InstanceView>) {
        let views = self.locked();
        for (id, instance) in instances {
            instance.disturbed = views.get(id).is_some_and(|view| view.disturbed.is_some());
        }
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<InstanceId, EngineView>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks again and again; ends when the loop does.
    pub(crate) async fn watch(self, witness: Arc<Witness>, view: View) {
        let mut every = tokio::time::interval(WINDOW);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut shown = BTreeSet::new();
        let mut memory_full_us = None;
        loop {
            every.tick().await;
            let (views, witness, view) = (self.clone(), witness.clone(), view.clone());
            // Files of /proc, some per thread of every engine.
            let looked = tokio::task::spawn_blocking(move || {
                let memory_full_us = views.look(&witness, &view, memory_full_us, &mut shown);
                (shown, memory_full_us)
            });
            let Ok(outcome) = looked.await else { return };
            (shown, memory_full_us) = outcome;
        }
    }

    /// One look at all engines; answers the node's total of memory pressure, microseconds.
    fn look(
        &self,
        witness: &Witness,
        view: &View,
        memory_full_us_before: Option<u64>,
        shown: &mut BTreeSet<String>,
    ) -> Option<u64> {
        let pressure = controller_witness::pressure();
        export_pressure(&pressure);
        let memory_full_us =
            pressure.iter().find(|(name, _)| *name == "memory").map(|(_, memory)| memory.full_us_total);
        let grown_us = memory_full_us.zip(memory_full_us_before).map_or(0, |(now, then)| now.saturating_sub(then));
        let mut last = self.all();
        let mut looked = BTreeMap::new();
        let mut sums: BTreeMap<String, Sums> = BTreeMap::new();
        for (id, instance) in view.instances().iter() {
            let Some(process) = witness.process(instance.pid) else { continue };
            let mut disturbed = None;
            let sum = sums.entry(instance.model.clone()).or_default();
            if let Some(before) = last.remove(id).filter(|before| before.process.source == process.source) {
                disturbed = disturbance(&before.process, &process, grown_us * 1_000);
                sum.add(&before.process, &process, disturbed);
            }
            looked.insert(id.clone(), EngineView { process, disturbed });
        }
        *self.locked() = looked;
        for model in shown.iter().filter(|model| !sums.contains_key(*model)) {
            Sums::default().export(model);
        }
        sums.iter().for_each(|(model, sum)| sum.export(model));
        *shown = sums.into_keys().collect();
        memory_full_us
    }
}

/// What disturbed an engine between two looks of one source, while the node waited for memory for so long, ns.
fn disturbance(before: &ProcessView, after: &ProcessView, memory_full_ns: u64) -> Option<Disturbance> {
    let window_ns = after.at_ns.saturating_sub(before.at_ns).max(1) as f64;
    let on_cpu_ns = after.on_cpu_ns.saturating_sub(before.on_cpu_ns) as f64;
    let run_queue_ns = after.run_queue_ns.saturating_sub(before.run_queue_ns) as f64;
    let wanted_ns = on_cpu_ns + run_queue_ns;
    if wanted_ns < LEAST_WANTED * window_ns {
        return None;
    }
    if run_queue_ns > RUN_QUEUE_RATIO_LIMIT * wanted_ns {
        return Some(Disturbance::RunQueue);
    }
    if after.throttled.zip(before.throttled).is_some_and(|(after, before)| after > before) {
        return Some(Disturbance::Throttled);
    }
    (memory_full_ns as f64 > MEMORY_FULL_LIMIT * window_ns).then_some(Disturbance::Memory)
}

/// What a model's engines did in a window.
#[derive(Default)]
struct Sums {
    /// Threads on average: on a CPU, in a run queue, blocked, stopped, asleep.
    threads: [f64; 5],
    run_queue_waits: Vec<Times>,
    block_times: Vec<Times>,
    major_faults: u64,
    read_bytes: u64,
    write_bytes: u64,
    disturbed: [u32; 3],
}

impl Sums {
    fn add(&mut self, before: &ProcessView, after: &ProcessView, disturbed: Option<Disturbance>) {
        let window_ns = after.at_ns.saturating_sub(before.at_ns).max(1) as f64;
        let grown = |after: u64, before: u64| after.saturating_sub(before);
        let mut ns =
            [grown(after.on_cpu_ns, before.on_cpu_ns), grown(after.run_queue_ns, before.run_queue_ns), 0, 0, 0];
        if let (Some(after), Some(before)) = (&after.scheduler, &before.scheduler) {
            ns[2] = grown(after.blocked_ns, before.blocked_ns);
            ns[3] = grown(after.stopped_ns, before.stopped_ns);
            ns[4] = grown(after.asleep_ns, before.asleep_ns);
            self.run_queue_waits.push(after.run_queue_waits.since(&before.run_queue_waits));
        }
        if let (Some(after), Some(before)) = (&after.block, &before.block) {
            self.read_bytes += grown(after.read_bytes, before.read_bytes);
            self.write_bytes += grown(after.write_bytes, before.write_bytes);
            self.block_times.push(after.times.since(&before.times));
        }
        self.threads.iter_mut().zip(ns).for_each(|(sum, ns)| *sum += ns as f64 / window_ns);
        self.major_faults += grown(after.major_faults, before.major_faults);
        if let Some(at) = disturbed.and_then(|why| Disturbance::ALL.iter().position(|one| *one == why)) {
            self.disturbed[at] += 1;
        }
    }

    fn export(&self, model: &str) {
        let model = || model.to_owned();
        for (state, threads) in ["on_cpu", "run_queue", "blocked", "stopped", "asleep"].into_iter().zip(self.threads) {
            gauge!(telemetry::ENGINE_THREADS.name, "model" => model(), "state" => state).set(threads);
        }
        // The worst instance's: sums of distributions would hide it.
        let worst = |times: &[Times], per_hundred| times.iter().map(|times| times.quantile_ns(per_hundred)).max();
        for (quantile, per_hundred) in [("0.5", 50), ("0.99", 99)] {
            let seconds = |times: &[Times]| worst(times, per_hundred).unwrap_or(0) as f64 / 1e9;
            gauge!(telemetry::ENGINE_RUN_QUEUE_WAIT_SECONDS.name, "model" => model(), "quantile" => quantile)
                .set(seconds(&self.run_queue_waits));
            gauge!(telemetry::ENGINE_BLOCK_SECONDS.name, "model" => model(), "quantile" => quantile)
                .set(seconds(&self.block_times));
        }
        counter!(telemetry::ENGINE_MAJOR_FAULTS_TOTAL.name, "model" => model()).increment(self.major_faults);
        for (direction, bytes) in [("read", self.read_bytes), ("write", self.write_bytes)] {
            counter!(telemetry::ENGINE_BLOCK_BYTES_TOTAL.name, "model" => model(), "direction" => direction)
                .increment(bytes);
        }
        for (why, count) in Disturbance::ALL.into_iter().zip(self.disturbed) {
            gauge!(telemetry::ENGINE_DISTURBED.name, "model" => model(), "reason" => why.label()).set(f64::from(count));
        }
    }
}

fn export_pressure(pressure: &[(&'static str, controller_witness::Pressure)]) {
    for (resource, pressure) in pressure {
        for (kind, ratio) in [("some", pressure.some_ratio), ("full", pressure.full_ratio)] {
            gauge!(telemetry::PRESSURE_RATIO.name, "resource" => *resource, "kind" => kind).set(ratio);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn an_engine_that_does_not_get_what_it_needs_is_disturbed() {
        // A window of 500 ms: (on a CPU, in a run queue, throttled before and after, memory pressure), ms.
        let check = |on_cpu, run_queue, throttled: (Option<u64>, Option<u64>), memory, want: Option<Disturbance>| {
            let before = ProcessView { at_ns: 7, throttled: throttled.0, ..ProcessView::default() };
            let after = ProcessView {
                at_ns: 7 + 500 * MS,
                on_cpu_ns: on_cpu * MS,
                run_queue_ns: run_queue * MS,
                throttled: throttled.1,
                ..ProcessView::default()
            };
            let got = disturbance(&before, &after, memory * MS);
            assert_eq!(got, want, "{on_cpu} {run_queue} {throttled:?} {memory}");
        };
        let same = (Some(3), Some(3));
        check(500, 0, same, 0, None);
        check(750, 250, same, 0, None);
        check(740, 260, same, 0, Some(Disturbance::RunQueue));
        check(0, 500, same, 0, Some(Disturbance::RunQueue));
        check(10, 10, same, 0, None);
        check(500, 0, (Some(3), Some(4)), 0, Some(Disturbance::Throttled));
        check(500, 0, (None, Some(4)), 0, None);
        check(500, 0, same, 6, Some(Disturbance::Memory));
        check(500, 0, same, 5, None);
        check(1, 0, (Some(3), Some(4)), 400, None);
    }
}
