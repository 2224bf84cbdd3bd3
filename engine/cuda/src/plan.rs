//! A batch step, checked, cut into pieces that fit the device's buffers, and laid out as the kernels read it: one run
//! of 32-bit numbers that is copied in one go.

use crate::kernels::{SPLIT_TOKENS, WARP_ROWS};
use engine_core::{Batch, BatchSequence, ForwardError, ForwardShape, NO_BLOCK};

/// Checks everything that a kernel would otherwise have to trust.
pub(crate) fn check(batch: &Batch, shape: &ForwardShape, window_tokens: Option<usize>) -> Result<(), ForwardError> {
    let total: usize = batch.sequences.iter().map(|sequence| sequence.new_tokens).sum();
    if total != batch.tokens.len() {
        return Err(bad(format!("{} tokens, but the sequences have {total}", batch.tokens.len())));
    }
    if let Some(token) = batch.tokens.iter().find(|token| **token as usize >= shape.vocab) {
        return Err(bad(format!("token {token} is outside the vocabulary of {}", shape.vocab)));
    }
    for (index, sequence) in batch.sequences.iter().enumerate() {
        check_sequence(sequence, shape, window_tokens)
            .map_err(|message| bad(format!("sequence {index}: {message}")))?;
    }
    Ok(())
}

fn check_sequence(sequence: &BatchSequence, shape: &ForwardShape, window_tokens: Option<usize>) -> Result<(), String> {
    if sequence.new_tokens == 0 {
        return Err("no new token".into());
    }
    if sequence.logits > sequence.new_tokens {
        let (wanted, new) = (sequence.logits, sequence.new_tokens);
        return Err(format!("logits of {wanted} tokens are wanted, but only {new} are new"));
    }
    if let Some(adapter) = sequence.adapter {
        return Err(format!("adapter {adapter} is not loaded: this device computes none"));
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

/// Names the first sequence whose first row of logits is not all finite. Rows after it may rest on guessed tokens,
/// which must not fail a step.
pub(crate) fn check_finite(batch: &Batch, vocab: usize, logits: &[f32]) -> Result<(), ForwardError> {
    let mut rest = logits;
    for (index, sequence) in batch.sequences.iter().enumerate().filter(|(_, sequence)| sequence.logits > 0) {
        let (rows, others) = rest.split_at_checked(sequence.logits * vocab).unwrap_or((rest, &[]));
        rest = others;
        if !rows[..vocab.min(rows.len())].iter().all(|logit| logit.is_finite()) {
            return Err(ForwardError::NonFinite { sequence: index });
        }
    }
    Ok(())
}

fn bad(message: String) -> ForwardError {
    ForwardError::Device { message: format!("malformed batch: {message}") }
}

/// What the device's buffers hold, and what the layout depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// Tokens of a piece.
    pub(crate) tokens: usize,
    /// Entries of all block tables of a piece.
    pub(crate) blocks: usize,
    pub(crate) block_tokens: usize,
    /// Rows of a wide item of attention.
    pub(crate) wide_rows: usize,
    /// Query heads of a kv head.
    pub(crate) group: usize,
    /// The widest window; none where some layer sees everything.
    pub(crate) window: Option<usize>,
}

/// A part of a sequence that is computed in one piece.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    pub(crate) sequence: &'a BatchSequence,
    /// Of its new tokens in the batch.
    pub(crate) first: usize,
    /// New tokens before these.
    pub(crate) skipped: usize,
    pub(crate) tokens: usize,
}

impl Part<'_> {
    fn start(&self) -> usize {
        self.sequence.start + self.skipped
    }

    fn blocks(&self, block_tokens: usize) -> usize {
        (self.start() + self.tokens).div_ceil(block_tokens)
    }

    /// How many of its last tokens logits are wanted of.
    fn logits(&self) -> usize {
        let after = self.sequence.new_tokens - self.skipped - self.tokens;
        self.sequence.logits.saturating_sub(after).min(self.tokens)
    }
}

/// Cuts a batch into pieces, in order. Results do not depend on the cuts.
pub(crate) fn pieces<'a>(batch: &'a Batch, room: Room) -> Vec<Vec<Part<'a>>> {
    let mut pieces: Vec<Vec<Part<'a>>> = vec![Vec::new()];
    let (mut tokens, mut blocks, mut first) = (0, 0, 0);
    for sequence in &batch.sequences {
        let mut skipped = 0;
        while skipped < sequence.new_tokens {
            let want = sequence.new_tokens - skipped;
            let needed = (sequence.start + sequence.new_tokens).div_ceil(room.block_tokens);
            if tokens == room.tokens || (tokens > 0 && blocks + needed > room.blocks) {
                pieces.push(Vec::new());
                (tokens, blocks) = (0, 0);
            }
            let part = Part { sequence, first: first + skipped, skipped, tokens: want.min(room.tokens - tokens) };
            tokens += part.tokens;
            blocks += part.blocks(room.block_tokens);
            skipped += part.tokens;
            pieces.last_mut().expect("there is always one").push(part);
        }
        first += sequence.new_tokens;
    }
    pieces
}

/// Where each array begins in the run, in numbers. The same for every step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Map {
    pub(crate) tokens: usize,
    pub(crate) positions: usize,
    pub(crate) slots: usize,
    pub(crate) rows: usize,
    pub(crate) spans: usize,
    pub(crate) narrow: usize,
    pub(crate) wide: usize,
    pub(crate) blocks: usize,
    pub(crate) len: usize,
}

impl Map {
    pub(crate) fn new(room: Room) -> Self {
        let mut at = 0;
        let mut take = |numbers: usize| {
            let here = at;
            at += numbers.next_multiple_of(4);
            here
        };
        let tokens = room.tokens;
        // Each begins more than 16 rows, or closes a span that has more.
        let wide = 4 * (tokens * room.group / WARP_ROWS + 1);
        Self {
            tokens: take(tokens),
            positions: take(tokens),
            slots: take(tokens),
            rows: take(tokens),
            spans: take(4 * tokens),
            narrow: take(2 * tokens),
            wide: take(wide),
            blocks: take(room.blocks),
            len: at,
        }
    }
}

/// A piece as the device reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// By [`Map`], as far as it is used.
    pub(crate) numbers: Vec<i32>,
    /// Tokens, padding included.
    pub(crate) tokens: usize,
    /// Items of attention, padding included.
    pub(crate) narrow: usize,
    pub(crate) wide: usize,
    /// The most rows that a narrow item has.
    pub(crate) kept_rows: usize,
    /// The most splits that a narrow item sees.
    pub(crate) splits: usize,
    /// Rows whose logits are wanted.
    pub(crate) rows: usize,
}

/// Lays a piece out, with padding up to `padded` tokens: padding is token 0, leaves nothing in the pool and is seen by
/// nobody.
pub(crate) fn layout(batch: &Batch, parts: &[Part<'_>], room: Room, map: Map, padded: usize) -> Layout {
    let mut numbers = vec![0i32; map.blocks];
    let (mut row, mut narrow, mut wide, mut rows, mut splits, mut kept_rows) = (0, 0, 0, 0, 1, 1);
    for (index, part) in parts.iter().enumerate() {
        let table = numbers.len() - map.blocks;
        let span = [row, part.tokens, part.start(), table].map(|number| number as i32);
        numbers[map.spans + 4 * index..][..4].copy_from_slice(&span);
        numbers.extend(part.sequence.blocks[..part.blocks(room.block_tokens)].iter().map(|block| *block as i32));
        for token in 0..part.tokens {
            let position = part.start() + token;
            let block = part.sequence.blocks[position / room.block_tokens] as usize;
            numbers[map.tokens + row + token] = batch.tokens[part.first + token] as i32;
            numbers[map.positions + row + token] = position as i32;
            numbers[map.slots + row + token] = (block * room.block_tokens + position % room.block_tokens) as i32;
        }
        for token in part.tokens - part.logits()..part.tokens {
            numbers[map.rows + rows] = (row + token) as i32;
            rows += 1;
        }
        let pairs = part.tokens * room.group;
        let mut item = |at: usize, first: usize| {
            numbers[at..at + 2].copy_from_slice(&[index as i32, first as i32]);
        };
        if pairs <= WARP_ROWS {
            item(map.narrow + 2 * narrow, 0);
            narrow += 1;
            kept_rows = kept_rows.max(pairs);
            let seen = room.window.map_or(0, |window| (part.start() + 1).saturating_sub(window));
            splits = splits.max((part.start() + part.tokens - 1) / SPLIT_TOKENS - seen / SPLIT_TOKENS + 1);
        } else {
            for first in (0..pairs).step_by(room.wide_rows) {
                item(map.wide + 2 * wide, first);
                wide += 1;
            }
        }
        row += part.tokens;
    }
    for token in row..padded {
        numbers[map.slots + token] = -1;
        numbers[map.narrow + 2 * narrow] = -1;
        narrow += 1;
    }
    Layout { numbers, tokens: padded.max(row), narrow, wide, kept_rows, splits, rows }
}
