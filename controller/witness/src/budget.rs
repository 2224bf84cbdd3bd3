//! How much of the CPUs the probes may take, and what goes when they take more.
//!
//! The costliest view that service needs least goes first, and comes back last. A group that is put back and at once
//! costs too much again is left off for twice as long, so that a steady flood is not probed over and over.
//! Pure: it is told what each window cost, and says what to do.

use serde::Serialize;
use std::time::Duration;

/// What is turned off and on as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// CPUs and disks as engines get them: a program at every switch of threads.
    EngineView,
    /// The time of every token after the first few.
    Tokens,
    /// A request's text beyond its first segment.
    Bodies,
    /// SYNs, connections, requests and answers.
    Counting,
}

impl Group {
    /// In the order in which they go.
    pub const ALL: [Self; 4] = [Self::EngineView, Self::Tokens, Self::Bodies, Self::Counting];

    /// As labels and the log name it.
    pub fn label(self) -> &'static str {
        match self {
            Self::EngineView => "engine_view",
            Self::Tokens => "tokens",
            Self::Bodies => "bodies",
            Self::Counting => "counting",
        }
    }

    /// What is not known without it.
    pub fn loses(self) -> &'static str {
        match self {
            Self::EngineView => "engines' waits for CPUs one by one, and their block I/O",
            Self::Tokens => "times between tokens",
            Self::Bodies => "models and limits named beyond a request's first segment",
            Self::Counting => "demand and service as the kernel sees them",
        }
    }
}

/// Limits of the probes' own cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// Share of all CPUs' time, from 0 to 1, that the probes may take.
    pub cpu_ratio: f64,
    /// Time over which the cost is measured.
    pub window: Duration,
    /// How long a group stays off at first, and at most.
    pub retry_after: Duration,
    pub retry_at_latest: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            cpu_ratio: 0.02,
            window: Duration::from_secs(1),
            retry_after: Duration::from_secs(10),
            retry_at_latest: Duration::from_secs(600),
        }
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    TakeOff(Group),
    PutBack(Group),
}

/// The governor's memory.
#[derive(Clone, Debug)]
pub struct Governor {
    budget: Budget,
    /// Groups that are off: so many from the beginning of [`Group::ALL`].
    off: usize,
    /// Since the last step.
    quiet_for: Duration,
    /// How long the groups that are off stay so.
    retry_after: Duration,
    /// The last step put a group back.
    is_trial: bool,
}

impl Governor {
    pub fn new(budget: Budget) -> Self {
        Self { budget, off: 0, quiet_for: Duration::ZERO, retry_after: budget.retry_after, is_trial: false }
    }

    /// Takes in what the last window of `took` cost, as a share of all CPUs.
    pub fn window(&mut self, cpu_ratio: f64, took: Duration) -> Option<Step> {
        let since = self.quiet_for.saturating_add(took);
        if cpu_ratio > self.budget.cpu_ratio {
            let group = *Group::ALL.get(self.off)?;
            if self.is_trial && since < self.retry_after {
                self.retry_after = self.retry_after.saturating_mul(2).min(self.budget.retry_at_latest);
            }
            self.off += 1;
            self.quiet_for = Duration::ZERO;
            self.is_trial = false;
            return Some(Step::TakeOff(group));
        }
        self.quiet_for = since;
        if since < self.retry_after {
            return None;
        }
        let Some(last) = self.off.checked_sub(1) else {
            self.retry_after = self.budget.retry_after;
            self.is_trial = false;
            return None;
        };
        self.off = last;
        self.quiet_for = Duration::ZERO;
        self.is_trial = true;
        Some(Step::PutBack(Group::ALL[last]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds windows of a second, each at a cost in percent, and tells what was done at which second.
    fn check(what: &str, windows: &[(usize, f64)], expected: &[(usize, &str)]) {
        let mut governor = Governor::new(Budget::default());
        let costs = windows.iter().flat_map(|&(count, cost)| std::iter::repeat_n(cost, count));
        let steps = costs.enumerate().filter_map(|(second, cost)| {
            let step = governor.window(cost / 100.0, Duration::from_secs(1))?;
            Some((second + 1, format!("{step:?}")))
        });
        let expected: Vec<_> = expected.iter().map(|&(second, step)| (second, step.to_owned())).collect();
        assert_eq!(steps.collect::<Vec<_>>(), expected, "{what}");
    }

    #[test]
    fn what_costs_too_much_goes_and_comes_back() {
        check("within the budget", &[(100, 2.0)], &[]);
        let calm = [(1, "TakeOff(EngineView)"), (11, "PutBack(EngineView)")];
        check("a burst", &[(1, 2.1), (100, 0.0)], &calm);
        let off = [
            (1, "TakeOff(EngineView)"),
            (2, "TakeOff(Tokens)"),
            (3, "TakeOff(Bodies)"),
            (4, "TakeOff(Counting)"),
            (16, "PutBack(Counting)"),
            (26, "PutBack(Bodies)"),
        ];
        check("all goes, the last comes back first", &[(6, 5.0), (20, 0.0)], &off);
        // Back at 11 s and over at 12 s: off for 20 s, then for 40 s.
        let flood = [
            (1, "TakeOff(EngineView)"),
            (11, "PutBack(EngineView)"),
            (12, "TakeOff(EngineView)"),
            (32, "PutBack(EngineView)"),
            (33, "TakeOff(EngineView)"),
            (73, "PutBack(EngineView)"),
        ];
        check("a flood", &[(1, 3.0), (10, 0.0), (1, 3.0), (20, 0.0), (1, 3.0), (40, 0.0)], &flood);
        // The second flood comes long after the first: it is a new one.
        let later = [
            (1, "TakeOff(EngineView)"),
            (11, "PutBack(EngineView)"),
            (32, "TakeOff(EngineView)"),
            (42, "PutBack(EngineView)"),
        ];
        check("two bursts", &[(1, 3.0), (30, 0.0), (1, 3.0), (11, 0.0)], &later);
    }

    proptest! {
        #[test]
        fn groups_go_and_come_in_order(costs in proptest::collection::vec(0.0..0.04f64, 0..400), budget in 0.0..0.03f64) {
            let mut governor = Governor::new(Budget { cpu_ratio: budget, ..Budget::default() });
            let mut off = Vec::new();
            for cost in costs {
                match governor.window(cost, Duration::from_secs(1)) {
                    Some(Step::TakeOff(group)) => {
                        prop_assert!(cost > budget);
                        prop_assert_eq!(group, Group::ALL[off.len()]);
                        off.push(group);
                    }
                    Some(Step::PutBack(group)) => prop_assert_eq!(off.pop(), Some(group)),
                    None => prop_assert!(cost <= budget || off.len() == Group::ALL.len()),
                }
            }
        }
    }
}
