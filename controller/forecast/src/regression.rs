//! Linear quantile regression that is learned bin by bin and fitted now and then.
//!
//! linfa has no quantile loss, so the fit is the majorise-minimise iteration of Hunter and Lange ("Quantile regression
//! via an MM algorithm", 2000): each step is a weighted ridge regression, solved by linfa's Cholesky factor of the
//! normal equations. The weight of a sample is set once, by the coefficients at hand when it comes in, and old samples
//! are discounted, so nothing is kept of them but the normal equations: a fit is a few solutions of a small system,
//! whatever has been seen. What is predicted is relative to the local level, since a regression on raw levels fails
//! when they shift.

use crate::QUANTILES;
use linfa_linalg::cholesky::SolveCInplace;
use ndarray::{Array1, Array2, Axis};
use serde::{Deserialize, Serialize};

/// Numbers that a prediction is made from.
pub(crate) const FEATURES: usize = 21;
const PAIRS: usize = FEATURES * (FEATURES + 1) / 2;
/// Samples over which the past is remembered, and fewest that are fitted.
const SAMPLES: (f64, f64) = (2500.0, 30.0);
/// While there are few samples, those of the beginning, whose weights were set by poor coefficients, are forgotten
/// sooner: so many are remembered, and a share of those at hand.
const EARLY: (f64, f64) = (60.0, 0.5);
/// Weight of the ridge, in samples; the constant gets next to none of it.
const RIDGE: (f64, f64) = (5.0, 0.5);
/// Weight of the ridge towards what was borrowed, in samples.
const BORROWED: f64 = 40.0;
/// What keeps errors near 0 from weighing without bound: at first, and in the end.
const NEAR: (f64, f64) = (0.3, 0.05);
/// The quantiles of a count about its level, in roots of it, before anything is known.
const BEFORE: [f64; QUANTILES.len()] = [-1.7, -1.3, -0.7, 0.0, 0.7, 1.4, 1.85, 2.35, 2.7];

pub(crate) type Features = [f32; FEATURES];

/// Coefficients for each quantile, and the normal equations that they solve.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Regression {
    coefficients: Vec<[f64; FEATURES]>,
    /// What the coefficients are drawn to, and how strongly.
    centre: Vec<[f64; FEATURES]>,
    ridge: f64,
    sums: Vec<Sums>,
    /// Samples so far, and those remembered.
    seen: f64,
    samples: f64,
}

/// The lower triangle of the normal matrix, row by row, and the right side.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Sums {
    normal: Vec<f64>,
    right: Vec<f64>,
}

impl Regression {
    /// Takes in what came of a prediction.
    pub(crate) fn push(&mut self, features: &Features, outcome: f64) {
        if !outcome.is_finite() || features.iter().any(|feature| !feature.is_finite()) {
            return;
        }
        if self.sums.is_empty() {
            self.begin();
        }
        let features = features.map(f64::from);
        self.seen += 1.0;
        let keep = 1.0 - 1.0 / (self.seen * EARLY.1 + EARLY.0).min(SAMPLES.0);
        self.samples = keep * self.samples + 1.0;
        let near = NEAR.1 + (NEAR.0 - NEAR.1) / (1.0 + self.samples / 100.0);
        for ((sums, coefficients), q) in self.sums.iter_mut().zip(&self.coefficients).zip(QUANTILES) {
            let weight = 1.0 / (near + (outcome - dot(coefficients, &features)).abs());
            let pull = weight * outcome + 2.0 * q - 1.0;
            for (right, feature) in sums.right.iter_mut().zip(&features) {
                *right = keep * *right + pull * feature;
            }
            let mut rest = &mut sums.normal[..];
            for (row, feature) in features.iter().enumerate() {
                let (this, after) = rest.split_at_mut(row + 1);
                let weighted = weight * feature;
                for (sum, other) in this.iter_mut().zip(&features) {
                    *sum = keep * *sum + weighted * other;
                }
                rest = after;
            }
        }
    }

    fn begin(&mut self) {
        if self.coefficients.len() != QUANTILES.len() {
            self.coefficients = BEFORE.map(constant).to_vec();
            self.ridge = RIDGE.0;
        }
        self.centre = self.coefficients.clone();
        self.sums = vec![Sums { normal: vec![0.0; PAIRS], right: vec![0.0; FEATURES] }; QUANTILES.len()];
    }

    /// The same coefficients without what they were fitted to.
    pub(crate) fn borrowed(&self) -> Self {
        Self { coefficients: self.coefficients.clone(), ridge: BORROWED, ..Self::default() }
    }

    /// Takes over what another one was fitted to.
    pub(crate) fn adopt(&mut self, fitted: Self) {
        self.coefficients = fitted.coefficients;
    }

    /// The prediction for one quantile, by its place; none before there is anything to go by.
    pub(crate) fn predict(&self, quantile: usize, features: &Features) -> Option<f64> {
        let coefficients = self.coefficients.get(quantile)?;
        Some(dot(coefficients, &features.map(f64::from)))
    }

    /// Fits all quantiles anew: a fixed amount of work, some hundred microseconds.
    pub(crate) fn refit(&mut self) {
        if self.samples < SAMPLES.1 {
            return;
        }
        for ((sums, coefficients), centre) in self.sums.iter().zip(&mut self.coefficients).zip(&self.centre) {
            if let Some(found) = sums.solve(centre, self.ridge) {
                *coefficients = found;
            }
        }
    }
}

impl Sums {
    /// None where there is no finite solution.
    fn solve(&self, centre: &[f64; FEATURES], ridge: f64) -> Option<[f64; FEATURES]> {
        let mut normal = Array2::zeros((FEATURES, FEATURES));
        let mut right = Array1::from(self.right.clone());
        let mut at = 0;
        for row in 0..FEATURES {
            for column in 0..=row {
                normal[[row, column]] = self.normal[at];
                normal[[column, row]] = self.normal[at];
                at += 1;
            }
            let ridge = if row == 0 { RIDGE.1 } else { ridge };
            normal[[row, row]] += ridge;
            right[row] += ridge * centre[row];
        }
        let solution = normal.solvec_into(right.insert_axis(Axis(1))).ok()?;
        let mut found = [0.0; FEATURES];
        for (to, value) in found.iter_mut().zip(solution.iter()) {
            *to = *value;
        }
        found.iter().all(|value| value.is_finite()).then_some(found)
    }
}

fn constant(value: f64) -> [f64; FEATURES] {
    let mut coefficients = [0.0; FEATURES];
    coefficients[0] = value;
    coefficients
}

fn dot(coefficients: &[f64; FEATURES], features: &[f64; FEATURES]) -> f64 {
    coefficients.iter().zip(features).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_quantiles_of_a_fan_are_found() {
        // Outcomes are spread evenly over 0..width, and the width is the second feature: quantile q is q times it.
        let mut regression = Regression::default();
        for n in 0..2_700 {
            let width = 1.0 + f64::from(n % 9);
            let mut features = [0.0; FEATURES];
            (features[0], features[1]) = (1.0, width as f32);
            regression.push(&features, width * f64::from((n * 37) % 100) / 100.0);
            regression.push(&features, f64::NAN);
            if n % 50 == 0 {
                regression.refit();
            }
        }
        let mut features = [0.0; FEATURES];
        (features[0], features[1]) = (1.0, 8.0);
        let predicted = [3, 5].map(|quantile| regression.predict(quantile, &features));
        let predicted = predicted.map(|value| value.map(f64::round));
        assert_eq!(predicted, [Some(4.0), Some(7.0)]);
        assert_eq!(regression.predict(9, &features), None);
    }
}
