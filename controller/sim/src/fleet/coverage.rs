//! Whether what a controller states of the time to come holds: its 0.9 quantile of each model's load at the horizon of a
//! cold start, against what then arrived. The world counts for itself: what the controller keeps of its own statements is
//! not asked.

use super::Policy;
use super::world::{Event, World};
use crate::check::{Invariant, Violation, ensure};
use crate::ns;
use controller_core::AVERAGED_S;

/// Share of outcomes that a 0.9 quantile may miss at most, where there are many: faults hide load and replace controllers,
/// and what has just begun is not known.
const MISSES_MOST: f64 = 0.15;
/// Standard errors of the share that are allowed beside that; outcomes that follow each other are alike, so that three of
/// them say about as much as one.
const ERRORS: f64 = 3.0;
const ALIKE: f64 = 3.0;

/// Statements that are open, by model, and what became of the others.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    open: Vec<Option<Stated>>,
    pub outcomes: u64,
    pub within: u64,
}

/// A quantile of the rate over a stretch of time.
#[derive(Clone, Copy, Debug)]
struct Stated {
    per_s: f64,
    from_ns: u64,
    due_ns: u64,
    /// Requests that had arrived when the stretch began.
    before: Option<u64>,
}

impl World<'_> {
    /// Takes the policy at its word, of each model for one stretch at a time.
    pub(super) fn take_statements(&mut self, policy: &dyn Policy) {
        if !self.config.coverage || !self.loaded() {
            return;
        }
        let horizon_s = self.config.cold_start_s().max(AVERAGED_S);
        let (from_ns, due_ns) = (self.now_ns + ns(horizon_s - AVERAGED_S), self.now_ns + ns(horizon_s));
        self.coverage.open.resize(self.sights.len(), None);
        for model in 0..self.sights.len() {
            if self.coverage.open[model].is_some() || due_ns > self.work.duration_ns {
                continue;
            }
            let Some(per_s) = policy.quantile_per_s(&self.work.models[model], horizon_s) else { continue };
            self.coverage.open[model] = Some(Stated { per_s, from_ns, due_ns, before: None });
            self.push(from_ns, Event::Stretch(model as u32));
            self.push(due_ns, Event::Stretch(model as u32));
        }
    }

    /// A stretch of time begins or ends.
    pub(super) fn stretch(&mut self, model: u32) {
        let arrived = self.sights[model as usize].arrivals_total;
        let Some(open) = self.coverage.open.get_mut(model as usize) else { return };
        let Some(mut stated) = open.take() else { return };
        let Some(before) = stated.before else {
            stated.before = Some(arrived);
            *open = Some(stated);
            return;
        };
        let came = arrived - before;
        let over_s = (stated.due_ns - stated.from_ns) as f64 / 1e9;
        self.coverage.outcomes += 1;
        self.coverage.within += u64::from(came as f64 / over_s <= stated.per_s + 1e-9);
    }

    /// Judged at the end, over all models.
    pub(super) fn check_coverage(&mut self) -> Result<(), Violation> {
        let Coverage { outcomes, within, .. } = self.coverage;
        (self.report.stated, self.report.stated_within) = (outcomes, within);
        if outcomes == 0 {
            return Ok(());
        }
        let missed = 1.0 - within as f64 / outcomes as f64;
        let error = (MISSES_MOST * (1.0 - MISSES_MOST) * ALIKE / outcomes as f64).sqrt();
        let holds = ensure(missed <= MISSES_MOST + ERRORS * error, Invariant::CoverageHolds, self.now_ns, || {
            format!(
                "of {outcomes} stretches {:.1}% had more load than the 0.9 quantile that was stated",
                100.0 * missed
            )
        });
        self.judge(holds)
    }
}
