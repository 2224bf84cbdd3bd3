//! What every device asks of a batch before it trusts it, and of its logits before anybody draws from them.

use crate::blocks::NO_BLOCK;
use crate::forward::{Batch, BatchSequence, ForwardError, ForwardShape};

impl Batch {
    /// Checks everything that a kernel would otherwise have to trust, for a device of whose layers none sees more than
    /// the latest `window_tokens`. Adapters are the device's own to check.
    ///
    /// # Errors
    /// [`ForwardError::Device`], which names the sequence and what is wrong with it.
    pub fn check(&self, shape: &ForwardShape, window_tokens: Option<usize>) -> Result<(), ForwardError> {
        let total: usize = self.sequences.iter().map(|sequence| sequence.new_tokens).sum();
        if total != self.tokens.len() {
            return Err(malformed(format!("{} tokens, but the sequences have {total}", self.tokens.len())));
        }
        if let Some(token) = self.tokens.iter().find(|token| **token as usize >= shape.vocab) {
            return Err(malformed(format!("token {token} is outside the vocabulary of {}", shape.vocab)));
        }
        self.sequences.iter().enumerate().try_for_each(|(index, sequence)| {
            let checked = check_sequence(sequence, shape, window_tokens);
            checked.map_err(|message| malformed(format!("sequence {index}: {message}")))
        })
    }

    /// Names the first sequence whose first row of logits is not all finite. Rows after it may rest on guessed tokens,
    /// which must not fail a step.
    ///
    /// # Errors
    /// [`ForwardError::NonFinite`].
    pub fn check_finite(&self, vocab: usize, logits: &[f32]) -> Result<(), ForwardError> {
        let mut rest = logits;
        for (index, sequence) in self.sequences.iter().enumerate().filter(|(_, sequence)| sequence.logits > 0) {
            let (rows, others) = rest.split_at_checked(sequence.logits * vocab).unwrap_or((rest, &[]));
            rest = others;
            if !all_finite(&rows[..vocab.min(rows.len())]) {
                return Err(ForwardError::NonFinite { sequence: index });
            }
        }
        Ok(())
    }
}

/// The error for a batch that is wrong.
pub fn malformed(message: String) -> ForwardError {
    ForwardError::Device { message: format!("malformed batch: {message}") }
}

/// Whether all are finite numbers. By bits and without branches, so that it vectorises.
pub fn all_finite(logits: &[f32]) -> bool {
    /// An exponent of all ones.
    const EXPONENT: u32 = 0x7f80_0000;
    logits.iter().fold(true, |finite, x| finite & (x.to_bits() & EXPONENT != EXPONENT))
}

fn check_sequence(sequence: &BatchSequence, shape: &ForwardShape, window_tokens: Option<usize>) -> Result<(), String> {
    if sequence.new_tokens == 0 {
        return Err("no new token".into());
    }
    if sequence.logits > sequence.new_tokens {
        return Err(format!(
            "logits of {} tokens are wanted, but only {} are new",
            sequence.logits, sequence.new_tokens
        ));
    }
    let end = sequence.start.checked_add(sequence.new_tokens).filter(|end| *end <= shape.context_tokens);
    let Some(end) = end else {
        return Err(format!("reaches past the context of {} tokens", shape.context_tokens));
    };
    let needed = end.div_ceil(shape.kv_block_tokens);
    if sequence.blocks.len() < needed {
        return Err(format!("has {} KV blocks, needs {needed}", sequence.blocks.len()));
    }
    // What no new token sees is not read, and may be gone.
    let first_seen = window_tokens.map_or(0, |window_tokens| (sequence.start + 1).saturating_sub(window_tokens));
    let (passed, seen) = sequence.blocks.split_at(first_seen / shape.kv_block_tokens);
    let passed = passed.iter().filter(|block| **block != NO_BLOCK);
    match passed.chain(seen).find(|block| **block as usize >= shape.kv_blocks) {
        Some(block) => Err(format!("KV block {block} is outside the pool of {}", shape.kv_blocks)),
        None => Ok(()),
    }
}
