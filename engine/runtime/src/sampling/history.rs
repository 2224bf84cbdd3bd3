//! What a request does to the logits before a token is drawn: bias and penalties.
//!
//! A function of the logits, the parameters and the tokens so far, and of nothing else: not of when or where those
//! tokens were computed. So a stream that goes on elsewhere from prompt and emitted tokens makes the same choices.
//!
//! In vLLM's order: bias, repetition penalty, frequency penalty, presence penalty.

use engine_core::TokenId;
use engine_wire::sampling::Sampling;
use std::collections::BTreeMap;

/// The tokens of one sequence so far, as far as its penalties depend on them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Tokens of prompt and output, with how often the output has them. None when no penalty wants to know.
    seen: Option<BTreeMap<TokenId, u32>>,
}

impl History {
    /// History of a sequence that begins, or goes on after `emitted`.
    pub fn new(sampling: &Sampling, prompt: &[TokenId], emitted: &[TokenId]) -> Self {
        let mut history = Self { seen: sampling.uses_history().then(BTreeMap::new) };
        if let Some(seen) = &mut history.seen {
            seen.extend(prompt.iter().map(|token| (*token, 0)));
        }
        emitted.iter().for_each(|token| history.push(*token));
        history
    }

    /// Takes a generated token.
    pub fn push(&mut self, token: TokenId) {
        if let Some(seen) = &mut self.seen {
            let count = seen.entry(token).or_insert(0);
            *count = count.saturating_add(1);
        }
    }
}

/// Applies bias and penalties. Finite logits stay finite. Tokens outside the vocabulary are passed over.
pub fn adjust(logits: &mut [f32], sampling: &Sampling, history: &History) {
    for (token, bias) in &sampling.logit_bias {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit = finite(*logit + bias);
        }
    }
    for (token, count) in history.seen.iter().flatten() {
        let Some(logit) = logits.get_mut(*token as usize) else { continue };
        *logit = finite(penalised(*logit, *count, sampling));
    }
}

fn penalised(logit: f32, count: u32, sampling: &Sampling) -> f32 {
    let penalty = sampling.repetition_penalty;
    let repeated = if logit > 0.0 { logit / penalty } else { logit * penalty };
    if count == 0 {
        return repeated;
    }
    repeated - sampling.frequency_penalty * count as f32 - sampling.presence_penalty
}

fn finite(logit: f32) -> f32 {
    logit.clamp(f32::MIN, f32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn adjusted(sampling: &Sampling, prompt: &[TokenId], emitted: &[TokenId], logits: &[f32]) -> Vec<f32> {
        let mut logits = logits.to_vec();
        adjust(&mut logits, sampling, &History::new(sampling, prompt, emitted));
        logits
    }

    /// Logits 2, -2, 1, 0 after the prompt [0, 1] and the output [1, 2, 2].
    fn check(sampling: Sampling, expected: [f32; 4]) {
        assert_eq!(adjusted(&sampling, &[0, 1], &[1, 2, 2], &[2.0, -2.0, 1.0, 0.0]), expected, "{sampling:?}");
    }

    #[test]
    fn each_penalty_counts_what_its_definition_counts() {
        let off = Sampling::default();
        check(off.clone(), [2.0, -2.0, 1.0, 0.0]);
        check(Sampling { frequency_penalty: 0.5, ..off.clone() }, [2.0, -2.5, 0.0, 0.0]);
        check(Sampling { frequency_penalty: -0.5, ..off.clone() }, [2.0, -1.5, 2.0, 0.0]);
        check(Sampling { presence_penalty: 0.5, ..off.clone() }, [2.0, -2.5, 0.5, 0.0]);
        check(Sampling { repetition_penalty: 2.0, ..off.clone() }, [1.0, -4.0, 0.5, 0.0]);
        check(Sampling { logit_bias: vec![(1, 3.0), (3, -100.0), (9, 1.0)], ..off.clone() }, [2.0, 1.0, 1.0, -100.0]);
        let all = Sampling {
            frequency_penalty: 0.25,
            presence_penalty: 0.5,
            repetition_penalty: 2.0,
            logit_bias: vec![(2, 3.0)],
            ..off
        };
        check(all, [1.0, -4.75, 1.0, 0.0]);
    }

    #[test]
    fn the_largest_numbers_stay_finite() {
        let sampling = Sampling {
            repetition_penalty: f32::MIN_POSITIVE,
            frequency_penalty: 2.0,
            logit_bias: vec![(0, 100.0)],
            ..Sampling::default()
        };
        let logits = adjusted(&sampling, &[0, 1], &[1; 40], &[f32::MAX, f32::MIN]);
        assert!(logits.iter().all(|logit| logit.is_finite()), "{logits:?}");
    }

    proptest! {
        /// Wherever a stream is cut, the tokens before the cut count as if it had not been.
        #[test]
        fn a_cut_changes_nothing(
            prompt in proptest::collection::vec(0u32..12, 1..20),
            output in proptest::collection::vec(0u32..12, 0..40),
            cut in any::<proptest::sample::Index>(),
            logits in proptest::collection::vec(-20.0f32..20.0, 10),
            frequency_penalty in -2.0f32..2.0,
            presence_penalty in -2.0f32..2.0,
            repetition_penalty in 0.1f32..3.0,
        ) {
            let sampling =
                Sampling { frequency_penalty, presence_penalty, repetition_penalty, ..Sampling::default() };
            let cut = cut.index(output.len() + 1);
            let mut resumed = History::new(&sampling, &prompt, &output[..cut]);
            output[cut..].iter().for_each(|token| resumed.push(*token));
            let mut after_cut = logits.clone();
            adjust(&mut after_cut, &sampling, &resumed);
            let whole = adjusted(&sampling, &prompt, &output, &logits);
            let bits = |logits: &[f32]| logits.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&after_cut), bits(&whole));
            // Only tokens that were seen change, and without their penalties none does.
            for (token, (before, after)) in logits.iter().zip(&whole).enumerate() {
                let seen = prompt.iter().chain(&output).any(|other| *other as usize == token);
                prop_assert!(seen || before == after);
            }
            prop_assert_eq!(adjusted(&Sampling::default(), &prompt, &output, &logits), logits);
        }
    }
}
