//! One horizon: every expert's quantiles, their mix, and its correction.
//!
//! An expert is a point ([`crate::points`]) with the spread of its errors ([`crate::spread`]) under one of several ideas
//! of what errors are proportional to, so each gives a whole distribution; the counts of the past and the regression
//! give their quantiles directly. They are mixed by groups of quantiles, and what the mix is still off by is made good by
//! adaptive conformal correction (Gibbs and Candes, "Adaptive conformal inference under distribution shift", 2021, in
//! the form of Angelopoulos, Candes and Tibshirani's quantile tracker, "Conformal PID control for time series
//! prediction", 2023): each miss moves the quantile out, each hit moves it in, in the ratio that keeps the stated share
//! in the long run whatever the load does.

use crate::calendar::Calendar;
use crate::mixture::{Aggregation, Likelihood};
use crate::points::{self, POINTS, Points, is_seasonal, memory_bins};
use crate::regression::{Features, Regression};
use crate::scenario::rank_of;
use crate::seasons::{Seasons, Went};
use crate::spread::Spread;
use crate::{QUANTILES, sound};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

const COUNT: usize = QUANTILES.len();
/// What errors are proportional to: nothing; the root of the level, over long and short memory; what they were lately.
const SPREADS: usize = 4;
const PLAIN: usize = 0;
/// Errors over which the scale of each is remembered.
const MEMORY: [f32; SPREADS] = [800.0, 800.0, 25.0, 400.0];
/// The counts of long and short memory as they are, and the regression.
const DIRECT: usize = points::WINDOWS + 1;
pub(crate) const EXPERTS: usize = POINTS * SPREADS + DIRECT;
/// How long a good expert's memory usually is, s, and the spread of that in doublings.
const USUAL_MEMORY: (f64, f64) = (240.0, 1.5);
/// No expert begins with less than this against the likeliest.
const LEAST_LIKELY: f64 = 0.02;
/// What seasons begin with against others of the same memory, and each direct one against the likeliest mean.
const LATE: (f64, [f64; DIRECT]) = (0.5, [0.3, 0.3, 0.3]);
/// Place of the median among the quantiles.
const MEDIAN: usize = 3;
/// Quantiles that are weighed together, and the loss of each for normal errors of unit size.
const GROUP: [usize; COUNT] = [0, 0, 0, 1, 1, 2, 2, 3, 3];
const GROUPS: usize = 4;
const NORMAL_LOSS: [f64; COUNT] = [0.103, 0.175, 0.318, 0.399, 0.318, 0.175, 0.103, 0.048, 0.027];
/// How much an expert's weight at one group owes to its skill over all of them.
const SHARED: f64 = 0.4;
/// Step of the conformal correction, in units of the usual error.
const CORRECTION: f64 = 0.01;
/// Weight of the newest error in the usual one.
const USUAL: f64 = 0.02;
/// What the two rules begin with.
fn even() -> [f64; 3] { let e = crate::tune("EVEN", 0.1); let b = crate::tune("BAYES", 0.6); [e, 1.0 - e - b, b] }
/// Bins before errors are remembered, and before weights are learned.
const WARM: (f64, f64) = (4.0, 12.0);

/// What is known of one horizon.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Horizon {
    /// Bins from the last one seen to the one forecast.
    pub(crate) ahead: usize,
    prior: Vec<f64>,
    spreads: Vec<Spread>,
    rules: Vec<Rule>,
    marks: [Mark; COUNT],
    regression: Regression,
    seasons: Seasons,
    issued: VecDeque<Issue>,
    usual: f64,
    density: Vec<f64>,
}

/// How the experts are combined over a group of quantiles.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Rule {
    guarded: Aggregation,
    quick: Likelihood,
    between: Aggregation,
}

/// What a quantile is corrected by, and what came of it, discounted: outcomes, those at or below what was stated, the
/// loss of stating it, and the loss of the expert that did best.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Mark {
    correction: f64,
    outcomes: f64,
    within: f64,
    loss: f64,
}

/// A forecast that waits for its outcome.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Issue {
    bins: f64,
    points: Vec<f64>,
    /// Standard deviations that were stated, and the units that they are in.
    widths: Vec<f32>,
    units: Vec<[f32; SPREADS]>,
    features: Features,
    local: (f64, f64),
    went: Went,
    /// What the experts said, quantile by quantile; then by quantile the two mixes, what they came to, and what was
    /// stated.
    said: Vec<f32>,
    mixes: [[f32; 3]; COUNT],
    mixed: [f64; COUNT],
    stated: [f64; COUNT],
}

impl Issue {
    fn said(&self, quantile: usize) -> &[f32] {
        &self.said[quantile * EXPERTS..(quantile + 1) * EXPERTS]
    }
}

impl Horizon {
    pub(crate) fn new(ahead: usize, bin_s: f64) -> Self {
        let prior = prior(bin_s);
        let rule = Rule {
            guarded: Aggregation::new(&prior),
            quick: Likelihood::new(prior.len()),
            between: Aggregation::new(&even()),
        };
        Self {
            ahead,
            prior,
            spreads: vec![Spread::default(); POINTS * SPREADS],
            rules: vec![rule; GROUPS],
            seasons: Seasons::new(bin_s),
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
        self.regression.push(&issue.features, (count - issue.local.0) / issue.local.1);
        self.seasons.learn(&issue.went, count);
        if issue.bins > WARM.0 {
            self.spread(&issue, count);
        }
        if issue.bins > WARM.1 {
            self.weigh(&issue, count);
            self.mark(&issue, count);
            self.learn_density(&issue, count);
        }
        Some(rank_of(&issue.stated, count))
    }

    /// Takes errors in.
    fn spread(&mut self, issue: &Issue, count: f64) {
        for (at, spread) in self.spreads.iter_mut().enumerate() {
            let (point, idea) = (at / SPREADS, at % SPREADS);
            let error = (count - issue.points[point]) as f32;
            let width = issue.widths[at];
            let (unit, grain) = (issue.units[point][idea], 0.5 / width);
            spread.learn(error / unit, error / width, [crate::tune("M0",800.),crate::tune("M1",800.),crate::tune("M2",25.),crate::tune("M3",400.)][idea] as f32, [crate::tune("SM0", 500.0), crate::tune("SM1", 500.0), crate::tune("SM2", 35.0), crate::tune("SM3", 500.0)][idea] as f32, grain, self.ahead as f32);
        }
    }

    /// A fresh horizon with the same shapes of errors, where those are in relative units, and the same regression.
    pub(crate) fn borrowed(&self, bin_s: f64) -> Self {
        let mut fresh = Self::new(self.ahead, bin_s);
        for (at, (to, from)) in fresh.spreads.iter_mut().zip(&self.spreads).enumerate() {
            if at % SPREADS != PLAIN {
                *to = from.borrowed();
            }
        }
        fresh.regression = self.regression.borrowed();
        fresh
    }

    /// What is worth storing of it: no forecast that waits for its outcome.
    pub(crate) fn kept(&self) -> Self {
        Self { regression: self.regression.borrowed(), issued: VecDeque::new(), ..self.clone() }
    }

    /// Moves weights.
    fn weigh(&mut self, issue: &Issue, count: f64) {
        let unit = self.usual.max(0.1);
        // By how much each expert did better than the mix by its linearised loss, in each group and on average; and each
        // one's loss.
        let mut gains = [[0.0; EXPERTS]; GROUPS];
        let mut losses = [[0.0; EXPERTS]; GROUPS];
        let mut shared = [[0.0; EXPERTS]; 2];
        let mut between = [[0.0; 3]; GROUPS];
        for (at, q) in QUANTILES.into_iter().enumerate() {
            let (mix, group) = (f64::from(issue.mixes[at][0]), GROUP[at]);
            let norm = 1.0 / (NORMAL_LOSS[at] * COUNT as f64);
            let by_mix = norm * slope(q, count, mix) / unit;
            for (expert, said) in issue.said(at).iter().enumerate() {
                let said = f64::from(*said);
                let (gain, loss) = (by_mix * (mix - said), norm * pinball(q, count, said));
                gains[group][expert] += gain;
                losses[group][expert] += loss;
                shared[0][expert] += gain;
                shared[1][expert] += loss;
            }
            let mixed = issue.mixed[at];
            let slope = norm * slope(q, count, mixed) / unit;
            for (to, mix) in between[group].iter_mut().zip(issue.mixes[at]) {
                *to += slope * (mixed - f64::from(mix));
            }
        }
        for (group, rule) in self.rules.iter_mut().enumerate() {
            let weigh = |own: f64, all: f64| own * GROUP_SHARE[group] * (1.0 - crate::tune("SHARED", SHARED)) + crate::tune("SHARED", SHARED) * all;
            let by = gains[group].iter().zip(&shared[0]).map(|(own, all)| weigh(*own, *all));
            rule.guarded.learn(&self.prior, by);
            rule.quick.learn(losses[group].iter().zip(&shared[1]).map(|(own, all)| weigh(*own, *all)));
            rule.between.learn(&even(), between[group].iter().map(|gain| gain * GROUP_SHARE[group]));
        }
    }

    fn by_density(&self) -> Vec<f64> {
        let tau = crate::tune("TAU", 0.7) / (self.ahead as f64).powf(crate::tune("TP", 0.5));
        let top = self.density.iter().copied().fold(f64::MIN, f64::max);
        let mut w: Vec<f64> = self.density.iter().zip(&self.prior).map(|(l, p)| p * (tau * (l - top)).exp()).collect();
        if w.is_empty() { return self.prior.clone(); }
        let s: f64 = w.iter().sum();
        w.iter_mut().for_each(|x| *x /= s);
        w
    }

    fn learn_density(&mut self, issue: &Issue, count: f64) {
        self.density.resize(EXPERTS, 0.0);
        let nu = crate::tune("NU", 6.0);
        let keep = 1.0 - 1.0 / crate::tune("DK", 500.0);
        for e in 0..EXPERTS {
            let (lo, m, hi) = (f64::from(issue.said(0)[e]), f64::from(issue.said(3)[e]), f64::from(issue.said(6)[e]));
            let w = if count > m { (hi - m) / 1.645 } else { (m - lo) / 1.645 }.max(0.2);
            let z = (count - m) / w;
            let l = -(((hi - lo) / 3.29).max(0.2)).ln() - (nu + 1.0) / 2.0 * (z * z / nu).ln_1p();
            self.density[e] = keep * self.density[e] + l;
        }
    }

    /// Moves corrections, and keeps the record.
    fn mark(&mut self, issue: &Issue, count: f64) {
        let unit = self.usual.max(0.1);
        for ((mark, q), stated) in self.marks.iter_mut().zip(QUANTILES).zip(issue.stated) {
            mark.correction += crate::tune("CO", 0.004) * unit * (f64::from(count > stated) - (1.0 - q));
            mark.outcomes = Likelihood::discounted(mark.outcomes, 1.0);
            mark.within = Likelihood::discounted(mark.within, f64::from(count <= stated));
            mark.loss = Likelihood::discounted(mark.loss, pinball(q, count, stated));
        }
    }

    /// States the quantiles of the bin `ahead` bins from the last one, in requests per bin, in rising order. `now_s` is
    /// when that one ended.
    pub(crate) fn issue(&mut self, points: &Points, now_s: f64, bin_s: f64, calendar: &Calendar) -> [f64; COUNT] {
        let mut issue = self.said(points, now_s, bin_s, calendar);
        let by_density = self.by_density();
        for (group, rule) in self.rules.iter().enumerate() {
            let likely = rule.quick.weights(&self.prior, self.ahead);
            for at in (0..COUNT).filter(|at| GROUP[*at] == group) {
                let said = issue.said(at);
                let guarded = rule.guarded.mix(said);
                let quick = likely.as_ref().map_or(guarded, |likely| dot(said, likely));
                let bayes = dot(said, &by_density); let mixes = [guarded as f32, quick as f32, bayes as f32];
                let mixed = rule.between.mix(&mixes);
                (issue.mixes[at], issue.mixed[at]) = (mixes, mixed);
                issue.stated[at] = sound(mixed + self.marks[at].correction);
            }
        }
        issue.stated.sort_by(f64::total_cmp);
        let stated = issue.stated;
        self.issued.push_back(issue);
        stated
    }

    /// What the experts say.
    fn said(&self, points: &Points, now_s: f64, bin_s: f64, calendar: &Calendar) -> Issue {
        let went = self.seasons.moves(self.ahead, now_s, bin_s, points, calendar);
        let said_points = points.at(self.ahead, &went.moves);
        let wider = (1.0 + went.moves.wider) as f32;
        let units = said_points.map(|level| {
            let scales = points.scales(level);
            let root = scales.root as f32 * wider;
            let lin = (level as f32 + 1.0) * wider / (scales.root as f32 * 10.0);
            let a = crate::tune("A1", 0.5) as f32; let a2 = crate::tune("A2", 0.5) as f32;
            let _ = lin;
            let pw = |a: f32| wider * (level as f32 + 1.0).powf(a);
            [1.0, if a == 0.5 { root } else { pw(a) }, if a2 == 0.5 { root } else { pw(a2) }, scales.lately as f32 * wider]
        });
        let widths: Vec<f32> = (self.spreads.iter().enumerate())
            .map(|(at, spread)| (units[at / SPREADS][at % SPREADS] * spread.scale()).max(1e-6))
            .collect();
        let (features, local) = (points.features(&went.moves), points.local());
        let mut said = Vec::with_capacity(EXPERTS * COUNT);
        for (at, q) in QUANTILES.into_iter().enumerate() {
            let by_points = (self.spreads.iter().zip(&widths).enumerate())
                .map(|(expert, (spread, width))| said_points[expert / SPREADS] as f32 + width * spread.shape()[at]);
            said.extend(by_points.map(|count| count.max(0.0)));
            said.extend(points.counts(q).map(|count| count as f32));
            let by_regression = self.regression.predict(at, &features).map_or(local.0, |z| local.0 + local.1 * z);
            said.push(sound(by_regression) as f32);
        }
        Issue {
            bins: points.bins(),
            points: said_points.to_vec(),
            widths,
            units: units.to_vec(),
            features,
            local,
            went,
            said,
            ..Issue::default()
        }
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

    /// Share of outcomes at or below what was stated for a quantile, with the past discounted, and by which share the
    /// loss of the mix over its group of quantiles was above that of the expert that did best in hindsight; none before
    /// there are outcomes.
    pub(crate) fn skill(&self, quantile: usize) -> Option<(f64, f64)> {
        let mark = self.marks.get(quantile).filter(|mark| mark.outcomes > 0.0)?;
        let least = self.rules[GROUP[quantile]].quick.least_loss();
        let regret = if least > 1e-9 { mark.loss / least - 1.0 } else { 0.0 };
        Some((mark.within / mark.outcomes, regret))
    }

    /// What each expert counts for in what is stated of a quantile, in order of the experts; the weights sum to 1.
    pub(crate) fn weights(&self, quantile: usize) -> Vec<f64> {
        let Some(rule) = GROUP.get(quantile).map(|group| &self.rules[*group]) else { return Vec::new() };
        let guarded = rule.guarded.weights();
        let Some(likely) = rule.quick.weights(&self.prior, self.ahead) else { return guarded.to_vec() };
        let [by_guarded, by_quick, _] = [0, 1, 2].map(|rule_at| rule.between.weights()[rule_at]);
        guarded.iter().zip(&likely).map(|(one, other)| by_guarded * one + by_quick * other).collect()
    }
}

/// Groups over the quantiles in each.
const GROUP_SHARE: [f64; GROUPS] = [9.0 / 3.0, 9.0 / 2.0, 9.0 / 2.0, 9.0 / 2.0];

fn dot(said: &[f32], weights: &[f64]) -> f64 {
    said.iter().zip(weights).map(|(said, weight)| f64::from(*said) * weight).sum()
}

/// An expert in words, by its place.
pub(crate) fn expert_name(expert: usize) -> String {
    let by = ["spread as ever", "spread by level", "spread by level lately", "spread by errors lately"];
    match (points::NAMES.get(expert / SPREADS), expert % SPREADS) {
        (Some(point), idea) => format!("{point}, {}", by[idea]),
        (None, 0) => "counts of the past".to_owned(),
        (None, 1) => "counts of late".to_owned(),
        (None, _) => "regression".to_owned(),
    }
}

/// Weights to begin with. Levels of traffic move within minutes, whatever the bins are, so a mean that remembers for
/// about that long is likelier to be right than one of seconds or of hours. Seasons and the regression have to show
/// first that there is something that they know.
fn prior(bin_s: f64) -> Vec<f64> {
    let of_point = |point: usize| {
        let apart = (memory_bins(point) * bin_s / crate::tune("UM", USUAL_MEMORY.0)).log2() / crate::tune("UW", USUAL_MEMORY.1);
        let likely = (-0.5 * apart * apart).exp().max(LEAST_LIKELY);
        if is_seasonal(point) { crate::tune("LATE", 0.3) * likely } else { likely }
    };
    let mut prior: Vec<f64> = (0..POINTS * SPREADS).map(|expert| of_point(expert / SPREADS) * [crate::tune("S0", 0.5), crate::tune("S1", 1.0), crate::tune("S2", 0.6), crate::tune("S3", 0.4)][expert % SPREADS]).collect();
    prior.extend([crate::tune("C", 0.2), crate::tune("C", 0.2), crate::tune("R", 0.3)]);
    let sum: f64 = prior.iter().sum();
    prior.into_iter().map(|likely| likely / sum).collect()
}

/// Pinball loss of stating `stated` as the `q` quantile of what turned out to be `count`.
pub fn pinball(q: f64, count: f64, stated: f64) -> f64 {
    if count >= stated { q * (count - stated) } else { (1.0 - q) * (stated - count) }
}

/// Its slope in `stated`.
fn slope(q: f64, count: f64, stated: f64) -> f64 {
    if count < stated { 1.0 - q } else { -q }
}
impl Horizon {
    pub(crate) fn dbg(&self, at: usize) -> (Vec<f32>, Vec<f64>, [f32; 3]) {
        let i = self.issued.back().unwrap();
        (i.said(at).to_vec(), self.weights(at), i.mixes[at])
    }
}
