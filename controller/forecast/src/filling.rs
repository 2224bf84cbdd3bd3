//! Requests at irregular times, cut into bins of one width for a [`Level`].
//!
//! A model has a level of a width only while it is busy enough for it: a few requests within its memory. So a model that
//! is hardly ever called costs a few numbers, and one that has gone quiet gives its memory back.

use crate::signals::Signals;
use crate::{Level, sound};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Widths of bins, s, and the horizons of each, in bins.
const WIDTHS: [(f64, &[usize]); WIDTH_COUNT] =
    [(1.0, &[1, 3, 6]), (10.0, &[1, 3, 6]), (60.0, &[5, 10]), (600.0, &[3, 6])];
/// How many widths there are.
pub(crate) const WIDTH_COUNT: usize = 4;
/// A width remembers so many of its bins.
const MEMORY_BINS: f64 = 60.0;
/// Requests within that memory from which a model gets bins of this width, and below which it loses them.
const BUSY: (f64, f64) = (8.0, 0.5);
/// Most bins that one observation fills, and that wait to be learned from; what a longer gap held is forgotten.
const MOST_BINS: usize = 60;

/// One width: how busy the model is for it, and the level with its bin that is not full yet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Filling {
    /// Requests, each counting for less as it becomes older.
    recent: f64,
    level: Option<Box<Level>>,
    count: f64,
    filled_s: f64,
    /// Bins that are full and not learned from yet.
    full: VecDeque<(f64, Signals)>,
}

impl Filling {
    pub(crate) fn level(&self) -> Option<&Level> {
        self.level.as_deref()
    }

    pub(crate) fn level_mut(&mut self) -> Option<&mut Level> {
        self.level.as_deref_mut()
    }

    /// Takes in requests at a steady rate over a stretch of time.
    pub(crate) fn take(&mut self, width: usize, requests: f64, over_s: f64, signals: Signals) {
        if self.recent == 0.0 && requests == 0.0 {
            return;
        }
        let bin_s = WIDTHS[width].0;
        self.recent = sound(self.recent * (-over_s / (MEMORY_BINS * bin_s)).exp() + requests);
        if self.recent < BUSY.1 {
            *self = Self { recent: if self.recent < 1e-6 { 0.0 } else { self.recent }, ..Self::default() };
        }
        if self.level.is_some() {
            self.fill(bin_s, requests / over_s, over_s, signals);
        }
    }

    fn fill(&mut self, bin_s: f64, rate_per_s: f64, over_s: f64, signals: Signals) {
        let mut left_s = over_s.min(MOST_BINS as f64 * bin_s);
        while left_s > 0.0 {
            let part_s = left_s.min(bin_s - self.filled_s);
            self.count += rate_per_s * part_s;
            self.filled_s += part_s;
            left_s -= part_s;
            if self.filled_s >= bin_s - 1e-9 {
                self.full.push_back((self.count, signals));
                (self.count, self.filled_s) = (0.0, 0.0);
            }
        }
        if self.full.len() > MOST_BINS {
            self.forget_waiting();
        }
    }

    /// Nobody had the time to learn from these. The level goes on after a gap.
    fn forget_waiting(&mut self) {
        let bins = self.full.drain(..).len() as f64;
        if let Some(level) = &mut self.level {
            level.skip(bins * level.bin_s());
        }
    }

    /// Whether the model is busy enough for this width and has no level of it.
    pub(crate) fn wants_level(&self) -> bool {
        self.level.is_none() && self.recent >= BUSY.0
    }

    /// Gives it a level, which begins with what is known of errors elsewhere.
    pub(crate) fn grow(&mut self, width: usize, like: Option<&Level>) {
        let (bin_s, ahead) = WIDTHS[width];
        self.level = Some(Box::new(like.map_or_else(|| Level::new(bin_s, ahead), Level::borrowed)));
    }

    /// Learns from bins that are full, no more than so many, and says from how many.
    pub(crate) fn digest(&mut self, most: usize) -> usize {
        let Some(level) = &mut self.level else { return 0 };
        let bins = self.full.len().min(most);
        for (count, signals) in self.full.drain(..bins) {
            level.observe(count, signals);
        }
        bins
    }

    /// The same with a level that has lost what is not worth storing.
    pub(crate) fn kept(&self) -> Self {
        let level = self.level.as_ref().map(|level| Box::new(level.kept()));
        Self { recent: self.recent, level, ..Self::default() }
    }

    /// Goes on after a time in which nothing was seen: how busy the model is now, nobody knows.
    pub(crate) fn skip(&mut self, over_s: f64) {
        (self.count, self.filled_s) = (0.0, 0.0);
        self.full.clear();
        if let Some(level) = &mut self.level {
            level.skip(over_s);
        }
    }
}
