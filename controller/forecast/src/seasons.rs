//! What the hour, the day and the week say of one horizon, each as far as it has been right so far.

use crate::calendar::{Calendar, DAY, WEEK};
use crate::hours::{Hours, Trust};
use crate::points::{MOVED, Moves, Points, root};
use serde::{Deserialize, Serialize};

/// Weight of the newest error in the usual one.
const USUAL: f64 = 0.005;
/// One hour in which much was off is no season: nothing beyond so many usual errors counts.
const MOST: f64 = 4.0;
/// Bounds of what an hour says of errors: by which factor they are smaller or larger.
const WIDER: (f64, f64) = (0.5, 5.0);

/// Learned seasons.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Seasons {
    hours: [Hours; MOVED.len()],
    wider: Hours,
    long: [Trust; 2],
    usual: f64,
}

/// What a forecast went by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Went {
    pub(crate) moves: Moves,
    at_s: f64,
    unit: f64,
    means: [f64; MOVED.len()],
    long: [f64; 2],
}

impl Seasons {
    pub(crate) fn new(bin_s: f64) -> Self {
        Self { hours: std::array::from_fn(|_| Hours::new(bin_s)), wider: Hours::new(bin_s), ..Self::default() }
    }

    /// For the bin `ahead` bins from the last one, which ended at `now_s`.
    pub(crate) fn moves(&self, ahead: usize, now_s: f64, bin_s: f64, points: &Points, calendar: &Calendar) -> Went {
        let at_s = now_s + (ahead as f64 - 0.5) * bin_s;
        let unit = root(points.local().0);
        let change = |period| calendar.change(ahead as f64 * bin_s, period).unwrap_or(0.0) * bin_s;
        let long = [change(DAY), change(WEEK)];
        let [day, week] = [0, 1].map(|at| long[at] * self.long[at].share(ahead));
        let moves = Moves {
            hour: self.hours.each_ref().map(|hours| hours.at(at_s, ahead) * unit),
            day,
            week,
            wider: (1.0 + self.wider.at(at_s, ahead)).clamp(WIDER.0, WIDER.1) - 1.0,
        };
        Went { moves, at_s, unit, means: std::array::from_fn(|at| points.moved_mean(at)), long }
    }

    /// Takes in what came of it.
    pub(crate) fn learn(&mut self, went: &Went, count: f64) {
        let off = |mean: f64| (count - mean) / went.unit;
        let most = MOST * self.usual.max(0.5);
        for (hours, mean) in self.hours.iter_mut().zip(went.means) {
            hours.learn(went.at_s, off(mean).clamp(-most, most));
        }
        let recent = off(went.means[MOVED.len() - 1]);
        for (trust, said) in self.long.iter_mut().zip(went.long) {
            if said != 0.0 {
                trust.learn(said / went.unit, recent);
            }
        }
        let error = off(went.means[MOVED.len() - 1] + went.moves.hour[MOVED.len() - 1]).abs();
        self.usual = if self.usual == 0.0 { error } else { self.usual + USUAL * (error - self.usual) };
        self.wider.learn(went.at_s, (error / self.usual.max(1e-6)).min(20.0) - 1.0);
    }
}
