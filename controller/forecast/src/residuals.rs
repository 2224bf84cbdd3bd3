//! The last errors of one expert, in order of time and in order of size.
//!
//! An expert knows where the load goes; how far off it is tells this window. It is bounded, so what happened long ago
//! is forgotten: a fixed add-on drifts away from its coverage, a rolling one does not.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// A bounded window of errors, in units of the expert's scale. Stored in order of time alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "(usize, Vec<f32>)", into = "(usize, Vec<f32>)")]
pub(crate) struct Residuals {
    most: usize,
    by_time: VecDeque<f32>,
    by_size: Vec<f32>,
}

impl Residuals {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.by_time.len()
    }

    /// An empty window of at most so many errors.
    pub(crate) fn new(most: usize) -> Self {
        Self { most, ..Self::default() }
    }

    /// Takes in an error, in place of the oldest where the window is full. What is not finite is left out.
    pub(crate) fn push(&mut self, error: f64) {
        let error = error as f32;
        if !error.is_finite() {
            return;
        }
        let to = self.by_size.partition_point(|other| *other < error);
        if self.by_time.len() >= self.most
            && let Some(oldest) = self.by_time.pop_front()
        {
            let from = self.by_size.partition_point(|other| *other < oldest);
            self.replace(from, to, error);
        } else {
            self.by_size.insert(to, error);
        }
        self.by_time.push_back(error);
    }

    /// Only what lies between the two places moves.
    fn replace(&mut self, from: usize, to: usize, error: f32) {
        if to > from {
            self.by_size.copy_within(from + 1..to, from);
            self.by_size[to - 1] = error;
        } else {
            self.by_size.copy_within(to..from, to + 1);
            self.by_size[to] = error;
        }
    }

    /// The same window with no more than its newest errors.
    pub(crate) fn newest(&self, most: usize) -> Self {
        let skipped = self.by_time.len().saturating_sub(most);
        Self::from((self.most, self.by_time.iter().skip(skipped).copied().collect()))
    }

    /// The `q` quantile of the next error by the rank q(n + 1), which is right on average for a sample of n (the
    /// split-conformal rank); 0 for an empty window.
    pub(crate) fn quantile(&self, q: f64) -> f64 {
        let Some(last) = self.by_size.len().checked_sub(1) else { return 0.0 };
        let rank = (q * (last as f64 + 2.0) - 1.0).clamp(0.0, last as f64);
        let low = rank.floor() as usize;
        let high = (low + 1).min(last);
        let (low_error, high_error) = (f64::from(self.by_size[low]), f64::from(self.by_size[high]));
        low_error + (rank - low as f64) * (high_error - low_error)
    }
}

impl From<(usize, Vec<f32>)> for Residuals {
    fn from((most, errors): (usize, Vec<f32>)) -> Self {
        let by_time: VecDeque<f32> = errors.into_iter().filter(|error| error.is_finite()).take(most).collect();
        let mut by_size: Vec<f32> = by_time.iter().copied().collect();
        by_size.sort_by(f32::total_cmp);
        Self { most, by_time, by_size }
    }
}

impl From<Residuals> for (usize, Vec<f32>) {
    fn from(window: Residuals) -> Self {
        (window.most, window.by_time.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_window_forgets_the_oldest_and_the_rank_is_that_of_a_sample() {
        let mut window = Residuals::new(9);
        for error in [100.0, f64::NAN, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0] {
            window.push(error);
        }
        let quantiles = [0.01, 0.1, 0.5, 0.85, 0.9, 0.99].map(|q| window.quantile(q));
        assert_eq!(quantiles, [1.0, 1.0, 5.0, 8.5, 9.0, 9.0]);
    }
}
