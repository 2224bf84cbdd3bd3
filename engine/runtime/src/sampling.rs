//! Choosing the next token. The draw at position `p` is a function of (seed, p) and of the logits alone,
//! so a stream that moves to another instance goes on with the very same tokens. Bias and penalties change the
//! logits before, and depend on the tokens so far alone: see [`adjust`].
//!
//! Order of the steps, as in llama.cpp: temperature, top-k, top-p, min-p, draw. Candidates are ordered by
//! (logit descending, id ascending), so ties never depend on a sort's whims.

mod history;
mod logprobs;
mod weights;

pub use engine_core::all_finite;
pub use history::{History, adjust};
pub use logprobs::logprobs;

use engine_core::TokenId;
use engine_wire::sampling::Sampling;
use std::{cell::RefCell, cmp::Ordering};
use thiserror::Error;
use weights::{BLOCK, Weights, highest};

/// Why no token could be chosen.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum SampleError {
    #[error("logit of token {token} is {value}")]
    NonFinite { token: TokenId, value: f32 },
    #[error("no logits to choose from")]
    Empty,
    #[error("sampling parameter {name} is {value}, which is not usable")]
    Parameter { name: &'static str, value: f32 },
}

/// Chooses the token that follows position `position - 1`, that is, the one to stand at `position`.
pub fn sample(logits: &[f32], sampling: &Sampling, position: usize) -> Result<TokenId, SampleError> {
    check_parameters(sampling)?;
    let best = argmax(logits)?;
    if sampling.temperature == 0.0 || sampling.top_k == 1 {
        return Ok(best);
    }
    let draw = uniform(sampling.seed, position as u64);
    let high = logits[best as usize];
    WEIGHTS.with_borrow_mut(|weights| {
        if sampling.top_k == 0 && sampling.top_p == 1.0 && sampling.min_p == 0.0 {
            weights.fill(logits, high, scale(sampling));
            return Ok(weights.pick(draw) as TokenId);
        }
        let candidates = candidates(logits, sampling, high, weights);
        let index = pick(candidates.iter().map(|candidate| candidate.weight), draw);
        Ok(candidates[index].token)
    })
}

thread_local! {
    /// Kept from draw to draw: a fresh one is pages that the kernel would have to clear.
    static WEIGHTS: RefCell<Weights> = RefCell::default();
}

/// Factor of the logits. Finite, so that the likeliest has weight 1 however small the temperature.
fn scale(sampling: &Sampling) -> f32 {
    (1.0 / sampling.temperature).min(f32::MAX)
}

fn check_parameters(sampling: &Sampling) -> Result<(), SampleError> {
    let check = |name, value: f32, ok: bool| {
        if ok { Ok(()) } else { Err(SampleError::Parameter { name, value }) }
    };
    let (temperature, top_p, min_p) = (sampling.temperature, sampling.top_p, sampling.min_p);
    check("temperature", temperature, temperature.is_finite() && temperature >= 0.0)?;
    check("top_p", top_p, top_p > 0.0 && top_p <= 1.0)?;
    check("min_p", min_p, (0.0..=1.0).contains(&min_p))
}

/// The likeliest token, the lowest id among equals.
pub fn argmax(logits: &[f32]) -> Result<TokenId, SampleError> {
    let mut best = None::<(usize, f32)>;
    for (index, block) in logits.chunks(BLOCK).enumerate() {
        if !all_finite(block) {
            let bad = block.iter().position(|value| !value.is_finite()).unwrap_or(0);
            return Err(SampleError::NonFinite { token: (index * BLOCK + bad) as TokenId, value: block[bad] });
        }
        let high = highest(block);
        if best.is_none_or(|(_, value)| high > value) {
            best = Some((index * BLOCK, high));
        }
    }
    let (start, high) = best.ok_or(SampleError::Empty)?;
    let offset = logits[start..].iter().position(|value| *value == high).unwrap_or(0);
    Ok((start + offset) as TokenId)
}

#[derive(Clone, Copy)]
struct Candidate {
    token: TokenId,
    logit: f32,
    weight: f64,
}

fn likelier_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// The tokens that survive top-k, top-p and min-p, likeliest first. `high` is the largest logit.
fn candidates(logits: &[f32], sampling: &Sampling, high: f32, weights: &mut Weights) -> Vec<Candidate> {
    let (top_k, top_p) = (sampling.top_k as usize, f64::from(sampling.top_p));
    let limited = top_k > 0 && top_k < logits.len();
    let mut total = None;
    // Far most logits can be passed over at once.
    let least = if limited {
        weights::reached_by(logits, top_k)
    } else {
        weights.fill(logits, high, scale(sampling));
        let sum = weights.total();
        total = Some(sum);
        least_logit(logits.len(), sampling, high, sum)
    };
    let candidate =
        |(token, logit): (usize, f32)| Candidate { token: token as TokenId, logit: logit + 0.0, weight: 0.0 };
    let mut kept: Vec<Candidate> = weights::at_least(logits, least).map(candidate).collect();
    if limited && top_k < kept.len() {
        kept.select_nth_unstable_by(top_k - 1, likelier_first);
        kept.truncate(top_k);
    }
    kept.sort_unstable_by(likelier_first);
    let head: Vec<f32> = kept.iter().map(|candidate| candidate.logit).collect();
    weights.fill(&head, high, scale(sampling));
    kept.iter_mut().zip(&weights.all).for_each(|(candidate, weight)| candidate.weight = f64::from(*weight));
    if top_p < 1.0 {
        let total = total.unwrap_or_else(|| kept.iter().map(|candidate| candidate.weight).sum());
        keep_nucleus(&mut kept, top_p * total);
    }
    let floor = f64::from(sampling.min_p);
    kept.retain(|candidate| candidate.weight >= floor);
    kept
}

/// A logit below which no candidate can be. Those left out by it have less than half of what top-p leaves out, were
/// they all of `count`; and all of them fail min-p.
fn least_logit(count: usize, sampling: &Sampling, high: f32, total: f64) -> f32 {
    let left_out = (1.0 - f64::from(sampling.top_p)) * total / (2.0 * count as f64);
    let by_weight = left_out.max(f64::from(sampling.min_p) * 0.999);
    let least = f64::from(high) + by_weight.ln() * f64::from(sampling.temperature);
    // Of no weight at all is only what is infinitely far away.
    (least as f32).next_down().max(f32::MIN)
}

/// Keeps the shortest head whose weights reach `target`.
fn keep_nucleus(kept: &mut Vec<Candidate>, target: f64) {
    let mut sum = 0.0;
    let reached = kept.iter().position(|candidate| {
        sum += candidate.weight;
        sum >= target
    });
    if let Some(last) = reached {
        kept.truncate(last + 1);
    }
}

/// The index whose share of the running sum holds `draw` in [0, 1).
fn pick(weights: impl Iterator<Item = f64> + Clone, draw: f64) -> usize {
    let target = draw * weights.clone().sum::<f64>();
    let mut sum = 0.0;
    let mut last = 0;
    for (index, weight) in weights.enumerate() {
        sum += weight;
        if weight > 0.0 {
            last = index;
            if sum > target {
                break;
            }
        }
    }
    last
}

/// A uniform number in [0, 1) for (seed, position): the finaliser of SplitMix64 (Steele, Lea and Flood,
/// "Fast splittable pseudorandom number generators", 2014) over both, as a counter-based generator.
fn uniform(seed: u64, position: u64) -> f64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let key = mix(seed.wrapping_add(GOLDEN));
    let bits = mix(key.wrapping_add(GOLDEN.wrapping_mul(position.wrapping_add(1))));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sampling(temperature: f32, top_k: u32, top_p: f32, min_p: f32, seed: u64) -> Sampling {
        Sampling { temperature, top_k, top_p, min_p, seed, ..Sampling::default() }
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals_and_refuses_non_finite() {
        let greedy = sampling(0.0, 0, 1.0, 0.0, 0);
        assert_eq!(sample(&[1.0, 3.0, 3.0, -2.0], &greedy, 0), Ok(1));
        assert_eq!(sample(&[-0.0, 0.0], &greedy, 0), Ok(0));
        assert_eq!(sample(&[], &greedy, 0), Err(SampleError::Empty));
        let nan = sample(&[0.0, f32::NAN], &greedy, 0);
        assert!(matches!(nan, Err(SampleError::NonFinite { token: 1, .. })), "{nan:?}");
        let bad = sample(&[0.0], &sampling(f32::NAN, 0, 1.0, 0.0, 0), 0);
        assert!(matches!(bad, Err(SampleError::Parameter { name: "temperature", .. })), "{bad:?}");
        let bad = sample(&[0.0], &sampling(1.0, 0, 0.0, 0.0, 0), 0);
        assert!(matches!(bad, Err(SampleError::Parameter { name: "top_p", .. })), "{bad:?}");
    }

    /// Pearson's statistic of 20,000 draws against the softmax of the logits that survive.
    fn chi_square(logits: &[f32], sampling: &Sampling, survivors: &[usize]) -> f64 {
        const DRAWS: usize = 20_000;
        let mut counts = vec![0usize; logits.len()];
        for position in 0..DRAWS {
            counts[sample(logits, sampling, position).unwrap() as usize] += 1;
        }
        let weight = |index: &usize| f64::from(logits[*index] / sampling.temperature).exp();
        let total: f64 = survivors.iter().map(weight).sum();
        let drawn: usize = survivors.iter().map(|index| counts[*index]).sum();
        assert_eq!(drawn, DRAWS, "a token was drawn that should have been cut: {counts:?}");
        survivors
            .iter()
            .map(|index| {
                let expected = weight(index) / total * DRAWS as f64;
                (counts[*index] as f64 - expected).powi(2) / expected
            })
            .sum()
    }

    #[test]
    fn draws_follow_the_softmax_of_the_survivors() {
        // Probabilities at temperature 1: about 0.56, 0.21, 0.13, 0.08, 0.03.
        let logits = [0.0, 2.0, 1.0, 3.0, 1.5];
        let all = [0, 1, 2, 3, 4];
        // 99.9 % of chi-square statistics with 4 degrees of freedom lie below 18.5.
        for (sampling, survivors) in [
            (sampling(1.0, 0, 1.0, 0.0, 1), &all[..]),
            (sampling(0.7, 0, 1.0, 0.0, 2), &all[..]),
            (sampling(2.0, 0, 1.0, 0.0, 3), &all[..]),
            (sampling(1.0, 3, 1.0, 0.0, 4), &[3, 1, 4][..]),
            (sampling(1.0, 0, 0.7, 0.0, 5), &[3, 1][..]),
            (sampling(1.0, 0, 1.0, 0.2, 6), &[3, 1, 4][..]),
            (sampling(1.0, 4, 0.7, 0.1, 7), &[3, 1][..]),
        ] {
            let statistic = chi_square(&logits, &sampling, survivors);
            assert!(statistic < 18.5, "{sampling:?}: {statistic}");
        }
    }

    #[test]
    fn draws_at_neighbouring_positions_and_seeds_are_unrelated() {
        let mut sum = 0.0;
        for seed in 0..100 {
            for position in 0..100 {
                let (here, next) = (uniform(seed, position), uniform(seed, position + 1));
                sum += (here - 0.5) * (next - 0.5) + (here - 0.5) * (uniform(seed + 1, position) - 0.5);
            }
        }
        // 20,000 products of standard deviation 1/12: the sum's deviation is 11.8.
        assert!(f64::abs(sum) < 4.0 * 11.8, "{sum}");
    }

    proptest! {
        #[test]
        fn result_is_a_function_and_top_k_one_is_greedy(
            logits in proptest::collection::vec(-20.0f32..20.0, 1..300),
            seed: u64,
            position in 0usize..100_000,
            temperature in 0.01f32..5.0,
            top_p in 0.01f32..1.0,
            min_p in 0.0f32..0.5,
            top_k in 0u32..50,
        ) {
            let params = sampling(temperature, top_k, top_p, min_p, seed);
            let first = sample(&logits, &params, position).unwrap();
            prop_assert_eq!(sample(&logits, &params, position).unwrap(), first);
            let one = sampling(temperature, 1, top_p, min_p, seed);
            prop_assert_eq!(sample(&logits, &one, position).unwrap(), argmax(&logits).unwrap());
            // The likeliest token is never cut, and only the k likeliest may come.
            if top_k > 0 {
                let better = logits.iter().filter(|logit| **logit > logits[first as usize]).count();
                prop_assert!(better < top_k as usize);
            }
        }

        #[test]
        fn nucleus_is_the_same_as_by_full_sort(
            logits in proptest::collection::vec(-3.0f32..3.0, 2..400),
            top_p in 0.05f32..0.999,
        ) {
            let high = highest(&logits);
            let params = sampling(1.0, 0, top_p, 0.0, 0);
            let mut weights = Weights::default();
            weights.fill(&logits, high, 1.0);
            let all = weights.all.clone();
            let target = f64::from(top_p) * weights.total();
            let kept = candidates(&logits, &params, high, &mut weights);
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
            let mut sum = 0.0;
            let count = 1 + order.iter().take_while(|index| {
                sum += f64::from(all[**index]);
                sum < target
            }).count();
            let expected: Vec<u32> = order.iter().take(count).map(|index| *index as u32).collect();
            prop_assert_eq!(kept.iter().map(|candidate| candidate.token).collect::<Vec<_>>(), expected);
        }
    }
}
