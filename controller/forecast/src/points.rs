//! Where the load goes: experts that each name one number per horizon, from bins of equal width.
//!
//! Exponentially weighted means of several half-lives, one of which is right at any time; a mean with a damped trend
//! (Holt 1957; Gardner and McKenzie 1985); the mean since the level last shifted; and recent means moved by what is usual
//! at this time of the hour, of the day and of the week.

use crate::regression::{FEATURES, Features};
use crate::residuals::Residuals;
use crate::shift::Shift;
use crate::signals::Signals;
use serde::{Deserialize, Serialize};

/// Weights of the newest bin.
const NEWEST: [f64; 7] = [1.0, 0.5, 0.25, 0.12, 0.06, 0.03, 0.012];
/// Level, trend and damping of the mean with a trend.
const HOLT: (f64, f64, f64) = (0.3, 0.05, 0.9);
/// Experts that name a number: the means, the trend, the mean since a shift, two moved by the hour, by day and week.
pub(crate) const POINTS: usize = NEWEST.len() + 4 + MOVED.len();
const TREND: usize = NEWEST.len();
const SHIFTED: usize = TREND + 1;
const HOURLY: usize = SHIFTED + 1;
const SEASONS: usize = HOURLY + MOVED.len();
/// Them in words.
pub(crate) const NAMES: [&str; POINTS] = [
    "last bin",
    "mean of the last 2 bins",
    "mean of the last 4 bins",
    "mean of the last 8 bins",
    "mean of the last 16 bins",
    "mean of the last 32 bins",
    "mean of the last 80 bins",
    "mean with a trend",
    "mean since the last shift",
    "last bin, moved as in past hours",
    "mean of the last 2 bins, moved as in past hours",
    "recent mean, moved as in past hours",
    "recent mean, moved as a day ago",
    "recent mean, moved as a week ago",
];
/// Place of the mean that others are seen relative to, of the one that the seasons move, and of those that the hour
/// moves.
const LOCAL: usize = 3;
const RECENT: usize = 2;
pub(crate) const MOVED: [usize; 3] = [0, 1, RECENT];
/// Weight of the newest absolute error in the volatility.
const VOLATILITY: f64 = 0.1;
/// The same where only the last few bins count.
const SWING: f64 = 0.4;
/// The usual absolute error at first, in roots of the level, the least weight of the newest one, and how many times the
/// usual one it may be.
const USUAL: (f64, f64, f64) = (0.8, 0.02, 10.0);
/// Standard deviation of a normal law over its mean absolute value.
const PER_ABSOLUTE: f64 = 1.2533;
/// The long mean remembers about so many bins.
const LONG_BINS: f64 = 3000.0;
/// No feature is believed beyond this, in units of the scale.
const MOST: f64 = 20.0;

/// How far back an expert looks on average, in bins.
pub(crate) fn memory_bins(point: usize) -> f64 {
    let newest = match point {
        point if point < TREND => NEWEST[point],
        TREND => HOLT.0,
        SHIFTED => NEWEST[5],
        point if (HOURLY..SEASONS).contains(&point) => NEWEST[MOVED[point - HOURLY]],
        _ => NEWEST[RECENT],
    };
    1.0 / newest
}

/// Windows of past counts, in bins.
const COUNTED: [usize; WINDOWS] = [800, 100];
pub(crate) const WINDOWS: usize = 2;
/// Counts that are stored.
const KEPT_COUNTS: usize = 100;

/// Whether an expert knows seasons.
pub(crate) fn is_seasonal(point: usize) -> bool {
    point >= HOURLY
}

/// By how many requests the bin that is forecast is usually off, by what the hour, the day and the week say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Moves {
    /// Off each of the means in [`MOVED`].
    pub(crate) hour: [f64; MOVED.len()],
    pub(crate) day: f64,
    pub(crate) week: f64,
    /// By which share errors are larger at this time of the hour.
    pub(crate) wider: f64,
}

/// The state of all of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Points {
    /// Sums that start at 0, and the weight that they have gathered: their quotient is a mean from the first bin on.
    sums: [f64; NEWEST.len()],
    gathered: [f64; NEWEST.len()],
    level: f64,
    trend: f64,
    shift: Shift,
    counts: [Residuals; WINDOWS],
    volatility: f64,
    /// The same over the last few bins.
    swing: f64,
    /// Usual absolute error of the local level, in roots of it.
    usual: f64,
    long: f64,
    bins: f64,
    signals: [f64; 2],
}

impl Points {
    pub(crate) fn new() -> Self {
        Self { counts: COUNTED.map(Residuals::new), ..Self::default() }
    }

    /// What is worth storing: of the counts the newest.
    pub(crate) fn kept(&self) -> Self {
        Self { counts: self.counts.each_ref().map(|window| window.newest(KEPT_COUNTS)), ..self.clone() }
    }

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
        self.swing += SWING * ((count - self.mean(RECENT)).abs() - self.swing);
        if self.bins > 0.0 {
            let (level, root) = (self.mean(LOCAL), root(self.mean(LOCAL)));
            let error = ((count - level).abs() / root).min(USUAL.2 * self.usual.max(1.0));
            self.usual += (error - self.usual) * (1.0 / (self.bins + 3.0)).max(USUAL.1);
        } else {
            self.usual = USUAL.0;
        }
        self.shift.observe(count);
        self.counts.iter_mut().for_each(|window| window.push(count));
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
        (level, root(level) * (PER_ABSOLUTE * self.usual).max(0.5))
    }

    /// What each expert says of the bin `ahead` bins from the last one.
    pub(crate) fn at(&self, ahead: usize, moves: &Moves) -> [f64; POINTS] {
        let mut said = [0.0; POINTS];
        for (at, said) in said.iter_mut().enumerate().take(NEWEST.len()) {
            *said = self.mean(at);
        }
        let damp = HOLT.2;
        let reach = damp * (1.0 - damp.powi(ahead as i32)) / (1.0 - damp);
        said[TREND] = self.level + reach * self.trend;
        said[SHIFTED] = self.shift.mean();
        for (at, (mean, by)) in MOVED.into_iter().zip(moves.hour).enumerate() {
            said[HOURLY + at] = self.mean(mean) + by;
        }
        for (at, by) in [moves.day, moves.week].into_iter().enumerate() {
            said[SEASONS + at] = self.mean(RECENT) + by;
        }
        said.map(|count| count.max(0.0))
    }

    /// One of the means that seasons move.
    pub(crate) fn moved_mean(&self, at: usize) -> f64 {
        self.mean(MOVED[at])
    }

    /// The `q` quantile of past counts, of long and short memory.
    pub(crate) fn counts(&self, q: f64) -> [f64; WINDOWS] {
        self.counts.each_ref().map(|window| window.quantile(q))
    }

    /// What errors at a level are proportional to: nothing, its root, and what they have been lately; the latter two
    /// `wider` times that.
    pub(crate) fn units(&self, level: f64, wider: f32) -> [f32; 3] {
        let root = root(level);
        [1.0, root as f32 * wider, self.volatility.max(0.1 * root) as f32 * wider]
    }

    /// What the regression goes by, relative to the local level.
    pub(crate) fn features(&self, moves: &Moves) -> Features {
        let (level, unit) = self.local();
        let apart = |count: f64| (count - level) / unit;
        let numbers: [f64; FEATURES] = [
            1.0,
            apart(self.mean(0)),
            apart(self.mean(1)),
            apart(self.mean(2)),
            apart(self.mean(4)),
            apart(self.mean(6)),
            apart(self.long),
            apart(self.shift.mean()),
            self.volatility / unit - 1.0,
            (level - self.long) / self.long.max(1.0),
            moves.hour[0] / unit,
            moves.wider,
            moves.hour[2] / unit,
            apart(self.mean(0)).abs().sqrt(),
            (self.swing / unit).min(5.0) - 1.0,
            self.trend / unit,
            self.usual,
            moves.day / unit,
            moves.week / unit,
            // Connections come before requests, and a backlog before both. Where nobody counts them they are 0 for ever.
            if self.signals[0] > 0.0 { apart(self.signals[0]) } else { 0.0 },
            self.signals[1] / unit,
        ];
        numbers.map(|number| if number.is_finite() { number.clamp(-MOST, MOST) as f32 } else { 0.0 })
    }
}

/// What counts at a level are off by when they come from a Poisson process, or nearly.
pub(crate) fn root(level: f64) -> f64 {
    (level.max(0.0) + 0.5).sqrt()
}
