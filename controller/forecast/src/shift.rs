//! A mean since the level last shifted.
//!
//! A mean of fixed memory is too slow after a shift and too restless between two. Page's test ("Continuous inspection
//! schemes", 1954) tells when the level has shifted, and since when; the mean begins anew there.

use serde::{Deserialize, Serialize};

/// Slack and threshold of the test, in standard errors.
const TEST: (f64, f64) = (0.5, 6.0);
/// The mean remembers no more bins than this.
const MEMORY: f64 = 200.0;
/// Weight of the newest error in their usual size, and what it is at first, in roots of the level.
const USUAL: (f64, f64) = (0.03, 1.0);

/// The mean with the two sides of the test: how far each has come, and the bins and requests since it began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Shift {
    mean: f64,
    bins: f64,
    usual: f64,
    sides: [(f64, f64, f64); 2],
}

impl Shift {
    pub(crate) fn mean(&self) -> f64 {
        self.mean
    }

    pub(crate) fn observe(&mut self, count: f64) {
        if self.bins == 0.0 {
            (self.mean, self.bins, self.usual) = (count, 1.0, USUAL.1);
            return;
        }
        let error = (count - self.mean) / (self.mean.max(0.0) + 0.5).sqrt();
        let errors = error / self.usual.max(0.1);
        self.usual += USUAL.0 * (1.2533 * error.abs().min(4.0 * self.usual) - self.usual);
        self.bins += 1.0;
        self.mean += (count - self.mean) / self.bins.min(MEMORY);
        for (sign, (come, bins, requests)) in [1.0, -1.0].into_iter().zip(&mut self.sides) {
            *come += (sign * errors).min(4.0) - TEST.0;
            if *come <= 0.0 {
                (*come, *bins, *requests) = (0.0, 0.0, 0.0);
                continue;
            }
            *bins += 1.0;
            *requests += count;
        }
        if let Some((_, bins, requests)) = self.sides.iter().find(|side| side.0 > TEST.1).copied() {
            (self.mean, self.bins) = (requests / bins, bins);
            self.sides = Default::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_steady_between_shifts_and_quick_after_one() {
        let mut shift = Shift::default();
        let mut means = Vec::new();
        for bin in 0..210_u32 {
            let level = if bin < 200 { 100.0 } else { 150.0 };
            shift.observe(level + f64::from(bin * 31 % 17) - 8.0);
            if [150, 199, 204].contains(&bin) {
                means.push(shift.mean());
            }
        }
        assert!((means[0] - means[1]).abs() < 1.0 && (means[1] - 100.0).abs() < 2.0, "{means:?}");
        assert!((means[2] - 150.0).abs() < 10.0, "{means:?}");
    }
}
