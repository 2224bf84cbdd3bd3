//! The pool of KV blocks: which are free, how often each is held, and which are kept for the prefix cache. It
//! knows indices only; the memory behind them is the device's.
//!
//! A block is in one of three states: free; held by one sequence or more; or idle, that is held by nobody and
//! kept because the index still finds its content. Idle blocks are room like free ones: they are evicted when
//! somebody needs them, the least valuable first. A block's value is how often it was found again, above the value
//! of the last block that was evicted (GreedyDual with frequencies; Cherkasova 1998; all blocks cost the same to compute
//! again and to keep); among equals the longest unused is worth least. So a prompt that many requests share outlives
//! a flood of prompts that come once, and what was popular long ago goes in the end.
//!
//! That order alone takes every chain from its end (a block is useful only after all blocks before it): who holds a
//! cached block holds the cached blocks before it, so those are found as often at least, and blocks are given back
//! last first, so a block becomes idle before its parent does. [`PrefixIndex::remove`] asserts it. Where attention
//! has a window, sequences give back what fell out of it, and a block may go before those behind it: then these go
//! out of the index with it, since nobody could find them any more.
//!
//! The free list is a stack over a fixed initial order, which keeps every run of the scheduler
//! reproducible and hands out the blocks that are warmest in cache first.

use crate::forward::BlockId;
use crate::prefix::{Link, PrefixIndex, Published};
use std::collections::BTreeMap;

/// Stands in a table for a block that fell out of the attention's window and was given back.
pub const NO_BLOCK: BlockId = BlockId::MAX;
/// Finds beyond which a block gains no more value, so that old fame fades in bounded time.
const HITS_MAX: u64 = 7;

/// What an idle block is worth: the lowest is evicted first. Value, then the moment at which it became idle.
type Worth = (u64, u64);

/// Owns all blocks of a device.
#[derive(Clone, Debug)]
pub struct BlockPool {
    /// Free blocks; the next one to hand out is the last.
    free: Vec<BlockId>,
    holders: Vec<u32>,
    index: PrefixIndex,
    idle: BTreeMap<Worth, BlockId>,
    /// By block; of no meaning while it is not idle.
    worth: Vec<Worth>,
    /// How often each block was found again, since it is in the index.
    hits: Vec<u64>,
    /// Value of the last block that was evicted.
    floor: u64,
    /// Blocks that became idle so far: the clock of [`Worth`].
    moments: u64,
    /// Whether sequences give back the beginnings of their chains before the ends.
    windowed: bool,
}

impl BlockPool {
    /// A pool of `count` free blocks, handed out from 0 upwards.
    pub fn new(count: usize) -> Self {
        let blocks = u32::try_from(count).unwrap_or(u32::MAX);
        let count = blocks as usize;
        Self {
            free: (0..blocks).rev().collect(),
            holders: vec![0; count],
            index: PrefixIndex::new(count),
            idle: BTreeMap::new(),
            worth: vec![(0, 0); count],
            hits: vec![0; count],
            floor: 0,
            moments: 0,
            windowed: false,
        }
    }

    /// The same for sequences that give back what fell out of a window.
    pub(crate) fn windowed(self) -> Self {
        Self { windowed: true, ..self }
    }

    /// Blocks in all.
    pub fn total(&self) -> usize {
        self.holders.len()
    }

    /// Blocks that nobody holds, idle ones included.
    pub fn free(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Appends `count` blocks to `table`, or takes none and answers false when there are too few.
    pub fn allocate(&mut self, count: usize, table: &mut Vec<BlockId>) -> bool {
        if count > self.free() {
            return false;
        }
        while self.free.len() < count {
            let Some((worth, block)) = self.idle.pop_first() else { return false };
            self.floor = worth.0;
            if self.windowed {
                self.distrust(&[block]);
            } else {
                self.index.remove(block);
                self.forget(block);
            }
        }
        for block in self.free.drain(self.free.len() - count..).rev() {
            self.holders[block as usize] = 1;
            table.push(block);
        }
        true
    }

    /// Appends the cached blocks `shared` and then `count` new ones to `table`, or takes none and answers false.
    pub(crate) fn share_and_allocate(&mut self, shared: &[BlockId], count: usize, table: &mut Vec<BlockId>) -> bool {
        let idle = shared.iter().filter(|block| self.holders[**block as usize] == 0).count();
        if count > self.free() - idle {
            return false;
        }
        for block in shared {
            self.hold(*block);
            table.push(*block);
        }
        self.allocate(count, table)
    }

    fn hold(&mut self, block: BlockId) {
        assert!(self.index.contains(block), "block {block} is shared without being published");
        let holders = &mut self.holders[block as usize];
        if *holders == 0 {
            self.idle.remove(&self.worth[block as usize]);
        }
        *holders += 1;
        self.hits[block as usize] += 1;
    }

    /// Gives back every block of `table`, last first, so that chains become idle from their end and the next
    /// taker gets free ones in the same order.
    pub fn release(&mut self, table: &mut Vec<BlockId>) {
        let first_held = table.iter().find(|block| **block != NO_BLOCK).copied();
        self.release_after(table, 0);
        // What it gave back before, as it fell out of the window, is worth more than what came after it.
        let mut at = first_held.filter(|_| self.windowed).and_then(|block| self.index.parent(block));
        while let Some(block) = at {
            if self.holders[block as usize] == 0 {
                self.idle.remove(&self.worth[block as usize]);
                self.make_idle(block);
            }
            at = self.index.parent(block);
        }
    }

    /// Gives back all blocks of `table` but the first `keep`, last first.
    pub(crate) fn release_after(&mut self, table: &mut Vec<BlockId>, keep: usize) {
        while table.len() > keep
            && let Some(block) = table.pop()
        {
            self.release_one(block);
        }
    }

    /// Gives back these blocks of a table and puts [`NO_BLOCK`] in their places. The first ones have to be worth
    /// most, so they go last.
    pub(crate) fn release_passed(&mut self, blocks: &mut [BlockId]) {
        for block in blocks.iter_mut().rev() {
            self.release_one(std::mem::replace(block, NO_BLOCK));
        }
    }

    fn release_one(&mut self, block: BlockId) {
        if block == NO_BLOCK {
            return;
        }
        let holders = &mut self.holders[block as usize];
        assert!(*holders > 0, "block {block} is released more often than it was taken");
        *holders -= 1;
        if *holders > 0 {
            return;
        }
        if !self.index.contains(block) {
            return self.free.push(block);
        }
        self.make_idle(block);
    }

    /// Keeps a block that is in the index and held by nobody.
    fn make_idle(&mut self, block: BlockId) {
        self.moments += 1;
        let worth = (self.floor + 1 + self.hits[block as usize].min(HITS_MAX), self.moments);
        self.worth[block as usize] = worth;
        self.idle.insert(worth, block);
    }

    /// A block that is out of the index and held by nobody is free.
    fn forget(&mut self, block: BlockId) {
        self.hits[block as usize] = 0;
        self.free.push(block);
    }

    /// The cached block that holds exactly this.
    pub(crate) fn find(&self, link: &Link<'_>) -> Option<BlockId> {
        self.index.find(link)
    }

    /// Lets `block`, held by the caller and full, be found; false when it cannot be. When the same content is
    /// cached in another block, the caller gets that one in place of its own: what is in the pool once is
    /// held by all who need it, and whoever holds a cached block holds those before it.
    pub(crate) fn publish(&mut self, link: &Link<'_>, block: &mut BlockId) -> bool {
        match self.index.publish(link, *block) {
            Published::Here => true,
            Published::Elsewhere(cached) => {
                self.hold(cached);
                self.release_one(std::mem::replace(block, cached));
                true
            }
            Published::Not => false,
        }
    }

    /// Whether nobody but its one holder can see what is written to a block.
    pub(crate) fn is_private(&self, block: BlockId) -> bool {
        self.holders[block as usize] == 1 && !self.index.contains(block)
    }

    /// Takes these blocks and all that were computed from them out of the cache: their content is in doubt.
    /// Who holds them still does.
    pub(crate) fn distrust(&mut self, blocks: &[BlockId]) {
        for block in self.index.remove_chains(blocks) {
            if self.holders[block as usize] == 0 {
                self.idle.remove(&self.worth[block as usize]);
                self.forget(block);
            }
            self.hits[block as usize] = 0;
        }
    }

    pub(crate) fn index(&self) -> &PrefixIndex {
        &self.index
    }

    /// What is wrong with the pool, if anything, when these are all blocks that anybody holds, each as often
    /// as it is held.
    pub(crate) fn audit(&self, held: impl Iterator<Item = BlockId>) -> Result<(), String> {
        let mut holders = vec![0; self.total()];
        held.filter(|block| *block != NO_BLOCK).for_each(|block| holders[block as usize] += 1);
        if holders != self.holders {
            return Err(format!("blocks are held {:?} times, by the tables {holders:?}", self.holders));
        }
        let mut places = holders.iter().map(|count| usize::from(*count > 0)).collect::<Vec<_>>();
        for block in &self.free {
            places[*block as usize] += 1;
            if self.index.contains(*block) {
                return Err(format!("free block {block} can be found"));
            }
        }
        for (worth, block) in &self.idle {
            places[*block as usize] += 1;
            if !self.index.contains(*block) || self.worth[*block as usize] != *worth {
                return Err(format!("idle block {block} cannot be found, or not in its order"));
            }
            let parent = self.index.parent(*block).filter(|parent| self.holders[*parent as usize] == 0);
            if !self.windowed && parent.is_some_and(|parent| self.worth[parent as usize] < *worth) {
                return Err(format!("block {block} would be evicted after the block before it"));
            }
        }
        if places.iter().any(|count| *count != 1) {
            return Err(format!("blocks are in this many places: {places:?}"));
        }
        self.index.audit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prefix::BlockKey;
    use std::sync::Arc;

    #[test]
    fn hands_out_in_a_fixed_order_and_takes_all_or_nothing() {
        let mut pool = BlockPool::new(4);
        let (mut one, mut two) = (Vec::new(), Vec::new());
        assert!(pool.allocate(3, &mut one));
        assert_eq!(one, [0, 1, 2]);
        assert!(!pool.allocate(2, &mut two));
        assert_eq!((two.len(), pool.free()), (0, 1));
        pool.release(&mut one);
        assert_eq!((one.len(), pool.free(), pool.total()), (0, 4, 4));
        assert!(pool.allocate(2, &mut two));
        assert_eq!(two, [0, 1]);
    }

    /// Publishes a table as the chain of its own block numbers.
    fn publish(pool: &mut BlockPool, table: &mut [BlockId], first: u32) {
        let tenant: Arc<str> = "t".into();
        let mut key = BlockKey::root("m", None, "t");
        let mut parent = None;
        for (depth, block) in table.iter_mut().enumerate() {
            let tokens = [first + depth as u32];
            key = key.child(&tokens);
            assert!(pool.publish(&Link { key, tenant: &tenant, adapter: None, parent, tokens: &tokens }, block));
            parent = Some(*block);
        }
    }

    #[test]
    fn evicts_the_longest_unused_chain_from_its_end() {
        let mut pool = BlockPool::new(5);
        let (mut old, mut new) = (Vec::new(), Vec::new());
        assert!(pool.allocate(3, &mut old) && pool.allocate(2, &mut new));
        publish(&mut pool, &mut old, 10);
        publish(&mut pool, &mut new, 20);
        let (old_blocks, new_blocks) = (old.clone(), new.clone());
        pool.release(&mut old);
        pool.release(&mut new);
        assert_eq!(pool.free(), 5);
        // The first block of the older chain is used again, and so is worth more than the newer chain.
        let mut user = Vec::new();
        assert!(pool.share_and_allocate(&old_blocks[..1], 0, &mut user));
        pool.release(&mut user);
        let mut evicted = Vec::new();
        let mut takers = Vec::new();
        for _ in 0..5 {
            assert!(pool.allocate(1, &mut takers));
            evicted.push(takers[takers.len() - 1]);
            assert_eq!(pool.audit(takers.iter().copied()), Ok(()));
        }
        assert_eq!(evicted, [old_blocks[2], old_blocks[1], new_blocks[1], new_blocks[0], old_blocks[0]]);
    }

    /// Takes and gives back `count` blocks whose content comes once.
    fn flood(pool: &mut BlockPool, count: usize, first: u32) {
        let mut table = Vec::new();
        assert!(pool.allocate(count, &mut table));
        publish(pool, &mut table, first);
        pool.release(&mut table);
        assert_eq!(pool.audit(std::iter::empty()), Ok(()));
    }

    #[test]
    fn what_is_often_found_outlives_a_flood_but_not_forever() {
        let mut pool = BlockPool::new(8);
        let mut popular = Vec::new();
        assert!(pool.allocate(2, &mut popular));
        publish(&mut pool, &mut popular, 10);
        let blocks = popular.clone();
        pool.release(&mut popular);
        for _ in 0..3 {
            assert!(pool.share_and_allocate(&blocks, 0, &mut popular));
            pool.release(&mut popular);
        }
        let tenant: Arc<str> = "t".into();
        let key = BlockKey::root("m", None, "t").child(&[10]);
        let first = Link { key, tenant: &tenant, adapter: None, parent: None, tokens: &[10] };
        // Twice the pool by prompts of a quarter of it each.
        (0..8).for_each(|n| flood(&mut pool, 2, 1000 * (n + 1)));
        assert_eq!(pool.find(&first), Some(blocks[0]));
        (8..80).for_each(|n| flood(&mut pool, 2, 1000 * (n + 1)));
        assert_eq!(pool.find(&first), None);
    }

    #[test]
    fn a_beginning_that_fell_out_of_the_window_takes_its_chain_out_of_the_index() {
        let mut pool = BlockPool::new(4).windowed();
        let mut table = Vec::new();
        assert!(pool.allocate(3, &mut table));
        publish(&mut pool, &mut table, 10);
        let blocks = table.clone();
        pool.release_passed(&mut table[..1]);
        assert_eq!((table[0], pool.free()), (NO_BLOCK, 2));
        assert_eq!(pool.audit(table.iter().copied()), Ok(()));
        let mut other = Vec::new();
        assert!(pool.allocate(2, &mut other));
        assert!(blocks.iter().all(|block| !pool.index.contains(*block)));
        assert_eq!(pool.audit(table.iter().chain(&other).copied()), Ok(()));
        pool.release(&mut table);
        pool.release(&mut other);
        assert_eq!((pool.free(), pool.audit(std::iter::empty())), (4, Ok(())));
    }

    #[test]
    fn the_same_content_is_kept_once() {
        let mut pool = BlockPool::new(4);
        let (mut one, mut two) = (Vec::new(), Vec::new());
        assert!(pool.allocate(2, &mut one) && pool.allocate(2, &mut two));
        publish(&mut pool, &mut one, 10);
        publish(&mut pool, &mut two, 10);
        assert_eq!((&one, pool.free()), (&two, 2));
        // What is shared is no room for those who share it.
        let mut three = Vec::new();
        let shared = one.clone();
        assert!(!pool.share_and_allocate(&shared, 3, &mut three));
        assert!(pool.share_and_allocate(&shared, 2, &mut three));
        pool.distrust(&shared[1..]);
        for table in [&mut one, &mut two, &mut three] {
            pool.release(table);
        }
        assert_eq!(pool.free(), 4);
        assert_eq!(pool.audit(std::iter::empty()), Ok(()));
    }
}
