//! What goes into a step: a token of each decoding sequence, prefill chunks within the budget, sequences that are let
//! in, and drafts.

use super::{Part, Scheduler};
use crate::forward::TokenId;
use crate::sequence::SequenceId;
use crate::sharing;
use crate::speculation::{Base, Candidate, DRAFT_MAX, Speculation, lengths};
use crate::step::Admitted;

/// Prompt tokens that go beside decodes however long the step takes, so that prompts come to their end.
const CHUNK_MIN: usize = 16;
/// What a step without decodes may take longer than one with them.
const ALONE_FACTOR: u64 = 4;

/// Makes drafts: a sequence's name and tokens in, any tokens out.
pub(super) type DraftSource<'a> = &'a mut dyn FnMut(SequenceId, &[TokenId]) -> Vec<TokenId>;

/// A step while it is put together.
pub(super) struct StepPlan {
    pub parts: Vec<Part>,
    /// Parts that decode; they come first.
    decodes: usize,
    tokens: usize,
    /// Tokens at most.
    most: usize,
    /// The same for the first prompt, and for the others.
    most_first: usize,
    most_others: usize,
}

impl StepPlan {
    pub fn new(most: usize) -> Self {
        Self { parts: Vec::new(), decodes: 0, tokens: 0, most, most_first: most, most_others: most }
    }

    fn add(&mut self, sequence: SequenceId, new_tokens: usize, logits: usize) {
        self.tokens += new_tokens;
        self.parts.push(Part { sequence, new_tokens, logits, draft: Vec::new() });
    }

    /// Tokens that still fit.
    fn room(&self) -> usize {
        self.most.saturating_sub(self.tokens)
    }

    /// Prompt tokens that still fit.
    fn prefill_room(&self) -> usize {
        let is_first = self.parts.len() == self.decodes;
        let most = if is_first { self.most_first } else { self.most_others };
        most.saturating_sub(self.tokens)
    }

    fn add_draft(&mut self, index: usize, draft: Vec<TokenId>) {
        let part = &mut self.parts[index];
        self.tokens += draft.len();
        part.new_tokens += draft.len();
        part.logits += draft.len();
        part.draft = draft;
    }
}

impl Scheduler {
    /// One token of every decoding sequence, the best standing first. Answers whether any sequence was preempted.
    pub(super) fn plan_decodes(&mut self, plan: &mut StepPlan) -> bool {
        let mut preempted = false;
        let mut index = 0;
        // `running` only shrinks at its end here, behind the index: the lowest standing is the victim.
        while index < self.running.len() {
            let id = self.running[index];
            index += 1;
            if !self.sequences[&id].decoding {
                continue;
            }
            while !self.grow(id) {
                preempted = true;
                match self.preempt_last() {
                    Some(victim) if victim != id => {}
                    _ => break,
                }
            }
            if index <= self.running.len() {
                plan.add(id, 1, 1);
                plan.decodes += 1;
            }
        }
        preempted
    }

    /// Prefill chunks of running sequences, the best standing first, while the budget lasts.
    pub(super) fn plan_prefills(&mut self, plan: &mut StepPlan) {
        for id in &self.running {
            let sequence = &self.sequences[id];
            if sequence.decoding {
                continue;
            }
            let chunk = sequence.remaining().min(plan.prefill_room());
            if chunk == 0 {
                break;
            }
            plan.add(*id, chunk, usize::from(chunk == sequence.remaining()));
        }
    }

    /// Lets waiting sequences in, in the queue's order, while slots, blocks and budget last. Who is next is
    /// never passed over for want of blocks. Answers those that join for the first time.
    pub(super) fn admit(&mut self, plan: &mut StepPlan) -> Vec<Admitted> {
        let mut admitted = Vec::new();
        while plan.prefill_room() > 0 && self.running.len() < self.config.max_running {
            let Some(id) = self.waiting.next() else { break };
            let Some(sequence) = self.sequences.get_mut(&id) else { break };
            if !sharing::take_blocks(&mut self.pool, sequence, self.kv_block_tokens) {
                break;
            }
            let (hit, miss) = (sequence.computed, sequence.remaining());
            self.waiting.take_next(id, miss);
            let is_new = sequence.admission.is_none();
            if is_new {
                self.admissions += 1;
                sequence.admission = Some(self.admissions);
            }
            let chunk = miss.min(plan.prefill_room());
            plan.add(id, chunk, usize::from(chunk == miss));
            if is_new {
                self.totals.prefix_hit_tokens_total += hit as u64;
                self.totals.prefix_miss_tokens_total += miss as u64;
                admitted.push(Admitted { id, cached_tokens: hit.min(sequence.prompt_tokens) });
            }
            let standing = sequence.standing();
            let place = self.running.partition_point(|other| self.sequences[other].standing() < standing);
            self.running.insert(place, id);
            // Of a cached prefix it needs what its first token sees.
            self.release_passed(id);
        }
        admitted
    }

    /// Makes sure that the newest token of a decoding sequence has a block; false when none is free.
    fn grow(&mut self, id: SequenceId) -> bool {
        let Some(sequence) = self.sequences.get_mut(&id) else { return true };
        let wanted = sequence.tokens.len().div_ceil(self.kv_block_tokens);
        let missing = wanted.saturating_sub(sequence.blocks.len());
        self.pool.allocate(missing, &mut sequence.blocks)
    }

    /// Puts the one of the lowest standing back into the queue, without its blocks.
    fn preempt_last(&mut self) -> Option<SequenceId> {
        let id = self.running.pop()?;
        let sequence = self.sequences.get_mut(&id)?;
        self.pool.release(&mut sequence.blocks);
        sequence.restart();
        sequence.preemptions = sequence.preemptions.saturating_add(1);
        self.totals.preemptions_total += 1;
        self.waiting.push_returned(id, sequence.standing());
        Some(id)
    }

    /// Sets how many prompt tokens go beside the decodes that are planned.
    ///
    /// With decodes, the step should take no longer than the target. With none, a long prompt may fill a long step,
    /// which is how it is computed fastest; but prompts that could each end in a short one do not wait for each other.
    pub(super) fn limit_prefill(&self, plan: &mut StepPlan) {
        // Most steps have no prompt to limit.
        if plan.decodes == self.running.len() && self.waiting.len() == 0 {
            return;
        }
        let (step_tokens, target_ns) = (self.config.step_tokens, self.config.itl_target_ns);
        let chunk_tokens = self.config.chunk_tokens.min(step_tokens);
        let within = |limit_ns, least| self.cost.tokens_within(limit_ns, least, step_tokens);
        if plan.decodes > 0 {
            let least = (plan.decodes + CHUNK_MIN).min(step_tokens);
            let most = within(target_ns, least).unwrap_or(chunk_tokens.max(least));
            (plan.most_first, plan.most_others) = (most, most);
        } else {
            let alone_ns = target_ns.saturating_mul(ALONE_FACTOR);
            plan.most_first = within(alone_ns, chunk_tokens).unwrap_or(chunk_tokens);
            plan.most_others = chunk_tokens;
        }
    }

    /// Adds drafts to the decodes of a step, as many as pay or as `source` makes.
    pub(super) fn plan_drafts(&mut self, plan: &mut StepPlan, mut source: Option<DraftSource<'_>>) {
        let (mut candidates, mut indices) = (Vec::new(), Vec::new());
        if self.config.speculation == Speculation::Off && source.is_none() {
            return;
        }
        for (index, part) in plan.parts.iter().enumerate().take(plan.decodes) {
            let Some(sequence) = self.sequences.get_mut(&part.sequence) else { continue };
            // One token more than drafted is drawn.
            let most = sequence.output_left(&self.rule).saturating_sub(1).min(DRAFT_MAX);
            let Some(drafter) = &mut sequence.drafter else { continue };
            let rate = if source.is_some() { Some(1.0) } else { drafter.look(&sequence.tokens) };
            if let Some(rate) = rate {
                candidates.push(Candidate { rate, most });
                indices.push(index);
            }
        }
        if candidates.is_empty() {
            return;
        }
        let base = Base { tokens: plan.tokens, decodes: plan.decodes, drafting: self.drafting };
        let lengths = match self.config.speculation {
            Speculation::WhenItPays if source.is_none() => lengths(&candidates, base, &self.cost),
            _ => candidates.iter().map(|candidate| candidate.most).collect(),
        };
        for (index, length) in indices.into_iter().zip(lengths) {
            self.draft(plan, index, length, &mut source);
        }
        self.drafting = plan.parts.iter().any(|part| !part.draft.is_empty());
    }

    /// Drafts up to `most` tokens for one part, within the step's room and the free blocks.
    fn draft(&mut self, plan: &mut StepPlan, index: usize, most: usize, source: &mut Option<DraftSource<'_>>) {
        let id = plan.parts[index].sequence;
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let most = most.min(plan.room());
        let Some(drafter) = sequence.drafter.as_ref().filter(|_| most > 0) else { return };
        let mut draft = match source {
            Some(source) => source(id, &sequence.tokens),
            None => drafter.draft(&sequence.tokens, most),
        };
        // What is outside the vocabulary would fail the step.
        let usable = draft.iter().take(most).take_while(|token| (**token as usize) < self.vocab).count();
        draft.truncate(usable);
        let blocks = (sequence.tokens.len() + draft.len()).div_ceil(self.kv_block_tokens);
        let missing = blocks.saturating_sub(sequence.blocks.len());
        if !self.pool.allocate(missing, &mut sequence.blocks) {
            // No sequence gives way for a guess.
            draft.truncate(sequence.blocks.len() * self.kv_block_tokens - sequence.tokens.len());
        }
        plan.add_draft(index, draft);
    }
}
