//! Counts in bins of one width, and the quantiles of bins to come.
//!
//! A width has a few horizons that are a few bins long: seconds are forecast from seconds and hours from ten minutes, so
//! that no horizon drowns in noise and none needs a long memory.

use crate::calendar::Calendar;
use crate::horizon::Horizon;
use crate::points::Points;
use crate::regression::Regression;
use crate::signals::Signals;
use crate::{QUANTILES, sound};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// A refit is due after a twelfth of what has been seen, but no sooner and no later than so many bins.
const REFIT_BINS: (f64, f64) = (5.0, 200.0);
/// The first one.
const FIRST_REFIT_BINS: f64 = 40.0;
/// Weight of the newest pair of ranks.
const RANKS: f64 = 0.01;

/// Experts over bins of one width.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Level {
    bin_s: f64,
    /// Time since the first bin began, s.
    at_s: f64,
    points: Points,
    calendar: Calendar,
    horizons: Vec<Horizon>,
    stated: Vec<Vec<f64>>,
    fitted_at_bin: f64,
    /// Ranks that outcomes took at the nearest horizon, whose forecasts at the farthest are still open.
    near_ranks: VecDeque<f64>,
    /// Mean product of ranks near and far, each from -1 to 1 and of variance 1/3.
    rank_product: f64,
}

impl Level {
    /// Bins of `bin_s` seconds, forecast at these numbers of bins ahead (at least 1).
    pub fn new(bin_s: f64, ahead: &[usize]) -> Self {
        let horizons: Vec<Horizon> = ahead.iter().map(|ahead| Horizon::new((*ahead).max(1), bin_s)).collect();
        let stated = vec![vec![0.0; QUANTILES.len()]; horizons.len()];
        Self { bin_s, points: Points::new(), horizons, stated, ..Self::default() }
    }

    /// Width of a bin, s.
    pub fn bin_s(&self) -> f64 {
        self.bin_s
    }

    /// Bins seen.
    pub fn bins(&self) -> u64 {
        self.points.bins() as u64
    }

    /// Takes in the bin that has just ended. A count that is no number is taken as 0.
    pub fn observe(&mut self, count: f64, signals: Signals) {
        let count = sound(count);
        let ranks: Vec<Option<f64>> = self.horizons.iter_mut().map(|horizon| horizon.settle(count)).collect();
        self.compare_ranks(&ranks);
        self.points.observe(count, self.bin_s, signals);
        self.calendar.push(count, self.bin_s);
        self.at_s += self.bin_s;
        for (horizon, stated) in self.horizons.iter_mut().zip(&mut self.stated) {
            *stated = horizon.issue(&self.points, self.at_s, self.bin_s, &self.calendar).to_vec();
        }
    }

    /// Outcomes come in the order of their forecasts, so the oldest open near rank belongs to the far one at hand.
    fn compare_ranks(&mut self, ranks: &[Option<f64>]) {
        let signed = |rank: &Option<f64>| rank.map(|rank| 2.0 * rank - 1.0);
        self.near_ranks.extend(ranks.first().and_then(signed));
        if let Some(far) = ranks.last().and_then(signed)
            && let Some(near) = self.near_ranks.pop_front()
        {
            self.rank_product += RANKS * (near * far - self.rank_product);
        }
    }

    /// Correlation of the normal scores of ranks near and far (Pearson's conversion of Spearman's coefficient).
    pub fn rank_correlation(&self) -> f64 {
        2.0 * (std::f64::consts::FRAC_PI_6 * (3.0 * self.rank_product).clamp(-1.0, 1.0)).sin()
    }

    /// What is worth storing: see [`Horizon::kept`].
    pub(crate) fn kept(&self) -> Self {
        Self {
            bin_s: self.bin_s,
            at_s: self.at_s,
            points: self.points.kept(),
            calendar: self.calendar.clone(),
            horizons: self.horizons.iter().map(|one| one.kept()).collect(),
            stated: self.stated.clone(),
            fitted_at_bin: self.fitted_at_bin,
            near_ranks: VecDeque::new(),
            rank_product: self.rank_product,
        }
    }

    /// Goes on after a time in which nothing was seen.
    pub(crate) fn skip(&mut self, over_s: f64) {
        self.calendar.skip(over_s);
        self.at_s += sound(over_s);
        self.near_ranks.clear();
        for horizon in &mut self.horizons {
            horizon.withdraw();
        }
    }

    /// An empty level that begins with what errors looked like here, and with the regressions.
    pub fn borrowed(&self) -> Self {
        let horizons: Vec<Horizon> = self.horizons.iter().map(|one| one.borrowed(self.bin_s)).collect();
        let stated = vec![vec![0.0; QUANTILES.len()]; horizons.len()];
        Self { bin_s: self.bin_s, points: Points::new(), horizons, stated, ..Self::default() }
    }

    /// Quantiles ([`QUANTILES`]) of the count of the bin at a horizon, by its place in the list given to
    /// [`Level::new`]; they do not fall. Zeros before the first bin.
    pub fn quantiles(&self, horizon: usize) -> &[f64] {
        &self.stated[horizon]
    }

    /// The horizons, in bins.
    pub fn ahead(&self) -> impl Iterator<Item = usize> {
        self.horizons.iter().map(|horizon| horizon.ahead)
    }

    pub(crate) fn horizon(&self, at: usize) -> &Horizon {
        &self.horizons[at]
    }

    /// Whether enough has been seen since the last fit for another.
    pub fn refit_is_due(&self) -> bool {
        let bins = self.points.bins();
        let wait = (bins / 12.0).clamp(REFIT_BINS.0, REFIT_BINS.1);
        bins >= FIRST_REFIT_BINS && bins - self.fitted_at_bin >= wait
    }

    /// Fits the regressions anew. Its work is bounded (tens of milliseconds), but not small: call it off the path
    /// of anything that waits, or take the work elsewhere by [`Level::refit_due`].
    pub fn refit(&mut self) {
        if let Some(refit) = self.take_refit() {
            self.refitted(refit.fit());
        }
    }

    /// The regressions with what they are to be fitted to, if a fit is due.
    pub(crate) fn refit_due(&mut self) -> Option<LevelRefit> {
        if self.refit_is_due() { self.take_refit() } else { None }
    }

    fn take_refit(&mut self) -> Option<LevelRefit> {
        self.fitted_at_bin = self.points.bins();
        let regressions: Vec<Regression> = self.horizons.iter().map(|one| one.regression().clone()).collect();
        (!regressions.is_empty()).then_some(LevelRefit { regressions })
    }

    /// Takes over what was fitted.
    pub(crate) fn refitted(&mut self, refit: LevelRefit) {
        for (horizon, fitted) in self.horizons.iter_mut().zip(refit.regressions) {
            horizon.regression_mut().adopt(fitted);
        }
    }
}

/// The regressions of one level, apart from it.
#[derive(Clone, Debug)]
pub(crate) struct LevelRefit {
    regressions: Vec<Regression>,
}

impl LevelRefit {
    pub(crate) fn fit(mut self) -> Self {
        for regression in &mut self.regressions {
            regression.refit();
        }
        self
    }
}
