//! The experts of one horizon.
//!
//! An expert is a point ([`crate::points`]) and an idea of what its errors are like, so each is a whole distribution;
//! the counts of the past and the regression state their quantiles directly.

use crate::blend::{COUNT, Said};
use crate::calendar::Calendar;
use crate::points::{self, POINTS, Points, is_seasonal, memory_bins};
use crate::regression::{Features, Regression};
use crate::residuals::Residuals;
use crate::seasons::{Seasons, Went};
use crate::spread::Spread;
use crate::{QUANTILES, sound};
use serde::{Deserialize, Serialize};

/// What errors are proportional to: nothing; the root of the level; what they were lately. The fourth idea is that they
/// are as the last ones were, which also tells that a mean lags behind a load that rises or falls.
const SPREADS: usize = 3;
const IDEAS: usize = SPREADS + 1;
const PLAIN: usize = 0;
const BY_LEVEL: usize = 1;
/// Errors over which the scale of each is remembered, and how many the last ones are.
const MEMORY: [f32; SPREADS] = [800.0, 800.0, 400.0];
const LAST: usize = 60;
/// Fewer last errors than this are no distribution: until then this idea is the one by level.
const FEWEST_LAST: usize = 20;
/// The counts of long and short memory as they are, and the regression.
const DIRECT: usize = points::WINDOWS + 1;
pub(crate) const EXPERTS: usize = POINTS * IDEAS + DIRECT;
/// How long a good expert's memory usually is, s, and the spread of that in doublings.
const USUAL_MEMORY: (f64, f64) = (240.0, 1.5);
/// No expert begins with less than this against the likeliest.
const LEAST_LIKELY: f64 = 0.02;
/// How likely each idea is, and each direct expert against the likeliest mean; what seasons begin with against others of
/// the same memory.
const LIKELY: ([f64; IDEAS], [f64; DIRECT]) = ([0.5, 1.0, 0.4, 0.8], [0.2, 0.2, 0.3]);
const SEASONAL: f64 = 0.3;
/// Errors that are stored.
const KEPT_ERRORS: usize = 32;

/// What is learned of the experts' errors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Experts {
    spreads: Vec<Spread>,
    last: Vec<Residuals>,
    seasons: Seasons,
    regression: Regression,
}

/// What a forecast was made from, until its outcome is known.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Basis {
    points: Vec<f64>,
    /// Units of each point's errors, and the standard deviations that were stated in them.
    units: Vec<[f32; SPREADS]>,
    widths: Vec<[f32; SPREADS]>,
    features: Features,
    local: (f64, f64),
    went: Went,
}

impl Experts {
    pub(crate) fn new(bin_s: f64) -> Self {
        Self {
            spreads: vec![Spread::default(); POINTS * SPREADS],
            last: vec![Residuals::new(LAST); POINTS],
            seasons: Seasons::new(bin_s),
            regression: Regression::default(),
        }
    }

    /// What each expert says of the bin `ahead` bins from the last one, which ended at `now_s`.
    pub(crate) fn say(
        &self,
        ahead: usize,
        points: &Points,
        now_s: f64,
        bin_s: f64,
        calendar: &Calendar,
    ) -> (Said, Basis) {
        let went = self.seasons.moves(ahead, now_s, bin_s, points, calendar);
        let said_points = points.at(ahead, &went.moves);
        let wider = (1.0 + went.moves.wider) as f32;
        let units = said_points.map(|level| points.units(level, wider));
        let width = |point: usize, idea: usize| units[point][idea] * self.spreads[point * SPREADS + idea].scale();
        let widths: [[f32; SPREADS]; POINTS] =
            std::array::from_fn(|point| std::array::from_fn(|idea| width(point, idea).max(1e-6)));
        let (features, local) = (points.features(&went.moves), points.local());
        let mut said = Vec::with_capacity(EXPERTS * COUNT);
        for (at, q) in QUANTILES.into_iter().enumerate() {
            for (point, level) in said_points.iter().map(|point| *point as f32).enumerate() {
                let shape = |idea: usize| widths[point][idea] * self.spreads[point * SPREADS + idea].shape()[at];
                let offs: [f32; SPREADS] = std::array::from_fn(shape);
                let last = &self.last[point];
                let by_last = match last.len() {
                    ..FEWEST_LAST => offs[BY_LEVEL],
                    _ => units[point][BY_LEVEL] * last.quantile(q) as f32,
                };
                said.extend(offs.into_iter().chain([by_last]).map(|off| (level + off).max(0.0)));
            }
            said.extend(points.counts(q).map(|count| count as f32));
            let by_regression = self.regression.predict(at, &features).map_or(local.0, |z| local.0 + local.1 * z);
            said.push(sound(by_regression) as f32);
        }
        let basis = Basis {
            points: said_points.to_vec(),
            units: units.to_vec(),
            widths: widths.to_vec(),
            features,
            local,
            went,
        };
        (Said(said), basis)
    }

    /// Learns what the hour and the features had to do with an outcome.
    pub(crate) fn learn(&mut self, basis: &Basis, count: f64) {
        self.regression.push(&basis.features, (count - basis.local.0) / basis.local.1);
        self.seasons.learn(&basis.went, count);
    }

    /// Learns from errors, of forecasts made `ahead` bins before.
    pub(crate) fn learn_errors(&mut self, basis: &Basis, count: f64, ahead: usize) {
        for (point, said) in basis.points.iter().enumerate() {
            let error = (count - said) as f32;
            for (idea, memory) in MEMORY.into_iter().enumerate() {
                let (unit, width) = (basis.units[point][idea], basis.widths[point][idea]);
                let spread = &mut self.spreads[point * SPREADS + idea];
                spread.learn(error / unit, error / width, memory, 0.5 / width, ahead as f32);
            }
            self.last[point].push(f64::from(error / basis.units[point][BY_LEVEL]));
        }
    }

    /// Fresh ones with the same shapes of errors, where those are in relative units, and the same regression.
    pub(crate) fn borrowed(&self, bin_s: f64) -> Self {
        let mut fresh = Self { regression: self.regression.borrowed(), ..Self::new(bin_s) };
        for (at, (to, from)) in fresh.spreads.iter_mut().zip(&self.spreads).enumerate() {
            if at % SPREADS != PLAIN {
                *to = from.borrowed();
            }
        }
        fresh
    }

    /// What is worth storing.
    pub(crate) fn kept(&self) -> Self {
        Self {
            spreads: self.spreads.clone(),
            last: self.last.iter().map(|last| last.newest(KEPT_ERRORS)).collect(),
            seasons: self.seasons.clone(),
            regression: self.regression.borrowed(),
        }
    }

    pub(crate) fn regression(&self) -> &Regression {
        &self.regression
    }

    pub(crate) fn regression_mut(&mut self) -> &mut Regression {
        &mut self.regression
    }
}

/// An expert in words, by its place.
pub(crate) fn expert_name(expert: usize) -> String {
    let ideas = ["spread as ever", "spread by level", "spread by errors lately", "spread as the last errors"];
    match (points::NAMES.get(expert / IDEAS), expert % IDEAS) {
        (Some(point), idea) => format!("{point}, {}", ideas[idea]),
        (None, 0) => "counts of the past".to_owned(),
        (None, 1) => "counts of late".to_owned(),
        (None, _) => "regression".to_owned(),
    }
}

/// Weights to begin with. Levels of traffic move within minutes, whatever the bins are, so a mean that remembers for
/// about that long is likelier to be right than one of seconds or of hours. Seasons and the regression have to show
/// first that there is something that they know.
pub(crate) fn prior(bin_s: f64) -> Vec<f64> {
    let of_point = |point: usize| {
        let apart = (memory_bins(point) * bin_s / USUAL_MEMORY.0).log2() / USUAL_MEMORY.1;
        let likely = (-0.5 * apart * apart).exp().max(LEAST_LIKELY);
        if is_seasonal(point) { SEASONAL * likely } else { likely }
    };
    let by_points = (0..POINTS).flat_map(|point| LIKELY.0.map(|idea| of_point(point) * idea));
    let prior: Vec<f64> = by_points.chain(LIKELY.1).collect();
    let sum: f64 = prior.iter().sum();
    prior.into_iter().map(|likely| likely / sum).collect()
}
