//! One horizon: every expert's quantiles, their mix, and its correction.
//!
//! An expert is a point ([`crate::points`]) with a scale and a window of past errors in units of that scale, so each
//! gives a whole distribution; the regression gives its quantiles directly. They are mixed per quantile, and what the
//! mix is still off by is made good by adaptive conformal correction (Gibbs and Candes, "Adaptive conformal inference
//! under distribution shift", 2021, in the form of Angelopoulos, Candes and Tibshirani's quantile tracker, "Conformal
//! PID control for time series prediction", 2023): each miss moves the quantile out, each hit moves it in, in the ratio
//! that keeps the stated share in the long run whatever the load does.

use crate::calendar::Calendar;
use crate::mixture::{Aggregation, Likelihood};
use crate::points::{POINTS, Points, Scales};
use crate::regression::{Features, Regression};
use crate::residuals::Residuals;
use crate::scenario::rank_of;
use crate::{QUANTILES, sound};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Ways to turn one point into a distribution: plain errors; errors by the root of the level, of long and short
/// memory; errors by what they have been lately.
const SPREADS: usize = 4;
const PLAIN: usize = 0;
/// Errors remembered by long and short memory.
const MEMORY: (usize, usize) = (400, 64);
const EXPERTS: usize = POINTS * SPREADS + 1;
/// Place of the median among the quantiles.
const MEDIAN: usize = 3;
/// How much an expert's weight at one quantile owes to its skill over all of them.
const SHARED: f64 = 0.4;
/// Step of the conformal correction, in units of the usual error.
const CORRECTION: f64 = 0.01;
/// Weight of the newest error in the usual one.
const USUAL: f64 = 0.02;
/// Bins before errors are remembered, and before weights are learned.
const WARM: (f64, f64) = (8.0, 20.0);

/// What is known of one horizon.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Horizon {
    /// Bins from the last one seen to the one forecast.
    pub(crate) ahead: usize,
    windows: Vec<Residuals>,
    rules: Vec<Rule>,
    regression: Regression,
    issued: VecDeque<Issue>,
    usual: f64,
}

/// How the experts are combined at one quantile.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Rule {
    guarded: Aggregation,
    quick: Likelihood,
    between: Aggregation,
    correction: f64,
}

/// A forecast that waits for its outcome.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Issue {
    bins: f64,
    points: Vec<f64>,
    units: Vec<[f64; SPREADS]>,
    features: Features,
    local: (f64, f64),
    /// By quantile: what the experts said, the two mixes, what they came to, and what was stated.
    said: Vec<Vec<f32>>,
    mixes: Vec<[f32; 2]>,
    mixed: Vec<f64>,
    stated: Vec<f64>,
}

impl Horizon {
    pub(crate) fn new(ahead: usize) -> Self {
        let memory = [MEMORY.0, MEMORY.0, MEMORY.1, MEMORY.0];
        let rule = Rule {
            guarded: Aggregation::new(EXPERTS),
            quick: Likelihood::new(EXPERTS),
            between: Aggregation::new(2),
            correction: 0.0,
        };
        Self {
            ahead,
            windows: (0..POINTS * SPREADS).map(|at| Residuals::new(memory[at % SPREADS])).collect(),
            rules: vec![rule; QUANTILES.len()],
            ..Self::default()
        }
    }

    /// Learns from the outcome of the forecast that was made `ahead` bins before this one, and gives the rank that it
    /// took in that forecast.
    pub(crate) fn settle(&mut self, count: f64) -> Option<f64> {
        if self.issued.len() < self.ahead {
            return None;
        }
        let issue = self.issued.pop_front()?;
        let error = (count - issue.mixed[MEDIAN]).abs();
        self.usual = if self.usual == 0.0 { error } else { self.usual + USUAL * (error - self.usual) };
        self.regression.push(issue.features, (count - issue.local.0) / issue.local.1);
        if issue.bins > WARM.0 {
            for (at, window) in self.windows.iter_mut().enumerate() {
                let (point, spread) = (at / SPREADS, at % SPREADS);
                window.push((count - issue.points[point]) / issue.units[point][spread]);
            }
        }
        if issue.bins > WARM.1 {
            self.weigh(&issue, count);
        }
        Some(rank_of(&issue.stated, count))
    }

    /// A fresh horizon with the same shapes of errors, where those are in relative units, and the same regression.
    pub(crate) fn borrowed(&self) -> Self {
        let mut fresh = Self::new(self.ahead);
        for (at, (to, from)) in fresh.windows.iter_mut().zip(&self.windows).enumerate() {
            if at % SPREADS != PLAIN {
                *to = from.clone();
            }
        }
        fresh.regression = self.regression.borrowed();
        fresh
    }

    /// Moves weights and corrections.
    fn weigh(&mut self, issue: &Issue, count: f64) {
        let unit = self.usual.max(0.1);
        // By how much each expert did better than the mix by its linearised loss, at each quantile and on average.
        let mut gains = vec![vec![0.0; EXPERTS]; QUANTILES.len()];
        let mut shared = vec![0.0; EXPERTS];
        for (at, q) in QUANTILES.into_iter().enumerate() {
            let mix = f64::from(issue.mixes[at][0]);
            let slope = slope(q, count, mix);
            for expert in 0..EXPERTS {
                let gain = slope * (mix - f64::from(issue.said[at][expert])) / unit;
                gains[at][expert] = gain;
                shared[expert] += gain / QUANTILES.len() as f64;
            }
        }
        for (at, q) in QUANTILES.into_iter().enumerate() {
            let rule = &mut self.rules[at];
            let blend = gains[at].iter().zip(&shared).map(|(own, all)| own + SHARED * (all - own));
            rule.guarded.learn(blend);
            rule.quick.learn(issue.said[at].iter().map(|said| pinball(q, count, f64::from(*said))));
            let (mixed, slope) = (issue.mixed[at], slope(q, count, issue.mixed[at]));
            rule.between.learn(issue.mixes[at].iter().map(|mix| slope * (mixed - f64::from(*mix)) / unit));
            let missed = f64::from(count > issue.stated[at]);
            rule.correction += CORRECTION * unit * (missed - (1.0 - q));
        }
    }

    /// States the quantiles of the bin `ahead` bins from the last one, in requests per bin, in rising order.
    pub(crate) fn issue(&mut self, points: &Points, bin_s: f64, calendar: &Calendar) -> Vec<f64> {
        let said_points = points.at(self.ahead, bin_s, calendar);
        let units = said_points.map(|level| units(points.scales(level)));
        let features = points.features(self.ahead, bin_s, calendar);
        let local = points.local();
        let mut issue = Issue {
            bins: points.bins(),
            points: said_points.to_vec(),
            units: units.to_vec(),
            features,
            local,
            ..Issue::default()
        };
        for (at, q) in QUANTILES.into_iter().enumerate() {
            let by_windows = self.windows.iter().enumerate().map(|(at, window)| {
                let (point, spread) = (at / SPREADS, at % SPREADS);
                said_points[point] + units[point][spread] * window.quantile(q)
            });
            let by_regression = self.regression.predict(at, &features).map_or(local.0, |z| local.0 + local.1 * z);
            let said: Vec<f32> = by_windows.chain([by_regression]).map(|count| sound(count) as f32).collect();
            let rule = &self.rules[at];
            let guarded = rule.guarded.mix(&said);
            let mixes = [guarded, rule.quick.mix(&said, self.ahead).unwrap_or(guarded)].map(|mix| mix as f32);
            let mixed = rule.between.mix(&mixes);
            issue.said.push(said);
            issue.mixes.push(mixes);
            issue.mixed.push(mixed);
            issue.stated.push(sound(mixed + rule.correction));
        }
        issue.stated.sort_by(f64::total_cmp);
        let stated = issue.stated.clone();
        self.issued.push_back(issue);
        stated
    }

    pub(crate) fn refit(&mut self) {
        self.regression.refit(&QUANTILES);
    }

    /// Share of weight on each kind of expert at one quantile: means, trend, seasons, regression.
    pub(crate) fn shares(&self, quantile: usize) -> [f64; 4] {
        let mut shares = [0.0; 4];
        let Some(rule) = self.rules.get(quantile) else { return shares };
        for (expert, weight) in rule.guarded.weights().iter().enumerate() {
            let kind = match expert / SPREADS {
                POINTS => 3,
                point if point + 2 >= POINTS => 2,
                point if point + 3 >= POINTS => 1,
                _ => 0,
            };
            shares[kind] += weight;
        }
        shares
    }
}

fn units(scales: Scales) -> [f64; SPREADS] {
    [1.0, scales.root, scales.root, scales.lately]
}

/// Pinball loss of stating `stated` as the `q` quantile of what turned out to be `count`.
pub fn pinball(q: f64, count: f64, stated: f64) -> f64 {
    if count >= stated { q * (count - stated) } else { (1.0 - q) * (stated - count) }
}

/// Its slope in `stated`.
fn slope(q: f64, count: f64, stated: f64) -> f64 {
    if count < stated { 1.0 - q } else { -q }
}
