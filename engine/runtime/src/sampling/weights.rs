//! Passes over whole vocabularies (up to a quarter of a million logits, for each token of each stream): the largest,
//! weights relative to it, and their sum.
//!
//! Weights are e^x of the kernels, which is the same to the bit on every machine, and sums are taken block by block
//! in order of id. So a draw depends on the logits alone, wherever it is made.

use crate::kernels::cpu::{
    simd::Isa,
    wide::{LANES, Wide, WideKernel},
};
use std::sync::LazyLock;

static ISA: LazyLock<Isa> = LazyLock::new(Isa::detect);

/// Logits that are looked at together before a decision is made.
pub(super) const BLOCK: usize = 256;

/// The largest; negative infinity of none. NaN is passed over.
pub(super) fn highest(logits: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (whole, rest) = logits.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for x in whole {
        for (lane, x) in lanes.iter_mut().zip(x) {
            *lane = larger(*lane, *x);
        }
    }
    lanes.into_iter().chain(rest.iter().copied()).fold(f32::NEG_INFINITY, larger)
}

/// A logit that at least `count` of all reach, and seldom many more; `count` is at least one and at most their number.
pub(super) fn reached_by(logits: &[f32], count: usize) -> f32 {
    // The largest of that many blocks are each some logit.
    let mut blocks = logits.len().div_ceil(BLOCK);
    let block = if count <= blocks { BLOCK } else { logits.len() / count };
    blocks = logits.len().div_ceil(block);
    let mut highs: Vec<f32> = logits.chunks(block).map(highest).collect();
    debug_assert!(count <= blocks);
    *highs.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1
}

/// Tokens whose logit is at least `least`, in order of id.
pub(super) fn at_least(logits: &[f32], least: f32) -> impl Iterator<Item = (usize, f32)> {
    let blocks = logits.chunks(BLOCK).enumerate().filter(move |(_, block)| highest(block) >= least);
    blocks.flat_map(move |(index, block)| {
        let tokens = block.iter().enumerate().filter(move |(_, logit)| **logit >= least);
        tokens.map(move |(offset, logit)| (index * BLOCK + offset, *logit))
    })
}

/// Weights e^((logit - high) * scale), and their sums by block.
#[derive(Default)]
pub(super) struct Weights {
    pub all: Vec<f32>,
    sums: Vec<f32>,
}

impl Weights {
    /// Replaces what was there. `high` is the largest logit.
    pub fn fill(&mut self, logits: &[f32], high: f32, scale: f32) {
        self.all.resize(logits.len(), 0.0);
        self.sums.resize(logits.len().div_ceil(BLOCK), 0.0);
        let (all, sums) = (&mut self.all[..], &mut self.sums[..]);
        ISA.run_wide(Weigh { logits, high, scale, all, sums });
    }

    pub fn total(&self) -> f64 {
        self.sums.iter().map(|sum| f64::from(*sum)).sum()
    }

    /// The token whose share of the running sum holds `draw` in [0, 1).
    pub fn pick(&self, draw: f64) -> usize {
        let target = draw * self.total();
        let mut before = 0.0;
        let mut chosen = 0;
        for (index, sum) in self.sums.iter().enumerate().filter(|(_, sum)| **sum > 0.0) {
            chosen = index;
            if before + f64::from(*sum) > target {
                break;
            }
            before += f64::from(*sum);
        }
        let block = &self.all[chosen * BLOCK..self.all.len().min((chosen + 1) * BLOCK)];
        let mut last = 0;
        for (offset, weight) in block.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
            last = offset;
            before += f64::from(*weight);
            if before > target {
                break;
            }
        }
        chosen * BLOCK + last
    }
}

struct Weigh<'a> {
    logits: &'a [f32],
    high: f32,
    scale: f32,
    all: &'a mut [f32],
    sums: &'a mut [f32],
}

impl WideKernel for Weigh<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Wide>(self, s: S) {
        let (high, scale) = (s.splat(self.high), s.splat(self.scale));
        let blocks = self.logits.chunks(BLOCK).zip(self.all.chunks_mut(BLOCK));
        for ((logits, out), block_sum) in blocks.zip(self.sums) {
            let mut sum = s.zero();
            let (whole, rest) = logits.as_chunks::<LANES>();
            let (out_whole, out_rest) = out.as_chunks_mut::<LANES>();
            for (x, out) in whole.iter().zip(out_whole) {
                let weight = s.exp(s.mul(s.sub(s.load(x), high), scale));
                sum = s.add(sum, weight);
                s.store(weight, out);
            }
            let mut filled = [f32::NEG_INFINITY; LANES];
            filled[..rest.len()].copy_from_slice(rest);
            let weight = s.exp(s.mul(s.sub(s.load(&filled), high), scale));
            sum = s.add(sum, weight);
            out_rest.copy_from_slice(&s.array(weight)[..rest.len()]);
            *block_sum = s.sum(sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_core::all_finite;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn passes_agree_with_their_definitions(
            logits in proptest::collection::vec(prop_oneof![-20.0f32..20.0, Just(1.0f32)], 1..1200),
            scale in 0.1f32..4.0,
            count in any::<proptest::sample::Index>(),
            draw in 0.0f64..1.0,
        ) {
            let high = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assert_eq!(highest(&logits), high);
            prop_assert!(all_finite(&logits));
            let count = 1 + count.index(logits.len());
            let least = reached_by(&logits, count);
            let found: Vec<_> = at_least(&logits, least).collect();
            let expected: Vec<_> = logits.iter().copied().enumerate().filter(|(_, logit)| *logit >= least).collect();
            prop_assert!(found.len() >= count);
            prop_assert_eq!(found, expected);
            let mut weights = Weights::default();
            weights.fill(&logits, high, scale);
            for (weight, logit) in weights.all.iter().zip(&logits) {
                let exact = (f64::from(logit - high) * f64::from(scale)).exp();
                prop_assert!((f64::from(*weight) - exact).abs() < 1e-5 * exact + 1e-30);
            }
            let sum = |weights: &[f32]| weights.iter().map(|weight| f64::from(*weight)).sum::<f64>();
            let total = sum(&weights.all);
            prop_assert!((weights.total() / total - 1.0).abs() < 1e-5);
            let picked = weights.pick(draw);
            prop_assert!(weights.all[picked] > 0.0);
            prop_assert!(sum(&weights.all[..picked]) <= (draw + 1e-5) * total);
            prop_assert!(sum(&weights.all[..=picked]) >= (draw - 1e-5) * total);
        }
    }

    #[test]
    fn one_bad_number_is_seen() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut logits = vec![0.5; 1000];
            logits[777] = bad;
            assert!(!all_finite(&logits));
        }
    }
}
