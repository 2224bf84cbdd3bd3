//! Log-probabilities of the model's own distribution: the softmax of the raw logits, before temperature, penalties,
//! bias and suppressed ends. What a client reads thus does not change with how it asks the token to be drawn.
//!
//! Sums are taken in one order of ids, so that they are bitwise the same wherever the logits are.

use super::weights::{self, BLOCK, Weights};
use engine_core::TokenId;
use engine_wire::hop::TokenLogprobs;

/// What stands for less, as in OpenAI's API: JSON has no infinity.
const LOWEST: f64 = -9999.0;

/// Log-probability of `token`, and the `top` likeliest tokens with theirs (lower id first among equals). The logits
/// are finite; a token outside the vocabulary has the lowest value there is.
pub fn logprobs(logits: &[f32], token: TokenId, top: usize) -> TokenLogprobs {
    let max = weights::highest(logits);
    let mut weights = Weights::default();
    weights.fill(logits, max, 1.0);
    let normaliser = f64::from(max) + weights.total().ln();
    let logprob = |logit: f32| (f64::from(logit) - normaliser).max(LOWEST) as f32;
    TokenLogprobs {
        logprob: logits.get(token as usize).map_or(LOWEST as f32, |logit| logprob(*logit)),
        top: likeliest(logits, top).into_iter().map(|(token, logit)| (token, logprob(logit))).collect(),
    }
}

/// The `count` largest logits, largest first. `count` is small: a sorted list with one comparison for most logits.
fn likeliest(logits: &[f32], count: usize) -> Vec<(TokenId, f32)> {
    let mut best: Vec<(TokenId, f32)> = Vec::with_capacity(count + 1);
    for (index, block) in logits.chunks(BLOCK).enumerate() {
        // Most blocks have nothing that is large enough.
        if count == 0 || (best.len() == count && best[count - 1].1 >= weights::highest(block)) {
            continue;
        }
        for (offset, logit) in block.iter().enumerate() {
            if best.len() == count && best[count - 1].1 >= *logit {
                continue;
            }
            let place = best.partition_point(|(_, other)| *other >= *logit);
            best.insert(place, ((index * BLOCK + offset) as TokenId, *logit));
            best.truncate(count);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_of_a_small_vocabulary() {
        let half = 0.5f32.ln();
        let scores = logprobs(&[1.0, 1.0], 1, 5);
        assert_eq!((scores.logprob, scores.top), (half, vec![(0, half), (1, half)]));
        // A hopeless token, and one that is not there.
        let scores = logprobs(&[f32::MAX, f32::MIN], 1, 1);
        assert_eq!((scores.logprob, scores.top), (-9999.0, vec![(0, 0.0)]));
        assert_eq!(logprobs(&[0.0], 7, 0).logprob, -9999.0);
    }

    proptest! {
        #[test]
        fn they_are_a_distribution_in_order(
            logits in proptest::collection::vec(prop_oneof![-20.0f32..20.0, Just(1.0f32)], 1..200),
            token in any::<proptest::sample::Index>(),
            top in 0usize..20,
        ) {
            let token = token.index(logits.len()) as TokenId;
            let scores = logprobs(&logits, token, top);
            prop_assert_eq!(scores.top.len(), top.min(logits.len()));
            let all = logprobs(&logits, token, logits.len());
            let sum: f64 = all.top.iter().map(|(_, logprob)| f64::from(*logprob).exp()).sum();
            prop_assert!((sum - 1.0).abs() < 1e-5, "{}", sum);
            prop_assert_eq!(&scores.top[..], &all.top[..scores.top.len()]);
            let mut order: Vec<TokenId> = (0..logits.len() as TokenId).collect();
            order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
            prop_assert_eq!(all.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), order);
            prop_assert!(all.top.contains(&(token, scores.logprob)));
        }
    }
}
