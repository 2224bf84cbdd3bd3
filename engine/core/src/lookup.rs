//! Drafting by looking up: what came after the last tokens when they stood in this sequence before (prompt-lookup
//! decoding; Saxena 2023, after the n-gram part of Yang et al., "Inference with reference", 2023).
//!
//! The search is that of LZ77 compressors: a table of hashes leads to the latest place of each pair of tokens,
//! from there a chain leads to the earlier ones, and of a bounded number of places the one wins whose tokens before
//! agree longest with the sequence's end, the latest among equals. So a look-up costs next to nothing beside a step,
//! however long the sequence is.

use crate::forward::TokenId;

/// Tokens that must agree at least.
const GRAM: usize = 2;
/// Agreement beyond which longer is no better.
const AGREEMENT_MAX: usize = 32;
/// Places that are compared.
const PLACES_MAX: usize = 24;
/// Marks the end of a chain.
const NOWHERE: u32 = u32::MAX;

/// Where to copy from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Position whose token is the first of the draft.
    from: usize,
    /// Tokens before it that agree with the sequence's last ones, at least two.
    pub agreement: usize,
}

/// The places of every pair of tokens in one sequence.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lookup {
    /// The latest place by hash; a power of two of them, or none before the first look-up.
    heads: Vec<u32>,
    /// The place before, by place.
    before: Vec<u32>,
}

impl Lookup {
    /// The best place to go on copying from.
    pub fn find(&mut self, tokens: &[TokenId]) -> Option<Found> {
        self.index(tokens);
        let end = tokens.len();
        if end < GRAM {
            return None;
        }
        let mut place = self.heads[self.slot(tokens, end)];
        let mut best: Option<Found> = None;
        for _ in 0..PLACES_MAX {
            if place == NOWHERE {
                break;
            }
            let from = place as usize;
            let agreement = agreement(tokens, from);
            // Hashes collide; two tokens that agree are the least.
            if agreement >= GRAM && best.is_none_or(|best| agreement > best.agreement) {
                best = Some(Found { from, agreement });
            }
            if agreement == AGREEMENT_MAX {
                break;
            }
            place = self.before[from];
        }
        best
    }

    /// Takes the places that are new: all but the sequence's end, after which nothing is known.
    fn index(&mut self, tokens: &[TokenId]) {
        if tokens.len() > self.heads.len() {
            let slots = (2 * tokens.len()).next_power_of_two().max(256);
            *self = Self { heads: vec![NOWHERE; slots], before: Vec::with_capacity(slots) };
        }
        for place in self.before.len()..tokens.len() {
            let before = if place < GRAM {
                NOWHERE
            } else {
                let slot = self.slot(tokens, place);
                std::mem::replace(&mut self.heads[slot], place as u32)
            };
            self.before.push(before);
        }
    }

    /// Where the pair before a place is found.
    fn slot(&self, tokens: &[TokenId], place: usize) -> usize {
        let pair = u64::from(tokens[place - 2]) << 32 | u64::from(tokens[place - 1]);
        let hash = pair.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // The high bits are the well mixed ones.
        (hash >> (64 - self.heads.len().ilog2())) as usize
    }
}

/// How many tokens before `place` agree with the last ones of all.
fn agreement(tokens: &[TokenId], place: usize) -> usize {
    let (here, end) = (&tokens[..place], tokens);
    let agree = here.iter().rev().zip(end.iter().rev()).take(AGREEMENT_MAX);
    agree.take_while(|(a, b)| a == b).count()
}

/// What comes after a place, `count` tokens of it. Behind the sequence's end the draft itself goes on, so that a
/// short cycle is drafted for as long as wanted.
pub(crate) fn copy(tokens: &[TokenId], found: Found, count: usize) -> Vec<TokenId> {
    let period = tokens.len() - found.from;
    (0..count).map(|index| tokens[found.from + index % period]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(tokens: &[TokenId], expected: Option<(&[TokenId], usize)>) {
        let found = Lookup::default().find(tokens);
        let draft = found.map(|found| (copy(tokens, found, 4), found.agreement));
        assert_eq!(draft, expected.map(|(draft, agreement)| (draft.to_vec(), agreement)), "{tokens:?}");
    }

    #[test]
    fn the_longest_agreement_wins_and_then_the_latest() {
        check(&[], None);
        check(&[1], None);
        check(&[1, 2, 3, 4], None);
        check(&[1, 2, 9, 9, 2], None);
        check(&[1, 2, 7, 8, 9, 1, 2], Some((&[7, 8, 9, 1], 2)));
        check(&[1, 2, 7, 8, 1, 2, 5, 6, 1, 2], Some((&[5, 6, 1, 2], 2)));
        check(&[4, 1, 2, 7, 8, 9, 1, 2, 5, 6, 4, 1, 2], Some((&[7, 8, 9, 1], 3)));
        // A cycle goes on behind the end.
        check(&[5, 6, 5, 6, 5], Some((&[6, 5, 6, 5], 3)));
        check(&[3, 3, 3], Some((&[3, 3, 3, 3], 2)));
    }

    proptest! {
        /// As by comparing every place, while there are no more than are looked at.
        #[test]
        fn it_finds_what_a_full_search_finds(tokens in proptest::collection::vec(0..6u32, 0..24), cut in 0..24usize) {
            let mut lookup = Lookup::default();
            // An index that has grown with the sequence is like a fresh one.
            lookup.find(&tokens[..cut.min(tokens.len())]);
            let found = lookup.find(&tokens);
            let places = (GRAM..tokens.len()).map(|from| Found { from, agreement: agreement(&tokens, from) });
            let best = places.filter(|found| found.agreement >= GRAM).max_by_key(|found| (found.agreement, found.from));
            prop_assert_eq!(found, best);
        }
    }
}
