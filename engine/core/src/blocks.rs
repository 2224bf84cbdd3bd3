//! The pool of KV blocks: which are free and how often each is held. It knows indices only; the memory
//! behind them is the device's.
//!
//! Blocks are counted rather than flagged, so that a prefix cache can let several sequences hold one.
//! The free list is a stack over a fixed initial order, which keeps every run of the scheduler
//! reproducible and hands out the blocks that are warmest in cache first.

use crate::forward::BlockId;

/// Owns the free list. A block is in exactly one of two states: free, or held `holders[block]` times.
#[derive(Clone, Debug)]
pub struct BlockPool {
    /// Free blocks; the next one to hand out is the last.
    free: Vec<BlockId>,
    holders: Vec<u32>,
}

impl BlockPool {
    /// A pool of `count` free blocks, handed out from 0 upwards.
    pub fn new(count: usize) -> Self {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        Self { free: (0..count).rev().collect(), holders: vec![0; count as usize] }
    }

    /// Blocks in all.
    pub fn total(&self) -> usize {
        self.holders.len()
    }

    /// Blocks that nobody holds.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Appends `count` blocks to `table`, or takes none and answers false when there are too few.
    pub fn allocate(&mut self, count: usize, table: &mut Vec<BlockId>) -> bool {
        if count > self.free.len() {
            return false;
        }
        for block in self.free.drain(self.free.len() - count..).rev() {
            self.holders[block as usize] = 1;
            table.push(block);
        }
        true
    }

    /// Gives back every block of `table`, last first, so that the next taker gets them in the same order.
    pub fn release(&mut self, table: &mut Vec<BlockId>) {
        while let Some(block) = table.pop() {
            let holders = &mut self.holders[block as usize];
            assert!(*holders > 0, "block {block} is released more often than it was taken");
            *holders -= 1;
            if *holders == 0 {
                self.free.push(block);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::BlockPool;

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
}
