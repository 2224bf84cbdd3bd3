//! A small deterministic device: logits are a digest of every KV slot of the sequence, so that a wrong
//! block, position or resumption changes the output.

use engine_core::{Batch, BatchSequence, Forward, ForwardError, ForwardShape, TokenId};
use engine_runtime::History;
use engine_wire::sampling::Sampling;
use std::time::Duration;

pub const SHAPE: ForwardShape = ForwardShape { vocab: 32, kv_block_tokens: 4, kv_blocks: 32, context_tokens: 96 };
/// A prompt that begins with this token gets logits that are not numbers.
pub const POISON: TokenId = 31;
pub const EOS: TokenId = 2;

pub struct DigestDevice {
    slots: Vec<u64>,
    /// Time of a step.
    pub pace: Duration,
}

fn mix(state: u64, value: u64) -> u64 {
    (state ^ value.wrapping_add(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(23)
}

impl DigestDevice {
    pub fn new(pace: Duration) -> Self {
        Self { slots: vec![0; SHAPE.kv_blocks * SHAPE.kv_block_tokens], pace }
    }

    fn slot(sequence: &BatchSequence, position: usize) -> usize {
        sequence.blocks[position / SHAPE.kv_block_tokens] as usize * SHAPE.kv_block_tokens
            + position % SHAPE.kv_block_tokens
    }
}

fn push_logits(slots: impl Iterator<Item = u64>, first: u64, out: &mut Vec<f32>) {
    let state = slots.fold(7, mix);
    let poisoned = first == mix(1, u64::from(POISON));
    out.extend((0..SHAPE.vocab as u64).map(|token| match poisoned {
        true => f32::NAN,
        false => (mix(state, token) % 10_000) as f32 / 1_000.0,
    }));
}

impl Forward for DigestDevice {
    fn shape(&self) -> ForwardShape {
        SHAPE
    }

    fn forward(&mut self, batch: &Batch, out: &mut Vec<f32>) -> Result<(), ForwardError> {
        std::thread::sleep(self.pace);
        out.clear();
        let mut tokens = batch.tokens.iter();
        for sequence in &batch.sequences {
            let end = sequence.start + sequence.new_tokens;
            for (position, token) in (sequence.start..end).zip(&mut tokens) {
                let before = if position == 0 { 1 } else { self.slots[Self::slot(sequence, position - 1)] };
                self.slots[Self::slot(sequence, position)] = mix(before, u64::from(*token));
            }
            for end in end - sequence.logits + 1..=end {
                let slots = (0..end).map(|position| self.slots[Self::slot(sequence, position)]);
                push_logits(slots, self.slots[Self::slot(sequence, 0)], out);
            }
        }
        Ok(())
    }
}

/// `count` tokens after `prefix`, computed one at a time without any engine.
pub fn reference(prefix: &[TokenId], sampling: &Sampling, count: usize) -> Vec<TokenId> {
    let mut tokens = prefix.to_vec();
    let mut history = History::new(sampling, prefix, &[]);
    while tokens.len() < prefix.len() + count {
        let slots: Vec<u64> = tokens
            .iter()
            .scan(1, |state, token| {
                *state = mix(*state, u64::from(*token));
                Some(*state)
            })
            .collect();
        let mut logits = Vec::new();
        push_logits(slots.iter().copied(), slots[0], &mut logits);
        engine_runtime::adjust(&mut logits, sampling, &history);
        let token = engine_runtime::sample(&logits, sampling, tokens.len()).expect("finite logits");
        history.push(token);
        tokens.push(token);
    }
    tokens.split_off(prefix.len())
}
