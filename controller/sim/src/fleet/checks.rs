//! The checkers of a fleet, which look at every tick and at the end.

use super::world::World;
use crate::check::{Invariant, Violation, ensure};
use crate::{NS_PER_S, ns};

/// Of all drains, one in so many may be regretted, beside a few at any rate: arrivals are random, whatever the planner does.
const REGRET_SHARE: u64 = 5;
const REGRETS_ANYWAY: u64 = 10;
/// Requests by which a load must grow, at least, to be another.
const LOAD_GROWN: u32 = 2;

/// What there was when a model's instance was last drained.
#[derive(Clone, Copy, Debug)]
pub(super) struct LastDrain {
    at_ns: u64,
    load: u32,
    /// Instances that stayed.
    have: u32,
    epoch: u64,
}

impl World<'_> {
    /// Ends a strict run with what is broken; counts it in any other.
    pub(super) fn judge(&mut self, outcome: Result<(), Violation>) -> Result<(), Violation> {
        match outcome {
            Err(violation) if self.config.strict => Err(violation),
            Err(violation) => {
                *self.report.violations.entry(format!("{:?}", violation.invariant)).or_default() += 1;
                self.report.first_violation.get_or_insert(violation);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Remembers what there was when an instance was drained that had served for less time than it took to start: it cannot
    /// have paid for itself. One that did and is wanted again soon is no flapping but chance.
    pub(super) fn drained(&mut self, at: u32) {
        let instance = &self.instances[at as usize];
        let model = instance.model;
        let served_ns = instance.ready_ns.map_or(0, |ready_ns| self.now_ns - ready_ns);
        if served_ns >= ns(self.config.cold_start_s()) {
            self.last_drains.remove(&model);
            return;
        }
        let sight = &self.sights[model as usize];
        let drain = LastDrain { at_ns: self.now_ns, load: sight.load(), have: sight.have(), epoch: self.epoch };
        self.last_drains.insert(model, drain);
    }

    /// Whether starts keep following such drains with nothing changed but the plan: no more requests, nothing lost, the same
    /// controller. Judged at a start.
    pub(super) fn flaps(&mut self, model: u32) -> Result<(), Violation> {
        let cold_ns = ns(self.config.cold_start_s());
        let sight = &self.sights[model as usize];
        let unchanged = self.last_drains.get(&model).is_some_and(|last| {
            let soon = self.now_ns - last.at_ns < cold_ns;
            let grown = last.load + (last.load / 4).max(LOAD_GROWN);
            soon && last.epoch == self.epoch && sight.load() <= grown && sight.have() >= last.have
        });
        if unchanged {
            // One drain is regretted once, however many are started.
            self.last_drains.remove(&model);
            self.report.regretted += 1;
        }
        let (regretted, drains) = (self.report.regretted, self.report.drains);
        let calm = !unchanged || regretted <= REGRETS_ANYWAY + drains / REGRET_SHARE;
        let calm = ensure(calm, Invariant::NoFlapping, self.now_ns, || {
            format!(
                "{regretted} of {drains} drains left before they had paid, and were followed by a start with no more load"
            )
        });
        self.judge(calm)
    }

    /// What must hold after every tick.
    pub(super) fn check_tick(&mut self) -> Result<(), Violation> {
        let conserved = self.conserved();
        self.judge(conserved)?;
        let placed = self.placed();
        self.judge(placed)?;
        for model in 0..self.held.len() {
            let Some(oldest) = self.held[model].front() else { continue };
            let (held, now_ns) = (self.held[model].len(), self.now_ns);
            let arrived_ns = self.requests[oldest.request as usize].arrived_ns;
            let waits_s = (now_ns - arrived_ns) as f64 / NS_PER_S as f64;
            let name = &self.work.models[model];
            // Requests that come back from a lost instance are never refused, so they may stand above the bound.
            let bound = self.config.held_max + 4 * self.config.engine.max_batch as usize * self.config.devices as usize;
            let bounded =
                ensure(held <= bound, Invariant::HeldQueueBounded, now_ns, || format!("{held} held for {name}"));
            let served = ensure(waits_s <= self.config.starve_limit_s, Invariant::NobodyStarves, now_ns, || {
                format!("a request for {name} is held for {waits_s:.1} s, {held} in all")
            });
            self.judge(bounded.and(served))?;
        }
        Ok(())
    }

    /// Every request is held, at one instance, or ended.
    fn conserved(&self) -> Result<(), Violation> {
        let at_instances: u64 =
            self.live.values().map(|at| u64::from(self.instances[*at as usize].engine.load())).sum();
        let held: u64 = self.held.iter().map(|queue| queue.len() as u64).sum();
        let ended = self.report.answered + self.report.refused;
        let all = self.requests.len() as u64;
        ensure(at_instances + held + ended == all, Invariant::NothingLostOrDoubled, self.now_ns, || {
            format!("{all} arrived; {at_instances} are at instances, {held} held, {ended} ended")
        })
    }

    /// Every instance has a device of its own.
    fn placed(&self) -> Result<(), Violation> {
        let held = self.owners.iter().flatten().count();
        let live = self.live.len();
        let own = self.live.values().all(|at| self.owners[self.instances[*at as usize].device as usize] == Some(*at));
        ensure(own && held == live, Invariant::DeviceGivenOnce, self.now_ns, || {
            format!("{live} instances on {held} devices")
        })
    }

    /// What must hold when the load has ended.
    pub(super) fn check_end(&mut self) -> Result<(), Violation> {
        let (ended, all) = (self.report.answered + self.report.refused, self.requests.len());
        let answered = ensure(ended == all as u64, Invariant::EveryRequestAnswered, self.now_ns, || {
            format!("{ended} of {all} requests have ended")
        });
        self.judge(answered)
    }
}
