//! Weighted paths whose quantiles, at each horizon, are the stated ones.
//!
//! A path takes a rank near by and a rank far off; in between the rank moves from one to the other. How much the two
//! have to do with each other is measured: the correlation of the ranks that outcomes took. So a plan can tell a spike
//! that passes from a level that stays, which quantiles at single horizons cannot say.

use crate::QUANTILES;
use serde::{Deserialize, Serialize};

/// Bands of rank: their probabilities, and the normal scores of their middles. The quantiles that plans ask for (0.25,
/// 0.5, 0.9) are middles, so a view of the paths gives them back as stated; the upper bands are narrow, since that is
/// where a plan is made or broken.
const BANDS: [(f64, f64); 7] = [
    (0.10, -1.644_854),
    (0.30, -0.674_490),
    (0.20, 0.0),
    (0.25, 0.597_760),
    (0.10, 1.281_552),
    (0.04, 1.880_794),
    (0.01, 2.575_829),
];
/// Rounds in which the weights are made to agree with the bands on both sides.
const ROUNDS: usize = 30;
/// The strongest correlation that is believed, in either direction.
const MOST_CORRELATED: f64 = 0.95;

/// What may come, as weighted paths.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// Ends of the steps, s from now; the first step begins now.
    pub ends_s: Vec<f64>,
    pub scenarios: Vec<Scenario>,
}

/// One path. Entry `i` of each list is what comes within step `i`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scenario {
    /// Probability; the weights of a forecast sum to 1.
    pub weight: f64,
    pub requests: Vec<f64>,
    pub prefill_tokens: Vec<f64>,
    pub decode_tokens: Vec<f64>,
}

impl Forecast {
    /// Paths through the quantiles of rates, 1/s, stated at the end of each step. `tokens` are those of a request,
    /// prefill and decode; `correlation` is that of ranks near and far.
    pub(crate) fn through(
        ends_s: &[f64],
        rates: &[[f64; QUANTILES.len()]],
        tokens: (f64, f64),
        correlation: f64,
    ) -> Self {
        let correlation = correlation.clamp(-MOST_CORRELATED, MOST_CORRELATED);
        let weights = weights(correlation);
        let last = ends_s.len().max(2) as f64 - 1.0;
        let mut scenarios = Vec::new();
        for (near, row) in weights.iter().enumerate() {
            for (far, weight) in row.iter().enumerate() {
                let mut begin_s = 0.0;
                let mut requests = Vec::with_capacity(ends_s.len());
                for (at, (end_s, rates)) in ends_s.iter().zip(rates).enumerate() {
                    let rank = rank(BANDS[near].1, BANDS[far].1, at as f64 / last, correlation);
                    requests.push(value_at(rates, rank) * (end_s - begin_s));
                    begin_s = *end_s;
                }
                scenarios.push(Scenario {
                    weight: *weight,
                    prefill_tokens: requests.iter().map(|count| count * tokens.0).collect(),
                    decode_tokens: requests.iter().map(|count| count * tokens.1).collect(),
                    requests,
                });
            }
        }
        Self { ends_s: ends_s.to_vec(), scenarios }
    }

    /// The `q` quantile over scenarios of the rate within a step, requests/s.
    pub fn rate_quantile(&self, step: usize, q: f64) -> f64 {
        let begin_s = step.checked_sub(1).and_then(|before| self.ends_s.get(before)).copied().unwrap_or(0.0);
        let Some(over_s) = self.ends_s.get(step).map(|end_s| (end_s - begin_s).max(1e-9)) else { return 0.0 };
        let rate = |path: &Scenario| (path.requests.get(step).copied().unwrap_or(0.0) / over_s, path.weight);
        let mut rates: Vec<(f64, f64)> = self.scenarios.iter().map(rate).collect();
        rates.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut below = 0.0;
        for (rate, weight) in &rates {
            below += weight;
            if below + 1e-9 >= q {
                return *rate;
            }
        }
        rates.last().map_or(0.0, |(rate, _)| *rate)
    }
}

/// The rank a share `along` of the way from near to far. Scaled so that over all paths it is uniform at every point.
fn rank(near: f64, far: f64, along: f64, correlation: f64) -> f64 {
    let (a, b) = (1.0 - along, along);
    let spread = (a * a + b * b + 2.0 * a * b * correlation).max(1e-6).sqrt();
    normal((a * near + b * far) / spread)
}

/// Weights of the pairs of bands: a Gaussian copula, made to agree with the bands by iterative proportional fitting
/// (Deming and Stephan, 1940).
fn weights(correlation: f64) -> [[f64; BANDS.len()]; BANDS.len()] {
    let mut weights = [[0.0; BANDS.len()]; BANDS.len()];
    let square = correlation * correlation;
    for (near, (p, x)) in BANDS.into_iter().enumerate() {
        for (far, (r, y)) in BANDS.into_iter().enumerate() {
            let exponent = (2.0 * correlation * x * y - square * (x * x + y * y)) / (2.0 * (1.0 - square));
            weights[near][far] = p * r * exponent.exp();
        }
    }
    for _ in 0..ROUNDS {
        for (row, (p, _)) in weights.iter_mut().zip(BANDS) {
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|weight| *weight *= p / sum);
        }
        for (far, (p, _)) in BANDS.into_iter().enumerate() {
            let sum: f64 = weights.iter().map(|row| row[far]).sum();
            weights.iter_mut().for_each(|row| row[far] *= p / sum);
        }
    }
    weights
}

/// The value at a rank, between the stated quantiles; theirs at the ends beyond them.
pub(crate) fn value_at(stated: &[f64], rank: f64) -> f64 {
    let above = QUANTILES.partition_point(|q| *q < rank);
    match above {
        0 => stated[0],
        above if above == QUANTILES.len() => stated[above - 1],
        above => {
            let share = (rank - QUANTILES[above - 1]) / (QUANTILES[above] - QUANTILES[above - 1]);
            stated[above - 1] + share * (stated[above] - stated[above - 1])
        }
    }
}

/// The rank of a value among stated quantiles: the reverse of [`value_at`], the middle where several are equal.
pub(crate) fn rank_of(stated: &[f64], value: f64) -> f64 {
    let ends = |at: usize| match at {
        0 => (0.0, QUANTILES[0]),
        at if at == QUANTILES.len() => (QUANTILES[at - 1], 1.0),
        at => (QUANTILES[at - 1], QUANTILES[at]),
    };
    let (low, high) = (stated.partition_point(|s| *s < value), stated.partition_point(|s| *s <= value));
    if low != high || low == 0 || low == stated.len() {
        return (ends(low).0 + ends(high).1) / 2.0;
    }
    let share = (value - stated[low - 1]) / (stated[low] - stated[low - 1]);
    let (from, to) = ends(low);
    from + share * (to - from)
}

/// The normal distribution function, by Abramowitz and Stegun 26.2.17; its error is below 1e-7.
fn normal(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * x.abs());
    let series =
        t * (0.319_381_530 + t * (-0.356_563_782 + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    let upper = (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt() * series;
    if x >= 0.0 { 1.0 - upper } else { upper }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STATED: [f64; QUANTILES.len()] = [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 14.0, 20.0];

    #[test]
    fn ranks_and_values_are_each_others_reverse() {
        for rank in [0.05, 0.07, 0.3, 0.5, 0.93, 0.99] {
            assert!((rank_of(&STATED, value_at(&STATED, rank)) - rank).abs() < 0.06, "{rank}");
        }
        assert_eq!(rank_of(&[0.0; QUANTILES.len()], 0.0), 0.5);
        assert!(rank_of(&STATED, 0.0) < 0.05 && rank_of(&STATED, 30.0) > 0.99);
    }

    proptest! {
        /// Whatever the correlation, the weights sum to 1 and every step has the stated median and 0.9 quantile.
        #[test]
        fn every_step_has_the_stated_quantiles(correlation in -2.0..2.0f64) {
            let forecast = Forecast::through(&[10.0, 60.0, 600.0], &[STATED; 3], (100.0, 20.0), correlation);
            let sum: f64 = forecast.scenarios.iter().map(|path| path.weight).sum();
            prop_assert!((sum - 1.0).abs() < 1e-6);
            for step in [0, 2] {
                let (median, high) = (forecast.rate_quantile(step, 0.5), forecast.rate_quantile(step, 0.9));
                prop_assert!((median - 4.0).abs() < 0.01 && (high - 8.0).abs() < 0.01, "{median} {high}");
            }
        }
    }
}
