//! Where the load goes: experts that each name one number per horizon, from bins of equal width.
//!
//! Exponentially weighted means of six half-lives, one of which is right at any time; a mean with a damped trend
//! (Holt 1957; Gardner and McKenzie 1985); and the recent mean moved by what the same time of day and of week changed.

use crate::calendar::{Calendar, DAY, WEEK};
use crate::regression::{FEATURES, Features};
use crate::signals::Signals;
use serde::{Deserialize, Serialize};

/// Weights of the newest bin.
const NEWEST: [f64; 6] = [1.0, 0.5, 0.25, 0.1, 0.05, 0.02];
/// Level, trend and damping of the mean with a trend.
const HOLT: (f64, f64, f64) = (0.3, 0.05, 0.9);
/// Experts that name a number.
pub(crate) const POINTS: usize = NEWEST.len() + 3;
/// Them in words.
pub(crate) const NAMES: [&str; POINTS] = [
    "last bin",
    "mean of the last 2 bins",
    "mean of the last 4 bins",
    "mean of the last 10 bins",
    "mean of the last 20 bins",
    "mean of the last 50 bins",
    "mean with a trend",
    "recent mean, moved as a day ago",
    "recent mean, moved as a week ago",
];
/// Place of the mean that others are seen relative to, and of the one that the seasons move.
const LOCAL: usize = 3;
const RECENT: usize = 2;
/// Weight of the newest absolute error in the volatility.
const VOLATILITY: f64 = 0.1;
/// The long mean remembers about so many bins.
const LONG_BINS: f64 = 3000.0;
/// No feature is believed beyond this, in units of the scale.
const MOST: f64 = 20.0;

/// How far back an expert looks on average, in bins.
pub(crate) fn memory_bins(point: usize) -> f64 {
    let trend = NEWEST.len();
    let newest = match point {
        point if point < trend => NEWEST[point],
        point if point == trend => HOLT.0,
        _ => NEWEST[RECENT],
    };
    1.0 / newest
}

/// The state of all of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Points {
    /// Sums that start at 0, and the weight that they have gathered: their quotient is a mean from the first bin on.
    sums: [f64; NEWEST.len()],
    gathered: [f64; NEWEST.len()],
    level: f64,
    trend: f64,
    volatility: f64,
    long: f64,
    bins: f64,
    signals: [f64; 2],
}

/// Errors are about as large as one of these.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Scales {
    /// Square root of the level, as for counts of a Poisson process.
    pub(crate) root: f64,
    /// What errors have been like lately.
    pub(crate) lately: f64,
}

impl Points {
    /// Takes in the count of the bin that has just ended.
    pub(crate) fn observe(&mut self, count: f64, bin_s: f64, signals: Signals) {
        for ((sum, gathered), newest) in self.sums.iter_mut().zip(&mut self.gathered).zip(NEWEST) {
            *sum += newest * (count - *sum);
            *gathered += newest * (1.0 - *gathered);
        }
        let (smooth, slope, damp) = HOLT;
        if self.bins == 0.0 {
            self.level = count;
        }
        let before = self.level;
        let expected = self.level + damp * self.trend;
        self.level = expected + smooth * (count - expected);
        self.trend = damp * self.trend + slope * (self.level - before - damp * self.trend);
        self.volatility += VOLATILITY * ((count - self.mean(RECENT)).abs() - self.volatility);
        self.bins += 1.0;
        self.long += (count - self.long) * (1.0 / self.bins).max(1.0 / LONG_BINS);
        self.signals = [signals.connections_per_s * bin_s, signals.backlog].map(crate::sound);
    }

    /// Bins seen.
    pub(crate) fn bins(&self) -> f64 {
        self.bins
    }

    fn mean(&self, at: usize) -> f64 {
        self.sums[at] / self.gathered[at].max(1e-12)
    }

    /// The level that the regression's outcomes are relative to, and their unit.
    pub(crate) fn local(&self) -> (f64, f64) {
        let level = self.mean(LOCAL);
        (level, (level + 0.5).sqrt())
    }

    /// What each expert says of the bin `ahead` bins from the last one.
    pub(crate) fn at(&self, ahead: usize, bin_s: f64, calendar: &Calendar) -> [f64; POINTS] {
        let mut said = [0.0; POINTS];
        for (at, said) in said.iter_mut().enumerate().take(NEWEST.len()) {
            *said = self.mean(at);
        }
        let damp = HOLT.2;
        let reach = damp * (1.0 - damp.powi(ahead as i32)) / (1.0 - damp);
        said[NEWEST.len()] = self.level + reach * self.trend;
        for (at, period) in [DAY, WEEK].into_iter().enumerate() {
            said[NEWEST.len() + 1 + at] = self.mean(RECENT) + self.season(ahead, bin_s, calendar, period);
        }
        said.map(|count| count.max(0.0))
    }

    /// By how much a bin's count changed a period ago; 0 where that is not remembered.
    fn season(&self, ahead: usize, bin_s: f64, calendar: &Calendar, period: usize) -> f64 {
        calendar.change(ahead as f64 * bin_s, period).unwrap_or(0.0) * bin_s
    }

    /// The scales at a level.
    pub(crate) fn scales(&self, level: f64) -> Scales {
        let root = (level.max(0.0) + 0.5).sqrt();
        Scales { root, lately: self.volatility.max(0.1 * root) }
    }

    /// What the regression goes by, relative to the local level.
    pub(crate) fn features(&self, ahead: usize, bin_s: f64, calendar: &Calendar) -> Features {
        let (level, unit) = self.local();
        let apart = |count: f64| (count - level) / unit;
        let numbers: [f64; FEATURES] = [
            1.0,
            apart(self.mean(0)),
            apart(self.mean(1)),
            apart(self.mean(2)),
            apart(self.mean(4)),
            apart(self.mean(5)),
            apart(self.long),
            self.volatility / unit - 1.0,
            (level - self.long) / self.long.max(1.0),
            self.season(ahead, bin_s, calendar, DAY) / unit,
            self.season(ahead, bin_s, calendar, WEEK) / unit,
            // Connections come before requests, and a backlog before both. Where nobody counts them they are 0 for ever.
            if self.signals[0] > 0.0 { apart(self.signals[0]) } else { 0.0 },
            self.signals[1] / unit,
        ];
        numbers.map(|number| if number.is_finite() { number.clamp(-MOST, MOST) as f32 } else { 0.0 })
    }
}
