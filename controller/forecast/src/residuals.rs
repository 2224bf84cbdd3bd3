//! The last errors of one expert, in order of time and in order of size.
//!
//! An expert knows where the load goes; how far off it is tells this window. It is bounded, so what happened long ago
//! is forgotten: a fixed add-on drifts away from its coverage, a rolling one does not.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// A bounded window of errors, in units of the expert's scale.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Residuals {
    most: usize,
    by_time: VecDeque<f32>,
    by_size: Vec<f32>,
}

impl Residuals {
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
        if self.by_time.len() == self.most
            && let Some(oldest) = self.by_time.pop_front()
        {
            let at = self.by_size.partition_point(|other| *other < oldest);
            self.by_size.remove(at);
        }
        self.by_time.push_back(error);
        let at = self.by_size.partition_point(|other| *other < error);
        self.by_size.insert(at, error);
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
