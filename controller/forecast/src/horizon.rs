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
use crate::points::{self, POINTS, Points, Scales, memory_bins};
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
const MEMORY: (usize, usize) = (800, 64);
pub(crate) const EXPERTS: usize = POINTS * SPREADS + 1;
/// How long a good expert's memory usually is, s, and the spread of that in doublings.
const USUAL_MEMORY: (f64, f64) = (240.0, 1.5);
/// No expert begins with less than this against the likeliest.
const LEAST_LIKELY: f64 = 0.02;
/// What seasons begin with against others of the same memory, and the regression against the likeliest mean.
const LATE: (f64, f64) = (0.2, 0.3);
/// Place of the median among the quantiles.
const MEDIAN: usize = 3;
/// How much an expert's weight at one quantile owes to its skill over all of them.
const SHARED: f64 = 0.4;
/// Step of the conformal correction, in units of the usual error.
const CORRECTION: f64 = 0.01;
/// Weight of the newest error in the usual one.
const USUAL: f64 = 0.02;
/// What the two rules begin with.
const EVEN: [f64; 2] = [0.5; 2];
/// Bins before errors are remembered, and before weights are learned.
const WARM: (f64, f64) = (8.0, 20.0);

/// What is known of one horizon.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Horizon {
    /// Bins from the last one seen to the one forecast.
    pub(crate) ahead: usize,
    prior: Vec<f64>,
    windows: Vec<Residuals>,
    rules: Vec<Rule>,
    regression: Regression,
    issued: VecDeque<Issue>,
    usual: f64,
}

/// How the experts are combined at one quantile, and what came of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Rule {
    guarded: Aggregation,
    quick: Likelihood,
    between: Aggregation,
    correction: f64,
    /// Discounted: outcomes, those at or below what was stated, and the loss of stating it.
    outcomes: f64,
    within: f64,
    loss: f64,
}

/// A forecast that waits for its outcome.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Issue {
    bins: f64,
    points: Vec<f64>,
    units: Vec<[f64; SPREADS]>,
    features: Features,
    local: (f64, f64),
    /// What the experts said, quantile by quantile; then by quantile the two mixes, what they came to, and what was
    /// stated.
    said: Vec<f32>,
    mixes: Vec<[f32; 2]>,
    mixed: Vec<f64>,
    stated: Vec<f64>,
}

impl Issue {
    fn said(&self, quantile: usize) -> &[f32] {
        &self.said[quantile * EXPERTS..(quantile + 1) * EXPERTS]
    }
}

impl Horizon {
    pub(crate) fn new(ahead: usize, bin_s: f64) -> Self {
        let prior = prior(bin_s);
        let memory = [MEMORY.0, MEMORY.0, MEMORY.1, MEMORY.0];
        let rule = Rule {
            guarded: Aggregation::new(&prior),
            quick: Likelihood::new(prior.len()),
            between: Aggregation::new(&EVEN),
            ..Rule::default()
        };
        Self {
            ahead,
            prior,
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
    pub(crate) fn borrowed(&self, bin_s: f64) -> Self {
        let mut fresh = Self::new(self.ahead, bin_s);
        for (at, (to, from)) in fresh.windows.iter_mut().zip(&self.windows).enumerate() {
            if at % SPREADS != PLAIN {
                *to = from.clone();
            }
        }
        fresh.regression = self.regression.borrowed();
        fresh
    }

    /// What is worth storing of it: no forecast that waits for its outcome, and of errors the newest.
    pub(crate) fn kept(&self, errors: usize) -> Self {
        Self {
            ahead: self.ahead,
            prior: self.prior.clone(),
            windows: self.windows.iter().map(|window| window.newest(errors)).collect(),
            rules: self.rules.clone(),
            regression: self.regression.borrowed(),
            issued: VecDeque::new(),
            usual: self.usual,
        }
    }

    /// Moves weights and corrections.
    fn weigh(&mut self, issue: &Issue, count: f64) {
        let unit = self.usual.max(0.1);
        // By how much each expert did better than the mix by its linearised loss, at each quantile and on average.
        let mut gains = vec![0.0; EXPERTS * QUANTILES.len()];
        let mut shared = vec![0.0; EXPERTS];
        for (at, q) in QUANTILES.into_iter().enumerate() {
            let mix = f64::from(issue.mixes[at][0]);
            let slope = slope(q, count, mix) / unit;
            let own = &mut gains[at * EXPERTS..(at + 1) * EXPERTS];
            for ((own, shared), said) in own.iter_mut().zip(&mut shared).zip(issue.said(at)) {
                *own = slope * (mix - f64::from(*said));
                *shared += *own / QUANTILES.len() as f64;
            }
        }
        for (at, q) in QUANTILES.into_iter().enumerate() {
            let rule = &mut self.rules[at];
            let own = &gains[at * EXPERTS..(at + 1) * EXPERTS];
            rule.guarded.learn(&self.prior, own.iter().zip(&shared).map(|(own, all)| own + SHARED * (all - own)));
            rule.quick.learn(issue.said(at).iter().map(|said| pinball(q, count, f64::from(*said))));
            let (mixed, slope) = (issue.mixed[at], slope(q, count, issue.mixed[at]));
            rule.between.learn(&EVEN, issue.mixes[at].iter().map(|mix| slope * (mixed - f64::from(*mix)) / unit));
            let stated = issue.stated[at];
            rule.correction += CORRECTION * unit * (f64::from(count > stated) - (1.0 - q));
            rule.outcomes = Likelihood::discounted(rule.outcomes, 1.0);
            rule.within = Likelihood::discounted(rule.within, f64::from(count <= stated));
            rule.loss = Likelihood::discounted(rule.loss, pinball(q, count, stated));
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
            said: Vec::with_capacity(EXPERTS * QUANTILES.len()),
            ..Issue::default()
        };
        for (at, q) in QUANTILES.into_iter().enumerate() {
            let by_windows = self.windows.iter().enumerate().map(|(at, window)| {
                let (point, spread) = (at / SPREADS, at % SPREADS);
                said_points[point] + units[point][spread] * window.quantile(q)
            });
            let by_regression = self.regression.predict(at, &features).map_or(local.0, |z| local.0 + local.1 * z);
            issue.said.extend(by_windows.chain([by_regression]).map(|count| sound(count) as f32));
            let (rule, said) = (&self.rules[at], issue.said(at));
            let guarded = rule.guarded.mix(said);
            let quick = rule.quick.mix(said, &self.prior, self.ahead).unwrap_or(guarded);
            let mixes = [guarded as f32, quick as f32];
            let mixed = rule.between.mix(&mixes);
            issue.mixes.push(mixes);
            issue.mixed.push(mixed);
            issue.stated.push(sound(mixed + rule.correction));
        }
        issue.stated.sort_by(f64::total_cmp);
        let stated = issue.stated.clone();
        self.issued.push_back(issue);
        stated
    }

    /// Forecasts whose outcomes will not be seen say nothing.
    pub(crate) fn withdraw(&mut self) {
        self.issued.clear();
    }

    /// The regression, to be fitted elsewhere and given back.
    pub(crate) fn regression(&self) -> &Regression {
        &self.regression
    }

    pub(crate) fn regression_mut(&mut self) -> &mut Regression {
        &mut self.regression
    }

    /// Share of outcomes at or below what was stated for a quantile, and by which share the loss was above that of the
    /// expert that did best in hindsight, both with the past discounted; none before there are outcomes.
    pub(crate) fn skill(&self, quantile: usize) -> Option<(f64, f64)> {
        let rule = self.rules.get(quantile).filter(|rule| rule.outcomes > 0.0)?;
        let least = rule.quick.least_loss();
        let regret = if least > 1e-9 { rule.loss / least - 1.0 } else { 0.0 };
        Some((rule.within / rule.outcomes, regret))
    }

    /// What each expert counts for in what is stated of a quantile, in order of the experts; the weights sum to 1.
    pub(crate) fn weights(&self, quantile: usize) -> Vec<f64> {
        let Some(rule) = self.rules.get(quantile) else { return Vec::new() };
        let guarded = rule.guarded.weights();
        let Some(likely) = rule.quick.likely(&self.prior, self.ahead) else { return guarded.to_vec() };
        let likely: Vec<f64> = likely.collect();
        let sum: f64 = likely.iter().sum();
        let [by_guarded, by_quick] = [0, 1].map(|rule_at| rule.between.weights()[rule_at]);
        guarded.iter().zip(&likely).map(|(one, other)| by_guarded * one + by_quick * other / sum).collect()
    }
}

/// An expert in words, by its place.
pub(crate) fn expert_name(expert: usize) -> String {
    let by = ["spread as ever", "spread by level", "spread by level lately", "spread by errors lately"];
    match points::NAMES.get(expert / SPREADS) {
        Some(point) => format!("{point}, {}", by[expert % SPREADS]),
        None => "regression".to_owned(),
    }
}

/// Weights to begin with. Levels of traffic move within minutes, whatever the bins are, so a mean that remembers for
/// about that long is likelier to be right than one of seconds or of hours. Seasons and the regression have to show
/// first that there is something that they know.
fn prior(bin_s: f64) -> Vec<f64> {
    let of_point = |point: usize| {
        let apart = (memory_bins(point) * bin_s / USUAL_MEMORY.0).log2() / USUAL_MEMORY.1;
        let likely = (-0.5 * apart * apart).exp().max(LEAST_LIKELY);
        if point + 2 >= POINTS { LATE.0 * likely } else { likely }
    };
    let mut prior: Vec<f64> = (0..POINTS * SPREADS).map(|expert| of_point(expert / SPREADS)).collect();
    prior.push(LATE.1);
    let sum: f64 = prior.iter().sum();
    prior.into_iter().map(|likely| likely / sum).collect()
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
