//! Ray Serve's autoscaling with its defaults (its documentation, "Advanced Ray Serve autoscaling").
//!
//! Ongoing requests over the last 30 s, over a target of 2 a replica. A higher count must be wanted for 30 s on end, a lower one for
//! 600 s. Never below one, its default `min_replicas`.

use super::window::Window;
use super::{Knobs, kept_ns, target};
use crate::NS_PER_S;
use crate::fleet::{Policy, Tick, View};

const LOOP_NS: u64 = NS_PER_S;
const TARGET: f64 = 2.0;
const LOOK_BACK_NS: u64 = 30 * NS_PER_S;
const UP_DELAY_NS: u64 = 30 * NS_PER_S;
const DOWN_DELAY_S: f64 = 600.0;

pub(super) struct RayServe {
    knobs: Knobs,
    models: Vec<Deployment>,
}

#[derive(Clone, Debug, Default)]
struct Deployment {
    window: Window,
    wants_more_since_ns: Option<u64>,
    wants_less_since_ns: Option<u64>,
}

impl RayServe {
    pub(super) fn new(knobs: Knobs, models: usize) -> Self {
        Self { knobs, models: vec![Deployment::default(); models] }
    }
}

impl Policy for RayServe {
    fn name(&self) -> &'static str {
        "ray-serve"
    }

    fn tick(&mut self, view: &View<'_>) -> Tick {
        let target = target(self.knobs, view, TARGET);
        let down_delay_ns = kept_ns(self.knobs, DOWN_DELAY_S);
        let decided = self.models.iter_mut().zip(view.models).enumerate();
        let counts = decided.map(|(model, (deployment, sight))| {
            deployment.window.observe(view.now_ns, sight, LOOK_BACK_NS);
            let wanted = (deployment.window.mean(LOOK_BACK_NS) / target).ceil() as u32;
            (model as u32, deployment.delayed(view.now_ns, sight.have(), wanted.max(1), down_delay_ns))
        });
        Tick::counts(counts.collect(), view.now_ns + LOOP_NS)
    }

    fn restart(&mut self) {
        self.models.fill(Deployment::default());
    }
}

impl Deployment {
    /// The count once the wish for it has lasted.
    fn delayed(&mut self, now_ns: u64, have: u32, wanted: u32, down_delay_ns: u64) -> u32 {
        let since = |wish: bool, since_ns: Option<u64>| wish.then(|| since_ns.unwrap_or(now_ns));
        self.wants_more_since_ns = since(wanted > have, self.wants_more_since_ns);
        self.wants_less_since_ns = since(wanted < have, self.wants_less_since_ns);
        let lasted = |since_ns: Option<u64>, delay_ns| since_ns.is_some_and(|since_ns| now_ns - since_ns >= delay_ns);
        // The replicas that a deployment begins with, and those that died, are not waited for.
        if have == 0 || lasted(self.wants_more_since_ns, UP_DELAY_NS) || lasted(self.wants_less_since_ns, down_delay_ns)
        {
            self.wants_more_since_ns = None;
            self.wants_less_since_ns = None;
            return wanted;
        }
        have
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_must_last() {
        let mut deployment = Deployment::default();
        let mut at = |s: u64, have, wanted| deployment.delayed(s * NS_PER_S, have, wanted, crate::ns(DOWN_DELAY_S));
        assert_eq!(at(0, 0, 1), 1);
        assert_eq!(at(10, 1, 3), 1);
        assert_eq!(at(39, 1, 4), 1);
        assert_eq!(at(40, 1, 4), 4);
        assert_eq!(at(50, 4, 1), 4);
        // A moment in which it is not wanted begins the delay anew.
        assert_eq!(at(400, 4, 4), 4);
        assert_eq!(at(650, 4, 1), 4);
        assert_eq!(at(1249, 4, 1), 4);
        assert_eq!(at(1250, 4, 1), 1);
    }
}
