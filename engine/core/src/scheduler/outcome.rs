//! What becomes of a step: its draws are taken, drafts accepted as far as they were right, ends and failures noted,
//! and blocks given back.

use super::{InFlight, Part, Scheduler};
use crate::error::StepError;
use crate::sequence::{EndReason, EndRule, Sequence, SequenceId};
use crate::sharing;
use crate::step::{Sampled, SequenceEvent, StepId};

/// Why a sequence does not go on.
enum Close {
    Ended(EndReason),
    Failed,
}

impl Scheduler {
    /// Takes the results of a step: one entry for each of its logits rows, in order.
    pub fn complete(&mut self, step: StepId, sampled: &[Sampled]) -> Result<Vec<SequenceEvent>, StepError> {
        let in_flight = self.take_in_flight(step)?;
        let rows: usize = in_flight.parts.iter().map(|part| part.logits).sum();
        if rows != sampled.len() {
            self.in_flight = Some(in_flight);
            return Err(StepError::RowCount { expected: rows, got: sampled.len() });
        }
        let mut events = Vec::with_capacity(rows * 2);
        let mut rest = sampled;
        for part in &in_flight.parts {
            let (own, others) = rest.split_at(part.logits);
            self.complete_part(part, own, &mut events);
            rest = others;
        }
        self.release_orphans(in_flight);
        Ok(events)
    }

    /// Takes the failure of a step: the sequences at these indices of the batch are lost, the others
    /// compute the same positions again in a later step.
    pub fn fail(&mut self, step: StepId, lost: &[usize]) -> Result<Vec<SequenceEvent>, StepError> {
        let in_flight = self.take_in_flight(step)?;
        let mut events = Vec::new();
        for part in lost.iter().filter_map(|index| in_flight.parts.get(*index)) {
            if self.lose(part.sequence) {
                events.push(SequenceEvent::Failed { id: part.sequence });
            }
        }
        for part in &in_flight.parts {
            self.release_drafted(part.sequence);
        }
        self.release_orphans(in_flight);
        Ok(events)
    }

    /// Forgets a sequence, at any time; false when there is none by that name. Its blocks are free at
    /// once, or after the step in flight when that step computes it.
    pub fn cancel(&mut self, id: SequenceId) -> bool {
        self.remove(id).is_some()
    }

    fn complete_part(&mut self, part: &Part, sampled: &[Sampled], events: &mut Vec<SequenceEvent>) {
        let id = part.sequence;
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let certain = part.new_tokens - part.draft.len();
        let (decoding, before) = (sequence.decoding, sequence.tokens.len());
        sequence.computed += certain;
        let (accepted, close) = take_draws(sequence, &self.rule, part, sampled);
        let came = &sequence.tokens[before..];
        events.extend(came.iter().map(|token| SequenceEvent::Token { id, token: *token }));
        self.waiting.charge(&sequence.tenant, came.len());
        if let Some(drafter) = &mut sequence.drafter {
            // Behind an end nothing was verified.
            let drafted = if close.is_some() { accepted } else { part.draft.len() };
            drafter.learn(drafted, accepted, came.first().copied());
        }
        let total = if decoding { &mut self.totals.decode_tokens_total } else { &mut self.totals.prefill_tokens_total };
        *total += (certain + accepted) as u64;
        if !part.draft.is_empty() {
            self.totals.drafts_total += 1;
            self.totals.draft_tokens_total += part.draft.len() as u64;
            self.totals.draft_tokens_accepted_total += accepted as u64;
        }
        if !matches!(close, Some(Close::Failed)) {
            sharing::publish_computed(&mut self.pool, sequence, self.kv_block_tokens);
        }
        match close {
            None => {
                self.release_drafted(id);
                self.release_passed(id);
            }
            Some(Close::Ended(reason)) => {
                self.remove(id);
                events.push(SequenceEvent::Ended { id, reason });
            }
            Some(Close::Failed) => {
                self.lose(id);
                events.push(SequenceEvent::Failed { id });
            }
        }
    }

    /// Gives back the blocks that only a draft needed. Those of a prefix that is still being computed all have tokens.
    fn release_drafted(&mut self, id: SequenceId) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            let needed = sequence.tokens.len().div_ceil(self.kv_block_tokens);
            self.pool.release_after(&mut sequence.blocks, needed);
        }
    }

    /// Gives back the blocks that the sequence's next token does not see any more, nor any token after it. The last of
    /// them stays, because the block after it is published as its child.
    pub(super) fn release_passed(&mut self, id: SequenceId) {
        let Some(window_tokens) = self.config.window_tokens else { return };
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let first_seen = (sequence.computed + 1).saturating_sub(window_tokens);
        let passed = (first_seen / self.kv_block_tokens).saturating_sub(1);
        if passed > sequence.released {
            self.pool.release_passed(&mut sequence.blocks[sequence.released..passed]);
            sequence.released = passed;
        }
    }

    /// Takes a sequence out whose computation failed. What it computed may be the reason or the result, so it
    /// must not be found by others.
    fn lose(&mut self, id: SequenceId) -> bool {
        if let Some(sequence) = self.sequences.get(&id) {
            // Those before the window too, which it no longer holds.
            let mut blocks = sequence.blocks.clone();
            let mut first = sequence.blocks.get(sequence.released).copied();
            while let Some(parent) = first.and_then(|block| self.pool.index().parent(block)) {
                blocks.push(parent);
                first = Some(parent);
            }
            self.pool.distrust(&blocks);
        }
        self.remove(id).is_some()
    }

    /// Takes a sequence out of everything. While a step computes it, its blocks stay held until that step ends.
    fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        let mut sequence = self.sequences.remove(&id)?;
        self.running.retain(|other| *other != id);
        self.waiting.remove(&sequence.tenant, id);
        match &mut self.in_flight {
            Some(step) if step.parts.iter().any(|part| part.sequence == id) => {
                step.orphaned.append(&mut sequence.blocks);
            }
            _ => self.pool.release(&mut sequence.blocks),
        }
        Some(sequence)
    }

    fn take_in_flight(&mut self, step: StepId) -> Result<InFlight, StepError> {
        match self.in_flight.take() {
            Some(in_flight) if in_flight.id == step => Ok(in_flight),
            other => {
                self.in_flight = other;
                Err(StepError::NotInFlight)
            }
        }
    }

    fn release_orphans(&mut self, mut step: InFlight) {
        self.pool.release(&mut step.orphaned);
    }
}

/// Appends the tokens that were drawn for a sequence, up to its end or to the first that differs from the draft.
/// Answers how many drafted tokens were drawn as well and so are computed already, and why it ends, if it does.
fn take_draws(sequence: &mut Sequence, rule: &EndRule, part: &Part, sampled: &[Sampled]) -> (usize, Option<Close>) {
    for (row, result) in sampled.iter().enumerate() {
        let (Sampled::Token(token) | Sampled::Last(token)) = *result else { return (row, Some(Close::Failed)) };
        sequence.decoding = true;
        sequence.tokens.push(token);
        let end = match result {
            Sampled::Last(_) => Some(EndReason::Stop),
            _ => rule.end(&sequence.limits, token, sequence.output_tokens(), sequence.tokens.len()),
        };
        if let Some(reason) = end {
            return (row, Some(Close::Ended(reason)));
        }
        if part.draft.get(row) != Some(&token) {
            return (row, None);
        }
        sequence.computed += 1;
    }
    (0, None)
}
