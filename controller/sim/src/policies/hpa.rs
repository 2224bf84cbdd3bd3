//! The Kubernetes HorizontalPodAutoscaler (v2) with its defaults, on the mean number of requests per pod:
//! the documentation of
//! Kubernetes, "Horizontal Pod Autoscaling".
//!
//! Every 15 s: `ceil(current * metric / target)`, unless the ratio is within 0.1 of 1. Up by at most 100% or 4 pods in 15 s,
//! whichever is more; down to the highest recommendation of the last 300 s. Never below one.

use super::window::Window;
use super::{Knobs, kept_ns, target};
use crate::NS_PER_S;
use crate::fleet::{ModelSight, Policy, Tick, View};
use std::collections::VecDeque;

pub(super) const SYNC_NS: u64 = 15 * NS_PER_S;
const TOLERANCE: f64 = 0.1;
const DOWN_STABILISATION_S: f64 = 300.0;
const UP_PODS: u32 = 4;
/// The HPA has no default target; 70% is what its examples use.
pub(super) const UTILISATION: f64 = 0.7;

pub(super) struct Hpa {
    knobs: Knobs,
    models: Vec<Scaler>,
}

/// The rule for one deployment.
#[derive(Clone, Debug, Default)]
pub(super) struct Scaler {
    window: Window,
    recommended: VecDeque<(u64, u32)>,
}

impl Hpa {
    pub(super) fn new(knobs: Knobs, models: usize) -> Self {
        Self { knobs, models: vec![Scaler::default(); models] }
    }
}

impl Policy for Hpa {
    fn name(&self) -> &'static str {
        "hpa"
    }

    fn tick(&mut self, view: &View<'_>) -> Tick {
        let target = target(self.knobs, view, UTILISATION * f64::from(view.max_batch));
        let stabilisation_ns = kept_ns(self.knobs, DOWN_STABILISATION_S);
        let decided = self.models.iter_mut().zip(view.models).enumerate();
        let counts = decided.map(|(model, (scaler, sight))| {
            (model as u32, scaler.decide(view.now_ns, sight, target, stabilisation_ns))
        });
        Tick::counts(counts.collect(), view.now_ns + SYNC_NS)
    }

    fn restart(&mut self) {
        self.models.fill(Scaler::default());
    }
}

impl Scaler {
    /// The count for a deployment that is not at zero.
    pub(super) fn decide(&mut self, now_ns: u64, sight: &ModelSight, target: f64, stabilisation_ns: u64) -> u32 {
        self.window.observe(now_ns, sight, SYNC_NS);
        let present = self.window.mean(SYNC_NS);
        self.recommend(now_ns, sight.have(), present / target, stabilisation_ns)
    }

    /// `pods` is what the metric asks for, not rounded.
    fn recommend(&mut self, now_ns: u64, current: u32, pods: f64, stabilisation_ns: u64) -> u32 {
        let ratio = pods / f64::from(current.max(1));
        let within = current > 0 && (ratio - 1.0).abs() <= TOLERANCE;
        let wanted = if within { current } else { (pods.ceil() as u32).max(1) };
        self.recommended.push_back((now_ns, wanted));
        while self.recommended.front().is_some_and(|(at_ns, _)| at_ns + stabilisation_ns < now_ns) {
            self.recommended.pop_front();
        }
        let highest = self.recommended.iter().map(|(_, count)| *count).max().unwrap_or(wanted);
        let stabilised = if wanted < current { highest.min(current) } else { wanted };
        let most = (2 * current).max(current + UP_PODS);
        stabilised.min(most).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worked_examples() {
        let check = |current: u32, pods: f64, want: u32| {
            let mut scaler = Scaler::default();
            assert_eq!(scaler.recommend(0, current, pods, 300 * NS_PER_S), want, "{current} {pods}");
        };
        // The documentation's own: twice the target doubles, half the target halves (once nothing holds it up).
        check(2, 4.0, 4);
        check(4, 2.0, 2);
        // Within a tenth, nothing.
        check(10, 10.9, 10);
        check(10, 11.1, 12);
        // Four pods, or as many as there are.
        check(1, 50.0, 5);
        check(10, 50.0, 20);
        check(3, 0.0, 1);
    }

    #[test]
    fn it_goes_down_to_the_highest_of_five_minutes() {
        let mut scaler = Scaler::default();
        let mut at = |s: u64, current, pods| scaler.recommend(s * NS_PER_S, current, pods, 300 * NS_PER_S);
        assert_eq!(at(0, 4, 8.0), 8);
        assert_eq!(at(15, 8, 2.0), 8);
        assert_eq!(at(300, 8, 2.0), 8);
        assert_eq!(at(315, 8, 2.0), 2);
    }
}
