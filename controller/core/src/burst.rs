//! How much of a burst is left by the time that an instance started for it is ready.
//!
//! A rate that has just risen says little of the rate a cold start from now. Some models are called in bursts that are
//! over by then, and what was started for one serves nobody; others have risen for good. Which kind a model is shows in
//! what became of its bursts so far: each is noted with its excess over the slow rate, and looked at again at the horizon.
//! The mean share that was left is what is believed of the next one (a regression of the excess ahead on the excess now).
//! Until a model has bursts of its own, it is believed to be like the fleet; and a fleet without any, to rise for good,
//! since nothing that arrives may be missed for a guess.

use crate::expect::AVERAGED_S;
use crate::{Nanos, after, seconds_between};
use serde::{Deserialize, Serialize};

/// What is kept of the past at each burst: about 20 of them.
const KEPT: f64 = 0.95;
/// Bursts that what is believed of the fleet counts for.
const LENT_BURSTS: f64 = 2.0;
/// More than this is not left of a burst: it has become another one.
const MOST_LEFT: f64 = 1.5;

/// What is left of a burst: the mean share, and the mean of its square.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Left {
    share: f64,
    square: f64,
}

impl Default for Left {
    /// Where no burst has been seen anywhere all is left, give or take a third.
    fn default() -> Self {
        Self { share: 1.0, square: 1.1 }
    }
}

impl Left {
    /// The share that is left, 0..1.
    pub(crate) fn share(self) -> f64 {
        self.share.clamp(0.0, 1.0)
    }

    /// Its standard deviation.
    pub(crate) fn spread(self) -> f64 {
        (self.square - self.share * self.share).max(0.0).sqrt()
    }

    /// This and more, with a weight.
    fn plus(self, more: Self, weight: f64) -> Self {
        Self { share: self.share + weight * more.share, square: self.square + weight * more.square }
    }

    fn over(self, count: f64) -> Self {
        Self { share: self.share / count, square: self.square / count }
    }
}

/// What is remembered of one model's bursts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Bursts {
    /// What is believed of the fleet's.
    lent: Left,
    horizon_s: f64,
    open: Option<Burst>,
    bursts: f64,
    /// Sums over those.
    left: Left,
}

impl Default for Bursts {
    fn default() -> Self {
        let none = Left { share: 0.0, square: 0.0 };
        Self { lent: Left::default(), horizon_s: 0.0, open: None, bursts: 0.0, left: none }
    }
}

/// A burst of which is not known yet what is left of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Burst {
    from_ns: Nanos,
    due_ns: Nanos,
    slow_per_s: f64,
    excess_per_s: f64,
    arrived: f64,
}

impl Bursts {
    /// Looks this far ahead from now on: what a cold start takes, s.
    pub(crate) fn look_ahead(&mut self, horizon_s: f64) {
        self.horizon_s = horizon_s;
    }

    /// Takes in what arrived up to a moment, and the excess of the rate over the slow one if it is a burst.
    pub(crate) fn take(&mut self, at_ns: Nanos, requests: f64, burst: Option<(f64, f64)>) {
        if self.horizon_s <= 0.0 {
            return;
        }
        self.follow(at_ns, requests);
        let Some((slow_per_s, excess_per_s)) = burst.filter(|_| self.open.is_none()) else { return };
        let from_ns = after(at_ns, self.horizon_s - AVERAGED_S);
        self.open =
            Some(Burst { from_ns, due_ns: after(at_ns, self.horizon_s), slow_per_s, excess_per_s, arrived: 0.0 });
    }

    fn follow(&mut self, at_ns: Nanos, requests: f64) {
        let Some(open) = self.open.as_mut() else { return };
        if at_ns > open.from_ns {
            open.arrived += requests;
        }
        if at_ns < open.due_ns {
            return;
        }
        let rate_per_s = open.arrived / seconds_between(open.from_ns, at_ns).max(1e-3);
        let left = ((rate_per_s - open.slow_per_s) / open.excess_per_s.max(1e-9)).clamp(0.0, MOST_LEFT);
        self.bursts = KEPT * self.bursts + 1.0;
        self.left = Left { share: left, square: left * left }.plus(self.left, KEPT);
        self.open = None;
    }

    /// What is believed to be left of a burst at the horizon.
    pub(crate) fn left(&self) -> Left {
        self.left.plus(self.lent, LENT_BURSTS).over(LENT_BURSTS + self.bursts)
    }

    /// What the fleet is like: each model counts for as much as it has seen, and none for more than one.
    pub(crate) fn of_fleet<'a>(fleet: impl Iterator<Item = &'a Self>) -> Left {
        let (mut left, mut models) = (Left::default(), 1.0);
        for one in fleet.filter(|one| one.bursts > 0.0) {
            let weight = one.bursts / (LENT_BURSTS + one.bursts);
            left = left.plus(one.left, weight / one.bursts);
            models += weight;
        }
        left.over(models)
    }

    /// Believes this of the model as far as its own bursts do not say otherwise.
    pub(crate) fn lend(&mut self, left: Left) {
        self.lent = left;
    }

    /// For a new epoch, whose clock has started anew.
    pub(crate) fn rebase(&mut self) {
        self.open = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NS_PER_S;

    /// Bursts of so many requests a second for 5 s every 100 s, and what else comes all the time.
    fn called(burst_per_s: f64, steady_per_s: f64) -> Bursts {
        let mut bursts = Bursts::default();
        bursts.look_ahead(20.0);
        for s in 0..2_000u64 {
            let within = s % 100 < 5;
            let burst = (within && burst_per_s > 0.0).then_some((steady_per_s, burst_per_s));
            bursts.take(s * NS_PER_S, steady_per_s + if within { burst_per_s } else { 0.0 }, burst);
        }
        bursts
    }

    #[test]
    fn a_burst_that_is_always_over_is_not_believed_and_a_first_one_is() {
        assert_eq!(Bursts::default().left().share(), 1.0);
        let over = called(4.0, 0.0).left();
        assert!(over.share() < 0.2 && over.spread() < 0.5, "{over:?}");
        let mut stays = Bursts::default();
        stays.look_ahead(20.0);
        (0..600u64).for_each(|s| stays.take(s * NS_PER_S, 3.0, Some((0.0, 3.0))));
        let all = stays.left();
        assert!((all.share() - 1.0).abs() < 0.05 && all.spread() < 0.2, "{all:?}");
    }

    #[test]
    fn a_new_model_is_believed_to_be_like_the_fleet() {
        let fleet: Vec<Bursts> = (0..10).map(|_| called(4.0, 0.0)).collect();
        let left = Bursts::of_fleet(fleet.iter());
        assert!(left.share() < 0.3, "{left:?}");
        let mut new = Bursts::default();
        new.lend(left);
        assert_eq!(new.left(), left);
        assert_eq!(Bursts::of_fleet([].iter()), Left::default());
    }

    #[test]
    fn an_unknown_horizon_and_a_clock_that_starts_anew_do_no_harm() {
        let mut bursts = Bursts::default();
        bursts.take(5, 1.0, Some((0.0, 1.0)));
        bursts.look_ahead(10.0);
        bursts.take(100 * NS_PER_S, 1.0, Some((0.0, 1.0)));
        bursts.rebase();
        bursts.take(1, f64::MAX, Some((0.0, 0.0)));
        bursts.take(Nanos::MAX, f64::MAX, Some((0.0, 0.0)));
        let left = bursts.left();
        assert!((0.0..=1.0).contains(&left.share()) && left.spread().is_finite(), "{left:?}");
    }
}
