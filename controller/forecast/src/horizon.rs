//! One horizon: the experts' quantiles, their mix, and its correction.
//!
//! What the mix is off by is made good by adaptive conformal correction (Gibbs and Candes, "Adaptive conformal inference
//! under distribution shift", 2021, in the form of Angelopoulos, Candes and Tibshirani's quantile tracker, "Conformal
//! PID control for time series prediction", 2023): each miss moves the quantile out, each hit moves it in, in the ratio
//! that keeps the stated share in the long run whatever the load does.

use crate::QUANTILES;
use crate::blend::{Blend, COUNT, Mixes, Said, pinball};
use crate::calendar::Calendar;
use crate::experts::{Basis, EXPERTS, Experts, prior};
use crate::mixture::Likelihood;
use crate::points::Points;
use crate::regression::Regression;
use crate::scenario::rank_of;
use crate::sound;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Places among the quantiles: the median, and the one that plans go by.
const MEDIAN: usize = 3;
pub(crate) const HIGH: usize = 5;
/// Step of the conformal correction, in units of the usual error.
const CORRECTION: f64 = 0.006;
/// Weight of the newest error in the usual one, and the least that one is taken for.
const USUAL: (f64, f64) = (0.02, 0.1);
/// Bins before errors are remembered, and before weights are learned.
const WARM: (f64, f64) = (4.0, 12.0);

/// What is known of one horizon.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Horizon {
    /// Bins from the last one seen to the one forecast.
    pub(crate) ahead: usize,
    experts: Experts,
    blend: Blend,
    corrections: [f64; COUNT],
    record: Record,
    issued: VecDeque<Issue>,
    usual: f64,
}

/// What came of the 0.9 quantile, with the past discounted: outcomes, those at or below what was stated, the loss of
/// stating it, and each expert's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Record {
    outcomes: f64,
    within: f64,
    loss: f64,
    by_expert: Vec<f64>,
}

/// A forecast that waits for its outcome.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Issue {
    bins: f64,
    said: Said,
    basis: Basis,
    /// By quantile what the rules made of it, what that came to, what it was moved to, and, in order, what was stated.
    mixes: Mixes,
    mixed: [f64; COUNT],
    moved: [f64; COUNT],
    stated: [f64; COUNT],
}

impl Horizon {
    pub(crate) fn new(ahead: usize, bin_s: f64) -> Self {
        Self { ahead, experts: Experts::new(bin_s), blend: Blend::new(prior(bin_s)), ..Self::default() }
    }

    /// Learns from the outcome of the forecast that was made `ahead` bins before this one, and gives the rank that it
    /// took in that forecast.
    pub(crate) fn settle(&mut self, count: f64) -> Option<f64> {
        if self.issued.len() < self.ahead {
            return None;
        }
        let issue = self.issued.pop_front()?;
        let error = (count - issue.mixed[MEDIAN]).abs();
        self.usual = if self.usual == 0.0 { error } else { self.usual + USUAL.0 * (error - self.usual) };
        self.experts.learn(&issue.basis, count);
        if issue.bins > WARM.0 {
            self.experts.learn_errors(&issue.basis, count, self.ahead);
        }
        if issue.bins > WARM.1 {
            let usual = self.usual.max(USUAL.1);
            self.blend.learn(&issue.said, &issue.mixes, &issue.mixed, count, usual);
            for ((correction, q), moved) in self.corrections.iter_mut().zip(QUANTILES).zip(issue.moved) {
                // Each by its own value: where two have crossed, putting them in order would have one move the other.
                *correction += CORRECTION * usual * (f64::from(count > moved) - (1.0 - q));
            }
            self.record.take(&issue, count);
        }
        Some(rank_of(&issue.stated, count))
    }

    /// States the quantiles of the bin `ahead` bins from the last one, in requests per bin, in rising order. `now_s` is
    /// when that one ended.
    pub(crate) fn issue(&mut self, points: &Points, now_s: f64, bin_s: f64, calendar: &Calendar) -> [f64; COUNT] {
        let (said, basis) = self.experts.say(self.ahead, points, now_s, bin_s, calendar);
        let (mixes, mixed) = self.blend.mix(&said, self.ahead);
        let mut moved = mixed;
        for (moved, correction) in moved.iter_mut().zip(self.corrections) {
            *moved = sound(*moved + correction);
        }
        let mut stated = moved;
        stated.sort_by(f64::total_cmp);
        self.issued.push_back(Issue { bins: points.bins(), said, basis, mixes, mixed, moved, stated });
        stated
    }

    /// A fresh horizon that begins with what errors looked like here: see [`Experts::borrowed`].
    pub(crate) fn borrowed(&self, bin_s: f64) -> Self {
        Self { experts: self.experts.borrowed(bin_s), ..Self::new(self.ahead, bin_s) }
    }

    /// What is worth storing of it: no forecast that waits for its outcome.
    pub(crate) fn kept(&self) -> Self {
        Self {
            ahead: self.ahead,
            experts: self.experts.kept(),
            blend: self.blend.clone(),
            corrections: self.corrections,
            record: self.record.clone(),
            issued: VecDeque::new(),
            usual: self.usual,
        }
    }

    /// Forecasts whose outcomes will not be seen say nothing.
    pub(crate) fn withdraw(&mut self) {
        self.issued.clear();
    }

    /// The regression, to be fitted elsewhere and given back.
    pub(crate) fn regression(&self) -> &Regression {
        self.experts.regression()
    }

    pub(crate) fn regression_mut(&mut self) -> &mut Regression {
        self.experts.regression_mut()
    }

    /// Share of outcomes at or below the 0.9 quantile as stated, with the past discounted, and by which share the loss
    /// of stating it was above that of the expert that did best in hindsight; none before there are outcomes.
    pub(crate) fn skill(&self) -> Option<(f64, f64)> {
        let record = &self.record;
        let least = record.by_expert.iter().copied().fold(f64::MAX, f64::min);
        let regret = if least > 1e-9 { record.loss / least - 1.0 } else { 0.0 };
        (record.outcomes > 0.0).then(|| (record.within / record.outcomes, regret))
    }

    /// What each expert counts for in what is stated of the 0.9 quantile, in order of the experts; they sum to 1.
    pub(crate) fn weights(&self) -> Vec<f64> {
        self.blend.weights(HIGH, self.ahead)
    }
}

impl Record {
    fn take(&mut self, issue: &Issue, count: f64) {
        let (stated, q) = (issue.stated[HIGH], QUANTILES[HIGH]);
        self.outcomes = Likelihood::discounted(self.outcomes, 1.0);
        self.within = Likelihood::discounted(self.within, f64::from(count <= stated));
        self.loss = Likelihood::discounted(self.loss, pinball(q, count, stated));
        self.by_expert.resize(EXPERTS, 0.0);
        for (sum, said) in self.by_expert.iter_mut().zip(issue.said.at(HIGH)) {
            *sum = Likelihood::discounted(*sum, pinball(q, count, f64::from(*said)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corrections_that_have_crossed_come_back() {
        let (mut horizon, mut points, mut calendar) = (Horizon::new(1, 10.0), Points::new(), Calendar::default());
        let apart = |horizon: &Horizon| horizon.corrections[0] - horizon.corrections[COUNT - 1];
        for bin in 0..3_000u32 {
            // From here on the lowest quantile is stated far above the highest.
            if bin == 100 {
                horizon.corrections[0] = 50.0;
                horizon.corrections[COUNT - 1] = -50.0;
            }
            let count = 10.0 + f64::from(bin * 7 % 5);
            horizon.settle(count);
            points.observe(count, 10.0, Default::default());
            calendar.push(count, 10.0);
            horizon.issue(&points, f64::from(bin) * 10.0, 10.0, &calendar);
        }
        assert!(apart(&horizon) < 90.0, "{}", apart(&horizon));
    }
}
