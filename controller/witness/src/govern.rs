//! Keeps the probes within their budget: measures what they cost, takes groups off and puts them back as
//! [`Governor`] says, and tells of it.

use crate::budget::{Budget, Governor, Group, Step};
use crate::cost::{Meter, ProgramCost};
use crate::process::now_ns;
use crate::programs::Programs;
use crate::witness::{Shared, locked};
use aya::util::online_cpus;
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use telemetry::{
    PROBE_BUDGET_RATIO, PROBE_CPU_RATIO, PROBE_GROUP_ON, PROBE_MAPS_BYTES, PROBE_RUN_SECONDS, PROBE_RUNS_TOTAL,
};

/// What the probes cost and what became of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ProbeCost {
    /// Share of all CPUs' time that the probes may take, from 0 to 1, and that they took in the last window.
    pub budget_cpu_ratio: f64,
    pub cpu_ratio: f64,
    /// When that was, CLOCK_MONOTONIC ns.
    pub at_ns: u64,
    /// Why the cost is not known; then nothing is ever taken off.
    pub unknown: Option<String>,
    pub groups: Vec<GroupStatus>,
    pub programs: Vec<ProgramCost>,
    pub maps_bytes: u64,
}

/// One group of probes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupStatus {
    pub group: Group,
    pub on: bool,
    /// Why it is off.
    pub reason: String,
    pub loses: &'static str,
}

/// Programs that are attached for short times on demand, and whose cost is not the budget's.
const ON_DEMAND: &str = "cuda_";

/// Measures from now on; what it answers runs until it is dropped.
pub(crate) fn run(
    meter: Meter,
    programs: Arc<Mutex<Programs>>,
    shared: Arc<Shared>,
    budget: Budget,
) -> impl Future<Output = ()> {
    let mut keeper = Keeper {
        governor: Governor::new(budget),
        budget,
        off: BTreeSet::new(),
        last: meter.programs(),
        last_at: Instant::now(),
        read_ns: now_ns(),
        programs,
        shared,
        meter,
    };
    keeper.publish(0.0);
    async move {
        let mut every = tokio::time::interval(budget.window);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        every.tick().await;
        loop {
            every.tick().await;
            keeper.window();
        }
    }
}

struct Keeper {
    governor: Governor,
    budget: Budget,
    off: BTreeSet<Group>,
    last: Vec<ProgramCost>,
    last_at: Instant,
    read_ns: u64,
    programs: Arc<Mutex<Programs>>,
    shared: Arc<Shared>,
    meter: Meter,
}

impl Keeper {
    fn window(&mut self) {
        let took = self.last_at.elapsed();
        self.last_at = Instant::now();
        self.read_ns = now_ns();
        let now = self.meter.programs();
        let ratio = self.export(&now, took);
        self.last = now;
        if let Some(step) = self.governor.window(ratio, took) {
            self.take(step, ratio);
        }
        self.publish(ratio);
    }

    fn take(&mut self, step: Step, ratio: f64) {
        let why = self.why();
        let percent = |ratio: f64| (ratio * 1e4).round() / 100.0;
        let (cost_percent, budget_percent) = (percent(ratio), percent(self.budget.cpu_ratio));
        let mut programs = locked(&self.programs);
        match step {
            Step::TakeOff(group) => {
                programs.shed(group, &why);
                self.off.insert(group);
                let loses = group.loses();
                tracing::warn!(
                    group = group.label(),
                    cost_percent,
                    budget_percent,
                    loses,
                    "the kernel probes cost more than their budget: a group is turned off, and tried again later"
                );
            }
            Step::PutBack(group) => {
                if let Some(maps) = &self.shared.maps {
                    locked(maps).forget(group);
                }
                programs.restore(group, &why);
                self.off.remove(&group);
                tracing::info!(group = group.label(), cost_percent, budget_percent, "a group of kernel probes is back");
            }
        }
        let status = programs.status();
        drop(programs);
        if step == Step::TakeOff(Group::Counting) {
            self.shared.lose_sight();
        }
        crate::export::probes_attached(&status);
        *locked(&self.shared.probes) = status;
    }

    /// The same words each time: by them the group's probes are known when it comes back.
    fn why(&self) -> String {
        format!(
            "turned off: the probes cost more than {} % of the CPUs (--probe-budget)",
            self.budget.cpu_ratio * 100.0
        )
    }

    /// Metrics of a window; the share of all CPUs that counts against the budget.
    fn export(&self, now: &[ProgramCost], took: Duration) -> f64 {
        let cpus = online_cpus().map_or(1, |cpus| cpus.len());
        let cpu_ns = (took.as_nanos() as f64 * cpus as f64).max(1.0);
        let mut sum = 0.0;
        for (now, last) in now.iter().zip(&self.last) {
            let run_ns = now.run_ns_total.saturating_sub(last.run_ns_total) as f64;
            let runs = now.runs_total.saturating_sub(last.runs_total);
            let probe = || now.probe.clone();
            metrics::gauge!(PROBE_CPU_RATIO.name, "probe" => probe()).set(run_ns / cpu_ns);
            metrics::counter!(PROBE_RUNS_TOTAL.name, "probe" => probe()).absolute(now.runs_total);
            if runs > 0 {
                metrics::gauge!(PROBE_RUN_SECONDS.name, "probe" => probe()).set(run_ns / runs as f64 / 1e9);
            }
            if !now.probe.starts_with(ON_DEMAND) {
                sum += run_ns / cpu_ns;
            }
        }
        sum
    }

    fn publish(&self, cpu_ratio: f64) {
        let why = self.why();
        let group = |group: Group| {
            let on = !self.off.contains(&group);
            metrics::gauge!(PROBE_GROUP_ON.name, "group" => group.label()).set(f64::from(u8::from(on)));
            GroupStatus { group, on, reason: if on { String::new() } else { why.clone() }, loses: group.loses() }
        };
        let maps_bytes = self.meter.maps_bytes();
        metrics::gauge!(PROBE_BUDGET_RATIO.name).set(self.budget.cpu_ratio);
        metrics::gauge!(PROBE_MAPS_BYTES.name).set(maps_bytes as f64);
        *locked(&self.shared.cost) = ProbeCost {
            budget_cpu_ratio: self.budget.cpu_ratio,
            cpu_ratio,
            at_ns: self.read_ns,
            unknown: None,
            groups: Group::ALL.into_iter().map(group).collect(),
            programs: self.last.clone(),
            maps_bytes,
        };
    }
}
