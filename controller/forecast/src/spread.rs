//! How far off an expert is: the scale of its errors, and their shape.
//!
//! A window of past errors gives quantiles that are right in the end and poor for the first hundred bins, which is all
//! that there is of a model that has just become busy. So errors are taken to be about normal until they show that they
//! are not: the scale is a running mean of absolute errors, and each quantile's multiple of it moves by Robbins and
//! Monro's rule ("A stochastic approximation method", 1951) at the rate that is the best one for a normal law.

use crate::QUANTILES;
use serde::{Deserialize, Serialize};

const COUNT: usize = QUANTILES.len();
/// The quantiles of a normal law with a little of the skew that counts have, and its densities there.
const NORMAL: [(f32, f32); COUNT] = [
    (-1.53, 0.103),
    (-1.24, 0.175),
    (-0.71, 0.3178),
    (-0.07, 0.399),
    (0.64, 0.3178),
    (1.32, 0.175),
    (1.76, 0.103),
    (2.28, 0.048),
    (2.62, 0.027),
];
/// Standard deviation of a normal law over its mean absolute value.
const PER_ABSOLUTE: f32 = 1.2533;
/// What errors are taken to be before there are any, in roots of the level, and the errors that this counts for.
const BEFORE: (f32, f32) = (1.1, 6.0);
/// Errors that the normal law counts for; far out there is one in so many that says something.
const SHAPED: (f32, f32) = (60.0, 1.5);
/// Errors over which a shape is remembered.
const SHAPE_MEMORY: f32 = 500.0;
/// No error is believed beyond this, in units of the scale.
const MOST: f32 = 12.0;
/// Errors that a borrowed spread counts for.
const BORROWED: f32 = 40.0;

/// Errors of one expert under one idea of what they are proportional to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    /// Standard deviation, in the idea's unit.
    scale: f32,
    seen: f32,
    shape: [f32; COUNT],
}

impl Default for Spread {
    fn default() -> Self {
        Self { scale: BEFORE.0, seen: 0.0, shape: NORMAL.map(|(quantile, _)| quantile) }
    }
}

impl Spread {
    /// The standard deviation, in the unit.
    pub(crate) fn scale(&self) -> f32 {
        self.scale
    }

    /// Multiples of the standard deviation at each of [`QUANTILES`].
    pub(crate) fn shape(&self) -> &[f32; COUNT] {
        &self.shape
    }

    /// Takes in an error in the unit, and the same over the standard deviation that had been stated. `memory` is that
    /// of the scale, in errors; `grain` half of a request in stated standard deviations; `ahead` overlapping forecasts
    /// say less.
    pub(crate) fn learn(&mut self, error: f32, stated: f32, memory: f32, grain: f32, ahead: f32) {
        if !error.is_finite() || !stated.is_finite() {
            return;
        }
        let gain = 1.0 / (self.seen + BEFORE.1 + 1.0).min(memory);
        let absolute = PER_ABSOLUTE * error.abs().min(MOST * self.scale.max(1e-6));
        self.scale = (self.scale + gain * (absolute - self.scale)).max(1e-6);
        self.seen += 1.0;
        let stated = stated.clamp(-MOST, MOST);
        for ((at, (_, density)), q) in self.shape.iter_mut().zip(NORMAL).zip(QUANTILES) {
            let q = q as f32;
            let before = (SHAPED.0 * ahead.sqrt()).max(SHAPED.1 / q.min(1.0 - q));
            let step = 1.0 / (density * (self.seen + before).min(SHAPE_MEMORY));
            // A count is whole: what is stated within half a request of it is partly above it.
            let above = ((*at - stated) / (2.0 * grain) + 0.5).clamp(0.0, 1.0);
            *at += step * (q - above);
        }
    }

    /// The same, but less sure of itself.
    pub(crate) fn borrowed(&self) -> Self {
        Self { seen: self.seen.min(BORROWED), ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_and_shape_become_those_of_the_errors() {
        // Errors spread evenly over 0..10 about a point that is 2 above their least.
        let mut spread = Spread::default();
        for n in 0..4_000_u32 {
            let error = ((n * 37) % 100) as f32 / 10.0 - 2.0;
            spread.learn(error, error / spread.scale(), 800.0, 0.01, 1.0);
            spread.learn(f32::NAN, f32::NAN, 800.0, 0.01, 1.0);
        }
        let at = |quantile: usize| spread.scale() * spread.shape()[quantile];
        let off = [(1, -1.0), (3, 3.0), (5, 7.0)].map(|(quantile, want)| (at(quantile) - want).abs());
        assert!(off.iter().all(|off| *off < 0.6), "{off:?}");
        let before = Spread::default();
        assert!(before.shape().is_sorted() && before.shape()[5] > 1.2);
    }
}
