//! Choosing the next token. The draw at position `p` is a function of (seed, p) and of the logits alone,
//! so a stream that moves to another instance goes on with the very same tokens.
//!
//! Order of the steps, as in llama.cpp: temperature, top-k, top-p, min-p, draw. Candidates are ordered by
//! (logit descending, id ascending), so ties never depend on a sort's whims.

use engine_core::TokenId;
use engine_wire::sampling::Sampling;
use std::cmp::Ordering;
use thiserror::Error;

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
    // Weights relative to the likeliest token; it alone has weight 1 however small the temperature.
    let scale = 1.0 / f64::from(sampling.temperature);
    let max = f64::from(logits[best as usize]);
    let weight = |logit: f32| ((f64::from(logit) - max) * scale).exp();
    let truncated = sampling.top_k > 0 || sampling.top_p < 1.0 || sampling.min_p > 0.0;
    if !truncated {
        return Ok(pick(logits.iter().map(|logit| weight(*logit)), draw) as TokenId);
    }
    let candidates = candidates(logits, sampling, weight);
    let index = pick(candidates.iter().map(|candidate| candidate.weight), draw);
    Ok(candidates[index].token)
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
    for (index, &value) in logits.iter().enumerate() {
        if !value.is_finite() {
            return Err(SampleError::NonFinite { token: index as TokenId, value });
        }
        if best.is_none_or(|(_, high)| value > high) {
            best = Some((index, value));
        }
    }
    best.map(|(index, _)| index as TokenId).ok_or(SampleError::Empty)
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

/// The tokens that survive top-k, top-p and min-p, likeliest first when order matters.
fn candidates(logits: &[f32], sampling: &Sampling, weight: impl Fn(f32) -> f64) -> Vec<Candidate> {
    let mut kept: Vec<Candidate> = logits
        .iter()
        .enumerate()
        .map(|(token, &logit)| Candidate { token: token as TokenId, logit: logit + 0.0, weight: 0.0 })
        .collect();
    let top_k = sampling.top_k as usize;
    if top_k > 0 && top_k < kept.len() {
        kept.select_nth_unstable_by(top_k - 1, likelier_first);
        kept.truncate(top_k);
    }
    kept.iter_mut().for_each(|candidate| candidate.weight = weight(candidate.logit));
    if sampling.top_p < 1.0 {
        keep_nucleus(&mut kept, f64::from(sampling.top_p));
    }
    let floor = f64::from(sampling.min_p);
    kept.retain(|candidate| candidate.weight >= floor);
    kept.sort_unstable_by(likelier_first);
    kept
}

/// Keeps the smallest set of likeliest tokens whose share reaches `top_p`. Sorts only as long a head as
/// it needs: the nucleus is nearly always a few dozen of tens of thousands.
fn keep_nucleus(kept: &mut Vec<Candidate>, top_p: f64) {
    // Summed in a fixed order (by id), so that the total does not depend on what selection did before.
    kept.sort_unstable_by_key(|candidate| candidate.token);
    let target = top_p * kept.iter().map(|candidate| candidate.weight).sum::<f64>();
    let mut head = 64;
    loop {
        head = head.min(kept.len());
        if head < kept.len() {
            kept.select_nth_unstable_by(head, likelier_first);
        }
        kept[..head].sort_unstable_by(likelier_first);
        let mut sum = 0.0;
        let reached = kept[..head].iter().position(|candidate| {
            sum += candidate.weight;
            sum >= target
        });
        match reached {
            Some(last) => return kept.truncate(last + 1),
            None if head == kept.len() => return,
            None => head *= 8,
        }
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
