//! Linear quantile regression in batch over a bounded window.
//!
//! linfa has no quantile loss, so the fit is the majorise-minimise iteration of Hunter and Lange ("Quantile regression
//! via an MM algorithm", 2000): each step is a weighted ridge regression, solved by linfa's Cholesky factor of the
//! normal equations, so a fit is a fixed amount of work. What is predicted is relative to the local level, since a
//! regression on raw levels fails when they shift.

use linfa_linalg::cholesky::SolveCInplace;
use ndarray::{Array1, Array2, Axis};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Numbers that a prediction is made from.
pub(crate) const FEATURES: usize = 13;
/// Most samples that are kept, and fewest that are fitted.
const SAMPLES: (usize, usize) = (1000, 30);
/// Steps of a fit.
const STEPS: usize = 12;
/// Weight of the ridge, in samples; the constant gets next to none of it.
const RIDGE: (f64, f64) = (5.0, 0.01);

pub(crate) type Features = [f32; FEATURES];

/// Coefficients for each quantile, and the samples that they were fitted to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Regression {
    samples: VecDeque<(Features, f32)>,
    coefficients: Vec<[f64; FEATURES]>,
}

impl Regression {
    /// Takes in what came of a prediction.
    pub(crate) fn push(&mut self, features: Features, outcome: f64) {
        let outcome = outcome as f32;
        if !outcome.is_finite() || features.iter().any(|feature| !feature.is_finite()) {
            return;
        }
        if self.samples.len() == SAMPLES.0 {
            self.samples.pop_front();
        }
        self.samples.push_back((features, outcome));
    }

    /// The same coefficients without the samples.
    pub(crate) fn borrowed(&self) -> Self {
        Self { coefficients: self.coefficients.clone(), ..Self::default() }
    }

    /// Takes over what another one was fitted to.
    pub(crate) fn adopt(&mut self, fitted: Self) {
        self.coefficients = fitted.coefficients;
    }

    /// The prediction for one quantile, by its place; none before the first fit.
    pub(crate) fn predict(&self, quantile: usize, features: &Features) -> Option<f64> {
        let coefficients = self.coefficients.get(quantile)?;
        Some(dot(coefficients, features))
    }

    /// Fits all quantiles anew. Bounded: at most 1,000 samples, 12 steps each.
    pub(crate) fn refit(&mut self, quantiles: &[f64]) {
        if self.samples.len() < SAMPLES.1 {
            return;
        }
        self.coefficients.resize(quantiles.len(), [0.0; FEATURES]);
        for (quantile, coefficients) in quantiles.iter().zip(&mut self.coefficients) {
            let mut near = 0.3;
            for _ in 0..STEPS {
                let Some(next) = step(&self.samples, *quantile, coefficients, near) else { break };
                *coefficients = next;
                near = f64::max(near * 0.7, 0.02);
            }
        }
    }
}

fn dot(coefficients: &[f64; FEATURES], features: &Features) -> f64 {
    coefficients.iter().zip(features).map(|(a, b)| a * f64::from(*b)).sum()
}

/// One weighted ridge regression; none where it has no finite solution. `near` keeps errors near 0 from weighing
/// without bound.
fn step(
    samples: &VecDeque<(Features, f32)>,
    quantile: f64,
    from: &[f64; FEATURES],
    near: f64,
) -> Option<[f64; FEATURES]> {
    // Plain arrays of known size, since this loop is nearly all the work that a fit is.
    let (mut normal, mut right) = ([[0.0; FEATURES]; FEATURES], [0.0; FEATURES]);
    for (features, outcome) in samples {
        let outcome = f64::from(*outcome);
        let features = features.map(f64::from);
        let said: f64 = from.iter().zip(&features).map(|(a, b)| a * b).sum();
        let weight = 1.0 / (near + (outcome - said).abs());
        let pull = weight * outcome + 2.0 * quantile - 1.0;
        for ((row, right), feature) in normal.iter_mut().zip(&mut right).zip(&features) {
            *right += pull * feature;
            let weighted = weight * feature;
            for (sum, other) in row.iter_mut().zip(&features) {
                *sum += weighted * other;
            }
        }
    }
    for (at, row) in normal.iter_mut().enumerate() {
        row[at] += if at == 0 { RIDGE.1 } else { RIDGE.0 };
    }
    let mut normal = Array2::from_shape_fn((FEATURES, FEATURES), |(row, column)| normal[row][column]);
    let solution = normal.solvec_into(Array1::from(right.to_vec()).insert_axis(Axis(1))).ok()?;
    let mut found = [0.0; FEATURES];
    for (to, value) in found.iter_mut().zip(solution.iter()) {
        *to = *value;
    }
    found.iter().all(|value| value.is_finite()).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_quantiles_of_a_fan_are_found() {
        // Outcomes are spread evenly over 0..width, and the width is the second feature: quantile q is q times it.
        let mut regression = Regression::default();
        for n in 0..900 {
            let width = 1.0 + f64::from(n % 9);
            let mut features = [0.0; FEATURES];
            (features[0], features[1]) = (1.0, width as f32);
            regression.push(features, width * f64::from((n * 37) % 100) / 100.0);
            regression.push(features, f64::NAN);
        }
        regression.refit(&[0.5, 0.9]);
        let mut features = [0.0; FEATURES];
        (features[0], features[1]) = (1.0, 8.0);
        let predicted = [0, 1].map(|quantile| regression.predict(quantile, &features).map(|value| value.round()));
        assert_eq!(predicted, [Some(4.0), Some(7.0)]);
        assert_eq!(regression.predict(2, &features), None);
    }
}
