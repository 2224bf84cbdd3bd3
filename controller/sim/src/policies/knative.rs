//! Knative Serving's KPA with its defaults (its source, pkg/autoscaler/scaling/autoscaler.go).
//!
//! Every 2 s: the mean concurrency over 60 s and over 6 s, each over the target of 70% of what an instance takes at once.
//! When the short one asks for twice what is ready, it panics: the count goes up by the short window and never down until
//! a minute has passed without that. At most half of the ready ones leave at once. The last one goes 30 s after the long window is empty.

use super::window::Window;
use super::{Knobs, kept_ns, target};
use crate::NS_PER_S;
use crate::fleet::{ModelSight, Policy, Tick, View};

const TICK_NS: u64 = 2 * NS_PER_S;
const STABLE_S: f64 = 60.0;
/// The panic window as a share of the stable one.
const PANIC_SHARE: u64 = 10;
const PANIC_THRESHOLD: f64 = 2.0;
const UTILISATION: f64 = 0.7;
const SCALE_UP_MOST: f64 = 1000.0;
const SCALE_DOWN_MOST: f64 = 2.0;
const GRACE_S: f64 = 30.0;

pub(super) struct Knative {
    knobs: Knobs,
    models: Vec<Revision>,
}

#[derive(Clone, Debug, Default)]
struct Revision {
    window: Window,
    panic_since_ns: Option<u64>,
    panic_most: f64,
    empty_since_ns: Option<u64>,
}

impl Knative {
    pub(super) fn new(knobs: Knobs, models: usize) -> Self {
        Self { knobs, models: vec![Revision::default(); models] }
    }
}

impl Policy for Knative {
    fn name(&self) -> &'static str {
        "knative"
    }

    fn tick(&mut self, view: &View<'_>) -> Tick {
        let stable_ns = kept_ns(self.knobs, STABLE_S).max(TICK_NS);
        let target = target(self.knobs, view, UTILISATION * f64::from(view.max_batch));
        let decided = self.models.iter_mut().zip(view.models).enumerate();
        let counts = decided.map(|(model, (revision, sight))| {
            revision.window.observe(view.now_ns, sight, stable_ns);
            (model as u32, revision.decide(view.now_ns, sight, target, stable_ns))
        });
        Tick::counts(counts.collect(), view.now_ns + TICK_NS)
    }

    /// The activator holds a request for a revision at zero and pokes the autoscaler.
    fn eager(&self) -> bool {
        true
    }

    fn restart(&mut self) {
        self.models.fill(Revision::default());
    }
}

impl Revision {
    fn decide(&mut self, now_ns: u64, sight: &ModelSight, target: f64, stable_ns: u64) -> u32 {
        let ready = f64::from(sight.ready.max(1));
        // A request that is held at zero counts at once; the window's mean would take its time.
        let waking = if sight.have() == 0 { f64::from(sight.load()) } else { 0.0 };
        let wanted = |over_ns: u64| (self.window.mean(over_ns).max(waking) / target).ceil();
        let (stable, short) = (wanted(stable_ns), wanted(stable_ns / PANIC_SHARE));
        let bounded = |wanted: f64| wanted.clamp((ready / SCALE_DOWN_MOST).floor(), (ready * SCALE_UP_MOST).ceil());
        let over = short / ready >= PANIC_THRESHOLD;
        if over {
            if self.panic_since_ns.is_none() {
                self.panic_most = 0.0;
            }
            self.panic_since_ns = Some(now_ns);
        } else if self.panic_since_ns.is_some_and(|since_ns| now_ns - since_ns > stable_ns) {
            self.panic_since_ns = None;
        }
        let mut count = bounded(stable);
        if self.panic_since_ns.is_some() {
            self.panic_most = self.panic_most.max(bounded(short)).max(bounded(stable));
            count = self.panic_most;
        }
        self.last_one(now_ns, count as u32, sight)
    }

    /// Zero is wanted for the grace period before it is done.
    fn last_one(&mut self, now_ns: u64, count: u32, sight: &ModelSight) -> u32 {
        if count > 0 || sight.load() > 0 {
            self.empty_since_ns = None;
            return count.max(u32::from(sight.load() > 0));
        }
        let since_ns = *self.empty_since_ns.get_or_insert(now_ns);
        let grace = now_ns - since_ns < crate::ns(GRACE_S);
        u32::from(grace && sight.have() > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steady 20 at once over `seconds`, as (stable, panic) decisions with so many ready, target 7.
    fn after(seconds: u64, before: f64, now: f64, ready: u32) -> u32 {
        let mut revision = Revision::default();
        let stable_ns = crate::ns(STABLE_S);
        let mut count = 0;
        for second in (0..=60 + seconds).step_by(2) {
            let total = before * second.min(60) as f64 + now * second.saturating_sub(60) as f64;
            let sight = ModelSight { ready, in_flight: 1, concurrency_s: total, ..ModelSight::default() };
            revision.window.observe(second * NS_PER_S, &sight, stable_ns);
            count = revision.decide(second * NS_PER_S, &sight, 7.0, stable_ns);
        }
        count
    }

    #[test]
    fn worked_examples() {
        // 20 at once over a target of 7: three.
        assert_eq!(after(0, 20.0, 0.0, 3), 3);
        // From 7 to 70 at once: after 6 s the short window says ten, twice the one that is ready: panic, while the long one says 2.
        assert_eq!(after(6, 7.0, 70.0, 1), 10);
        // From 70 to 7: the long window still says 10, 30 s later 6 (of a mean of 38.5), and the floor is half of the ready ones.
        assert_eq!(after(30, 70.0, 7.0, 10), 6);
        assert_eq!(after(60, 70.0, 7.0, 10), 5);
    }

    #[test]
    fn the_last_one_goes_after_the_grace_period() {
        let mut revision = Revision::default();
        let sight = ModelSight { ready: 1, ..ModelSight::default() };
        let at = |s: u64| s * NS_PER_S;
        assert_eq!(revision.last_one(at(100), 0, &sight), 1);
        assert_eq!(revision.last_one(at(129), 0, &sight), 1);
        assert_eq!(revision.last_one(at(130), 0, &sight), 0);
    }
}
