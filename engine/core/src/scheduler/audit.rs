//! What must hold between any two calls of the scheduler, checked as a whole. Tests and simulators ask.

use super::Scheduler;
use crate::blocks::NO_BLOCK;
use crate::sequence::{Sequence, SequenceId};

impl Scheduler {
    /// What is wrong with the scheduler's books, if anything: blocks leaked or owned by somebody who does not
    /// know it, content that can be found before it was computed, by another tenant or adapter, or under a wrong name.
    /// Takes time in proportion to everything there is.
    pub fn audit(&self) -> Result<(), String> {
        let tables = self.sequences.values().flat_map(|sequence| &sequence.blocks);
        let orphaned = self.in_flight.iter().flat_map(|step| &step.orphaned);
        self.pool.audit(tables.chain(orphaned).copied())?;
        for (id, sequence) in &self.sequences {
            self.audit_sequence(*id, sequence).map_err(|error| format!("{id:?}: {error}"))?;
        }
        if self.running.len() + self.waiting.len() != self.sequences.len() {
            return Err("a sequence neither runs nor waits".into());
        }
        Ok(())
    }

    fn audit_sequence(&self, id: SequenceId, sequence: &Sequence) -> Result<(), String> {
        let block_tokens = self.kv_block_tokens;
        let index = self.pool.index();
        if self.running.contains(&id) == sequence.blocks.is_empty() {
            return Err("it runs without blocks or waits with some".into());
        }
        if self.in_flight.is_none() && sequence.blocks.len() > sequence.tokens.len().div_ceil(block_tokens) {
            return Err("it holds blocks for which it has no tokens".into());
        }
        if sequence.published * block_tokens > sequence.computed {
            return Err(format!("{} blocks are published of {} tokens", sequence.published, sequence.computed));
        }
        let (passed, held) = sequence.blocks.split_at(sequence.released);
        if passed.iter().any(|block| *block != NO_BLOCK) || held.contains(&NO_BLOCK) {
            return Err(format!("{} blocks are said to be given back of {:?}", sequence.released, sequence.blocks));
        }
        for (number, block) in sequence.blocks.iter().enumerate().skip(sequence.released) {
            if number >= sequence.published && !self.pool.is_private(*block) {
                return Err(format!("block {block} is shared before it is full and computed"));
            }
            let end = sequence.tokens.len().min((number + 1) * block_tokens);
            let tokens = sequence.tokens.get(number * block_tokens..end).unwrap_or_default();
            let adapter = sequence.adapter.as_ref().map(|adapter| &*adapter.revision);
            if !index.agrees(*block, &sequence.tenant, adapter, tokens) {
                return Err(format!("block {block} can be found under another tenant, adapter or other tokens"));
            }
            let before = number.checked_sub(1).map(|n| sequence.blocks[n]);
            if before != Some(NO_BLOCK) && index.contains(*block) && index.parent(*block) != before {
                return Err(format!("block {block} comes after another block than in the table"));
            }
        }
        Ok(())
    }
}
