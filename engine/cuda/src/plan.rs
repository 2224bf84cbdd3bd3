//! A batch step, checked, cut into pieces that fit the device's buffers, and laid out as the kernels read it: one run
//! of 32-bit numbers that is copied in one go.

use crate::kernels::{SPLIT_TOKENS, WARP_ROWS};
use engine_core::{Batch, BatchSequence, ForwardError, ForwardShape, malformed};

/// Checks a batch, and that nothing is asked of this device that it cannot do.
pub(crate) fn check(batch: &Batch, shape: &ForwardShape, window_tokens: Option<usize>) -> Result<(), ForwardError> {
    batch.check(shape, window_tokens)?;
    match batch.sequences.iter().enumerate().find_map(|(index, sequence)| Some((index, sequence.adapter?))) {
        Some((index, adapter)) => {
            Err(malformed(format!("sequence {index}: adapter {adapter} is not loaded: this device computes none")))
        }
        None => Ok(()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Room = Room { tokens: 10, blocks: 6, block_tokens: 16, wide_rows: 64, group: 3, window: None };

    fn sequence(start: usize, new_tokens: usize, logits: usize) -> BatchSequence {
        let blocks = (0..(start + new_tokens).div_ceil(16) as u32).collect();
        BatchSequence { new_tokens, start, blocks, logits, adapter: None }
    }

    fn batch(sequences: Vec<BatchSequence>) -> Batch {
        let count: usize = sequences.iter().map(|sequence| sequence.new_tokens).sum();
        Batch { tokens: (100..100 + count as u32).collect(), sequences }
    }

    #[test]
    fn pieces_cover_all_tokens_and_wanted_rows_in_order_within_the_room() {
        let batch = batch(vec![sequence(0, 4, 1), sequence(70, 13, 5), sequence(3, 1, 1), sequence(40, 2, 0)]);
        let pieces = pieces(&batch, ROOM);
        let (mut next, mut rows) = (0, 0);
        for parts in &pieces {
            let tokens: usize = parts.iter().map(|part| part.tokens).sum();
            let blocks: usize = parts.iter().map(|part| part.blocks(16)).sum();
            assert!(tokens <= ROOM.tokens && (blocks <= ROOM.blocks || parts.len() == 1), "{parts:?}");
            for part in parts {
                assert_eq!(part.first, next);
                next += part.tokens;
                rows += part.logits();
            }
        }
        assert_eq!((next, rows), (20, 7));
        // The five rows that the second sequence wants are its last.
        let wanted: Vec<(usize, usize)> = pieces.iter().flatten().map(|part| (part.first, part.logits())).collect();
        assert!(wanted.iter().all(|(first, logits)| *logits == 0 || *first + 10 > 4), "{wanted:?}");
    }

    #[test]
    fn a_layout_says_where_everything_is_and_padding_leaves_nothing() {
        let batch = batch(vec![sequence(300, 1, 1), sequence(20, 6, 2)]);
        let map = Map::new(ROOM);
        let parts = pieces(&batch, Room { blocks: 64, ..ROOM }).remove(0);
        let layout = layout(&batch, &parts, Room { blocks: 64, ..ROOM }, map, 8);
        let part = |at: usize, len: usize| &layout.numbers[at..at + len];
        assert_eq!((layout.tokens, layout.narrow, layout.wide, layout.rows), (8, 2, 1, 3));
        assert_eq!((layout.splits, layout.kept_rows), (2, 3));
        assert_eq!(part(map.tokens, 8), [100, 101, 102, 103, 104, 105, 106, 0]);
        assert_eq!(part(map.positions, 7), [300, 20, 21, 22, 23, 24, 25]);
        assert_eq!(part(map.slots, 8), [300, 20, 21, 22, 23, 24, 25, -1]);
        assert_eq!(part(map.rows, 3), [0, 5, 6]);
        assert_eq!(part(map.spans, 8), [0, 1, 300, 0, 1, 6, 20, 19]);
        assert_eq!(part(map.narrow, 4), [0, 0, -1, 0]);
        assert_eq!(part(map.wide, 2), [1, 0]);
        assert_eq!(layout.numbers[map.blocks..], (0..19).chain(0..2).collect::<Vec<i32>>());
    }
}
