//! How sequences share blocks through the prefix cache: what one finds at its admission, and what it leaves
//! for others as it is computed.
//!
//! Only full blocks are shared, and a full block is never written again, so there is no copy-on-write: a
//! sequence starts to compute at a block's beginning, in a block of its own.

use crate::blocks::BlockPool;
use crate::forward::BlockId;
use crate::sequence::Sequence;

/// Gives a sequence that holds none blocks for its whole prefix, those of the longest cached prefix among
/// them; false, and none, when there are too few.
pub(crate) fn take_blocks(pool: &mut BlockPool, sequence: &mut Sequence, block_tokens: usize) -> bool {
    let shared = longest_prefix(pool, sequence, block_tokens);
    let missing = sequence.tokens.len().div_ceil(block_tokens) - shared.len();
    if !pool.share_and_allocate(&shared, missing, &mut sequence.blocks) {
        return false;
    }
    sequence.published = shared.len();
    sequence.computed = shared.len() * block_tokens;
    true
}

/// Cached blocks that hold the beginning of a sequence. At least its last token is left to compute, because
/// the next one is drawn from its logits.
fn longest_prefix(pool: &BlockPool, sequence: &mut Sequence, block_tokens: usize) -> Vec<BlockId> {
    let most = sequence.tokens.len().saturating_sub(1) / block_tokens;
    let mut found: Vec<BlockId> = Vec::new();
    while found.len() < most {
        let Some(block) = pool.find(&sequence.link(found.len(), found.last().copied(), block_tokens)) else { break };
        found.push(block);
    }
    found
}

/// Lets the blocks that a sequence has filled be found. No step may be in flight that reads its table: a block
/// that is cached already takes its own's place.
pub(crate) fn publish_computed(pool: &mut BlockPool, sequence: &mut Sequence, block_tokens: usize) {
    // Its chain was cut while it went on: what it gave back since is no parent any more.
    if sequence.released > 0 && sequence.published <= sequence.released {
        return;
    }
    while (sequence.published + 1) * block_tokens <= sequence.computed {
        let index = sequence.published;
        let parent = index.checked_sub(1).map(|before| sequence.blocks[before]);
        let mut block = sequence.blocks[index];
        if !pool.publish(&sequence.link(index, parent, block_tokens), &mut block) {
            return;
        }
        sequence.blocks[index] = block;
        sequence.published += 1;
    }
}
