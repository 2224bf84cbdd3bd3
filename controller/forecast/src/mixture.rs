//! Experts combined online: three rules.
//!
//! [`Aggregation`] is Bernstein online aggregation (Wintenberger, "Optimal learning with Bernstein online aggregation",
//! 2017) on the linearised pinball loss: against the best fixed convex mix of K experts the regret after n rounds is
//! of order sqrt(V log K), V the summed squared differences of losses, whatever the sequence is. Its learning rates
//! set themselves. That certainty costs speed: on a hundred bins it hardly moves. [`Likelihood`] moves at once: it
//! takes the pinball loss as the logarithm of an asymmetric Laplace density, of unknown scale, and weighs by the
//! profile likelihood, with old losses discounted. [`Density`] takes each expert at its word: it weighs by how likely
//! the outcomes were under the distributions stated, which tells a wrong scale soonest. These two have no guarantee, so
//! an aggregation of the three gives the forecast and, by its bound, loses little to the best one.

use serde::{Deserialize, Serialize};

/// No single round moves an aggregation by more than this, in units of the usual error.
const MOST: f64 = 20.0;
/// What a likelihood keeps of its past at each round: about 500 rounds.
const KEPT: f64 = 0.998;
/// How much less than a likelihood of independent errors is believed: errors follow each other.
const TEMPER: f64 = 1.0;
/// What a density keeps of its past at each round, and how much less than a likelihood of independent errors it is
/// believed.
const DENSITY: (f64, f64) = (0.996, 1.0);
/// Degrees of freedom of the t law that it takes for an expert's: errors have heavy tails.
const TAILS: f64 = 6.0;
/// Normal score of the 0.95 quantile, and the narrowest standard deviation, in requests: counts are whole.
const OUTER: f64 = 1.645;
const NARROWEST: f64 = 0.2;
/// Logarithm of the likelihood against the best expert's below which an expert counts for nothing.
const UNLIKELY: f64 = -25.0;

/// Bernstein online aggregation of a fixed number of experts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Aggregation {
    regret: Vec<f64>,
    variance: Vec<f64>,
    range: Vec<f64>,
    weights: Vec<f64>,
}

impl Aggregation {
    /// Weights to begin with, which sum to 1. The bound's log K is then the logarithm of one over the best expert's.
    pub(crate) fn new(prior: &[f64]) -> Self {
        let zero = vec![0.0; prior.len()];
        Self { regret: zero.clone(), variance: zero.clone(), range: zero, weights: prior.to_vec() }
    }

    /// Weights by expert; they sum to 1.
    pub(crate) fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// The weighted mean of what the experts say.
    pub(crate) fn mix(&self, said: &[f32]) -> f64 {
        said.iter().zip(&self.weights).map(|(said, weight)| f64::from(*said) * weight).sum()
    }

    /// Takes in by how much each expert did better than the mix, in units of the usual error. `prior` is what it was
    /// made with.
    pub(crate) fn learn(&mut self, prior: &[f64], gains: impl Iterator<Item = f64>) {
        let log_experts = (self.weights.len().max(2) as f64).ln();
        let mut highest = f64::MIN;
        for (expert, (gain, prior)) in gains.zip(prior).enumerate().take(self.weights.len()) {
            let gain = if gain.is_finite() { gain.clamp(-MOST, MOST) } else { 0.0 };
            self.variance[expert] += gain * gain;
            self.range[expert] = self.range[expert].max(gain.abs());
            let by_variance = (log_experts / self.variance[expert].max(1e-12)).sqrt();
            let rate = by_variance.min(0.5 / self.range[expert].max(1e-6));
            self.regret[expert] += gain - rate * gain * gain;
            // Kept as a logarithm until the highest is known, so that nothing overflows.
            self.weights[expert] = (prior * rate).ln() + rate * self.regret[expert];
            highest = highest.max(self.weights[expert]);
        }
        let mut sum = 0.0;
        for weight in &mut self.weights {
            *weight = (*weight - highest).exp();
            sum += *weight;
        }
        for weight in &mut self.weights {
            *weight /= sum;
        }
    }
}

/// Weights by profile likelihood.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Likelihood {
    losses: Vec<f64>,
    rounds: f64,
}

impl Likelihood {
    pub(crate) fn new(experts: usize) -> Self {
        Self { losses: vec![0.0; experts], rounds: 0.0 }
    }

    /// A loss beside the experts', discounted as theirs are.
    pub(crate) fn discounted(sum: f64, loss: f64) -> f64 {
        KEPT * sum + if loss.is_finite() { loss } else { 0.0 }
    }

    /// Takes in each expert's loss.
    pub(crate) fn learn(&mut self, losses: impl Iterator<Item = f64>) {
        self.rounds = KEPT * self.rounds + 1.0;
        for (sum, loss) in self.losses.iter_mut().zip(losses) {
            *sum = Self::discounted(*sum, loss);
        }
    }

    /// Weights by expert, which sum to 1; none before there is anything to go by. Forecasts `ahead` bins ahead overlap,
    /// so their errors are believed less.
    pub(crate) fn weights(&self, prior: &[f64], ahead: usize) -> Option<Vec<f64>> {
        if self.rounds < 3.0 {
            return None;
        }
        let least = self.losses.iter().copied().fold(f64::MAX, f64::min).max(1e-12);
        let power = -TEMPER * self.rounds / (ahead.max(1) as f64).sqrt();
        // Most experts are so much worse that their weight is nothing; that is told without their logarithm.
        let hopeless = least * (UNLIKELY / power).exp();
        let weight = |(loss, prior): (&f64, &f64)| {
            if *loss > hopeless { 0.0 } else { prior * (power * (loss.max(1e-12) / least).ln()).exp() }
        };
        let mut weights: Vec<f64> = self.losses.iter().zip(prior).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= sum);
        Some(weights)
    }
}

/// Weights by the density of what came under what each expert had stated.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Density {
    logarithms: Vec<f64>,
}

impl Density {
    pub(crate) fn new(experts: usize) -> Self {
        Self { logarithms: vec![0.0; experts] }
    }

    /// Takes in each expert's 0.05, 0.5 and 0.95 quantile, and what came.
    pub(crate) fn learn(&mut self, fans: impl Iterator<Item = [f64; 3]>, count: f64) {
        for (sum, [low, middle, high]) in self.logarithms.iter_mut().zip(fans) {
            let side = if count > middle { high - middle } else { middle - low };
            let error = (count - middle) / (side / OUTER).max(NARROWEST);
            let width = ((high - low) / (2.0 * OUTER)).max(NARROWEST);
            let logarithm = -width.ln() - (TAILS + 1.0) / 2.0 * (error * error / TAILS).ln_1p();
            *sum = DENSITY.0 * *sum + if logarithm.is_finite() { logarithm } else { 0.0 };
        }
    }

    /// Weights by expert, which sum to 1.
    pub(crate) fn weights(&self, prior: &[f64], ahead: usize) -> Vec<f64> {
        let power = DENSITY.1 / (ahead.max(1) as f64).sqrt();
        let highest = self.logarithms.iter().copied().fold(f64::MIN, f64::max);
        let weight = |(sum, prior): (&f64, &f64)| {
            let apart = power * (sum - highest);
            if apart < UNLIKELY { 0.0 } else { prior * apart.exp() }
        };
        let mut weights: Vec<f64> = self.logarithms.iter().zip(prior).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= sum);
        weights
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The bound that is worth having: after n rounds of losses within 0..1 the mix has lost to the best expert
        /// no more than a few times sqrt(n log K), on any sequence.
        #[test]
        fn regret_is_of_the_order_of_the_root(losses in prop::collection::vec(prop::array::uniform4(0.0..1.0f64), 1..400)) {
            let mut rule = Aggregation::new(&[0.25; 4]);
            let (mut mixed, mut single) = (0.0, [0.0; 4]);
            for row in &losses {
                let mix: f64 = row.iter().zip(rule.weights()).map(|(loss, weight)| loss * weight).sum();
                mixed += mix;
                for (sum, loss) in single.iter_mut().zip(row) {
                    *sum += loss;
                }
                rule.learn(&[0.25; 4], row.iter().map(|loss| mix - loss));
                prop_assert!((rule.weights().iter().sum::<f64>() - 1.0).abs() < 1e-9);
            }
            let best = single.iter().copied().fold(f64::MAX, f64::min);
            let bound = 4.0 * (losses.len() as f64 * 4f64.ln()).sqrt() + 4.0;
            prop_assert!(mixed - best <= bound, "regret {} above {bound}", mixed - best);
        }
    }
}
