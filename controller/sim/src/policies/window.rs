//! Mean concurrency over a stretch of time that has just passed, from the running integral of it.

use crate::fleet::ModelSight;
use std::collections::VecDeque;

/// One model's samples.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    samples: VecDeque<(u64, f64)>,
}

impl Window {
    /// Takes a sample, and forgets those that no window of `longest_ns` needs.
    pub(super) fn observe(&mut self, now_ns: u64, sight: &ModelSight, longest_ns: u64) {
        self.push(now_ns, sight.concurrency_s, longest_ns);
    }

    /// The same for any running total.
    pub(super) fn push(&mut self, now_ns: u64, total: f64, longest_ns: u64) {
        self.samples.push_back((now_ns, total));
        while self.samples.get(1).is_some_and(|(at_ns, _)| at_ns + longest_ns <= now_ns) {
            self.samples.pop_front();
        }
    }

    /// Rise of the total per second over the last `over_ns`, or over as much of it as was seen; 0 before two samples.
    pub(super) fn mean(&self, over_ns: u64) -> f64 {
        let Some((now_ns, total)) = self.samples.back() else { return 0.0 };
        let since_ns = now_ns.saturating_sub(over_ns);
        let first = self.samples.iter().rev().find(|(at_ns, _)| *at_ns <= since_ns).or(self.samples.front());
        let Some((from_ns, before)) = first.filter(|(from_ns, _)| from_ns < now_ns) else { return 0.0 };
        (total - before) / ((now_ns - from_ns) as f64 / 1e9)
    }
}
