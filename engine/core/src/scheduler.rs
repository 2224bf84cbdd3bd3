//! Continuous batching with chunked prefill over paged KV blocks, with a prefix cache.
//!
//! Every step takes one token of each decoding sequence first, then fills the token budget with prefill
//! chunks, oldest sequence first (the scheme of Sarathi-Serve, OSDI '24: decodes never wait for a long
//! prompt). Tenants take turns in being admitted ([`FairQueue`]). A sequence is admitted when there are
//! blocks for its whole prefix, of which it shares those that the cache has ([`sharing`](crate::sharing));
//! afterwards only decoding takes new blocks, one at a time, and when none is left the latest one admitted is
//! preempted: it gives up its blocks, keeps its tokens and goes on later, before anything that was never
//! admitted, with what is then left of its blocks in the cache.
//!
//! Nothing starves: the oldest sequence is never preempted, and `max_sequence_tokens` is at most what the
//! whole pool holds, so it always ends and the next becomes the oldest; and whoever is next to be admitted is
//! waited for, whatever the others need, so it is the oldest in the end.

use crate::blocks::BlockPool;
use crate::error::{ConfigError, StepError, SubmitError};
use crate::forward::{Batch, BatchSequence, BlockId, ForwardShape, TokenId};
use crate::prefix::BlockKey;
use crate::queue::FairQueue;
use crate::sequence::{EndReason, EndRule, Sequence, SequenceId, Submission};
use crate::sharing;
use crate::step::{Admitted, LogitsRow, Sampled, SequenceEvent, Step, StepId, Submitted};
use std::collections::BTreeMap;

mod audit;

/// What may be in the scheduler and in one step.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    /// New tokens in one step, over all sequences.
    pub step_tokens: usize,
    /// Sequences that hold blocks at once; at most `step_tokens`, so that decodes alone never fill a step.
    pub max_running: usize,
    /// Sequences that wait for a slot or blocks before more are refused. Preempted ones do not count.
    pub max_waiting: usize,
    /// End-of-sequence tokens of the model.
    pub eos_token_ids: Vec<TokenId>,
    /// Revision of the model and layout of its KV: prefixes of another one are never found.
    pub prefix_scope: String,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        let (eos_token_ids, prefix_scope) = (Vec::new(), String::new());
        Self { step_tokens: 128, max_running: 32, max_waiting: 256, eos_token_ids, prefix_scope }
    }
}

/// Where things stand, and totals since the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulerStats {
    pub running: usize,
    pub waiting: usize,
    pub kv_blocks_total: usize,
    pub kv_blocks_used: usize,
    pub prefill_tokens_total: u64,
    pub decode_tokens_total: u64,
    pub steps_total: u64,
    pub preemptions_total: u64,
    /// Tokens of sequences as they were first admitted: those that the prefix cache had, and the others.
    pub prefix_hit_tokens_total: u64,
    pub prefix_miss_tokens_total: u64,
}

/// A step that was handed out and not yet completed.
#[derive(Debug)]
struct InFlight {
    id: StepId,
    parts: Vec<Part>,
    /// Blocks of sequences cancelled meanwhile: the device may still write to them.
    orphaned: Vec<BlockId>,
}

/// One sequence's share of a step.
#[derive(Clone, Copy, Debug)]
struct Part {
    sequence: SequenceId,
    new_tokens: usize,
    logits: bool,
}

/// All sequences of one device.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    kv_block_tokens: usize,
    rule: EndRule,
    pool: BlockPool,
    sequences: BTreeMap<SequenceId, Sequence>,
    /// Hold blocks; the first admitted first.
    running: Vec<SequenceId>,
    /// Hold none.
    waiting: FairQueue,
    in_flight: Option<InFlight>,
    totals: SchedulerStats,
}

impl Scheduler {
    /// A scheduler for a device of this shape.
    pub fn new(shape: ForwardShape, config: SchedulerConfig) -> Result<Self, ConfigError> {
        let pool_tokens = shape.kv_blocks.saturating_mul(shape.kv_block_tokens);
        // One token of prompt and one of output is the least that can be served.
        if pool_tokens < 2 {
            return Err(ConfigError::NoBlocks { kv_blocks: shape.kv_blocks });
        }
        if config.max_running == 0 || config.step_tokens < config.max_running {
            return Err(ConfigError::Budget { step_tokens: config.step_tokens, max_running: config.max_running });
        }
        let rule = EndRule {
            eos_token_ids: config.eos_token_ids.clone(),
            max_sequence_tokens: shape.context_tokens.min(pool_tokens),
        };
        Ok(Self {
            waiting: FairQueue::new(config.step_tokens),
            config,
            kv_block_tokens: shape.kv_block_tokens,
            rule,
            pool: BlockPool::new(shape.kv_blocks),
            sequences: BTreeMap::new(),
            running: Vec::new(),
            in_flight: None,
            totals: SchedulerStats::default(),
        })
    }

    /// Takes a sequence, behind all of its tenant's.
    pub fn submit(&mut self, submission: Submission) -> Result<Submitted, SubmitError> {
        if submission.prompt.is_empty() {
            return Err(SubmitError::EmptyPrompt);
        }
        if self.sequences.contains_key(&submission.id) {
            return Err(SubmitError::DuplicateId);
        }
        if let Some(reason) = self.rule.end_of_emitted(&submission) {
            return Ok(Submitted::Ended(reason));
        }
        let prefix_tokens = submission.prompt.len() + submission.emitted.len();
        if prefix_tokens >= self.rule.max_sequence_tokens {
            return Err(SubmitError::TooLong { prefix_tokens, max_sequence_tokens: self.rule.max_sequence_tokens });
        }
        if self.waiting.new_ones() >= self.config.max_waiting {
            return Err(SubmitError::QueueFull { max_waiting: self.config.max_waiting });
        }
        let id = submission.id;
        let root = BlockKey::root(&self.config.prefix_scope, &submission.tenant);
        self.waiting.push(&submission.tenant, id);
        self.sequences.insert(id, Sequence::new(submission, root));
        Ok(Submitted::Queued)
    }

    /// The next step, or none when there is nothing to do or a step is still in flight.
    pub fn schedule(&mut self) -> Option<Step> {
        if self.in_flight.is_some() {
            return None;
        }
        let mut plan = StepPlan::new(self.config.step_tokens);
        let preempted = self.plan_decodes(&mut plan);
        self.plan_prefills(&mut plan);
        let admitted = if preempted { Vec::new() } else { self.admit(&mut plan) };
        if plan.parts.is_empty() {
            return None;
        }
        self.totals.steps_total += 1;
        let id = StepId(self.totals.steps_total);
        let step = self.build_step(id, &plan.parts, admitted);
        self.in_flight = Some(InFlight { id, parts: plan.parts, orphaned: Vec::new() });
        Some(step)
    }

    /// Takes the results of a step: one entry for each of its logits rows, in order.
    pub fn complete(&mut self, step: StepId, sampled: &[Sampled]) -> Result<Vec<SequenceEvent>, StepError> {
        let in_flight = self.take_in_flight(step)?;
        let rows = in_flight.parts.iter().filter(|part| part.logits).count();
        if rows != sampled.len() {
            self.in_flight = Some(in_flight);
            return Err(StepError::RowCount { expected: rows, got: sampled.len() });
        }
        let mut events = Vec::with_capacity(rows * 2);
        let mut row = sampled.iter();
        for part in &in_flight.parts {
            let result = if part.logits { row.next().copied() } else { None };
            self.complete_part(*part, result, &mut events);
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
        self.release_orphans(in_flight);
        Ok(events)
    }

    /// Forgets a sequence, at any time; false when there is none by that name. Its blocks are free at
    /// once, or after the step in flight when that step computes it.
    pub fn cancel(&mut self, id: SequenceId) -> bool {
        self.remove(id).is_some()
    }

    /// The tokens that would end this sequence: what must not be drawn while `suppress_stop` is set.
    pub fn stop_tokens(&self, id: SequenceId) -> impl Iterator<Item = TokenId> {
        let limits = self.sequences.get(&id).map(|sequence| &sequence.limits);
        let eos = limits.filter(|limits| !limits.ignore_eos).map(|_| self.rule.eos_token_ids.iter());
        eos.into_iter().flatten().chain(limits.into_iter().flat_map(|limits| &limits.stop_token_ids)).copied()
    }

    /// Whether no sequence is left.
    pub fn is_idle(&self) -> bool {
        self.sequences.is_empty()
    }

    /// The model's rule for ends, with the length that context and pool allow.
    pub fn rule(&self) -> &EndRule {
        &self.rule
    }

    pub fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            running: self.running.len(),
            waiting: self.waiting.len(),
            kv_blocks_total: self.pool.total(),
            kv_blocks_used: self.pool.total() - self.pool.free(),
            ..self.totals
        }
    }

    /// One token of every decoding sequence, oldest first. Answers whether any sequence was preempted.
    fn plan_decodes(&mut self, plan: &mut StepPlan) -> bool {
        let mut preempted = false;
        let mut index = 0;
        // `running` only shrinks at its end here, behind the index: the latest arrival is the victim.
        while index < self.running.len() {
            let id = self.running[index];
            index += 1;
            if !self.sequences[&id].decoding {
                continue;
            }
            while !self.grow(id) {
                preempted = true;
                match self.preempt_latest() {
                    Some(victim) if victim != id => {}
                    _ => break,
                }
            }
            if index <= self.running.len() {
                plan.add(id, 1, true);
            }
        }
        preempted
    }

    /// Prefill chunks of running sequences, oldest first, while the budget lasts.
    fn plan_prefills(&mut self, plan: &mut StepPlan) {
        for id in &self.running {
            let sequence = &self.sequences[id];
            if sequence.decoding {
                continue;
            }
            let chunk = sequence.remaining().min(plan.budget);
            if chunk == 0 {
                break;
            }
            plan.add(*id, chunk, chunk == sequence.remaining());
        }
    }

    /// Lets waiting sequences in, in the queue's order, while slots, blocks and budget last. Who is next is
    /// never passed over for want of blocks. Answers those that join for the first time.
    fn admit(&mut self, plan: &mut StepPlan) -> Vec<Admitted> {
        let mut admitted = Vec::new();
        while plan.budget > 0 && self.running.len() < self.config.max_running {
            let Some(id) = self.waiting.next() else { break };
            let Some(sequence) = self.sequences.get_mut(&id) else { break };
            if !sharing::take_blocks(&mut self.pool, sequence, self.kv_block_tokens) {
                break;
            }
            let (hit, miss) = (sequence.computed, sequence.remaining());
            self.waiting.take_next(miss);
            self.running.push(id);
            let chunk = miss.min(plan.budget);
            plan.add(id, chunk, chunk == miss);
            if !std::mem::replace(&mut sequence.joined, true) {
                self.totals.prefix_hit_tokens_total += hit as u64;
                self.totals.prefix_miss_tokens_total += miss as u64;
                admitted.push(Admitted { id, cached_tokens: hit.min(sequence.prompt_tokens) });
            }
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

    /// Puts the latest one admitted back to the front of the queue, without its blocks.
    fn preempt_latest(&mut self) -> Option<SequenceId> {
        let id = self.running.pop()?;
        let sequence = self.sequences.get_mut(&id)?;
        self.pool.release(&mut sequence.blocks);
        sequence.computed = 0;
        sequence.published = 0;
        sequence.decoding = false;
        self.totals.preemptions_total += 1;
        self.waiting.push_returned(id);
        Some(id)
    }

    fn build_step(&self, id: StepId, parts: &[Part], admitted: Vec<Admitted>) -> Step {
        let mut batch = Batch::default();
        let mut rows = Vec::new();
        for part in parts {
            let sequence = &self.sequences[&part.sequence];
            let end = sequence.computed + part.new_tokens;
            // Shared blocks are full ones, so nothing is ever written to them, and nothing need be copied.
            let written =
                &sequence.blocks[sequence.computed / self.kv_block_tokens..end.div_ceil(self.kv_block_tokens)];
            assert!(written.iter().all(|block| self.pool.is_private(*block)), "a step would write to a shared block");
            batch.tokens.extend_from_slice(&sequence.tokens[sequence.computed..end]);
            batch.sequences.push(BatchSequence {
                new_tokens: part.new_tokens,
                start: sequence.computed,
                blocks: sequence.blocks.clone(),
                logits: part.logits,
            });
            if part.logits {
                rows.push(LogitsRow {
                    sequence: part.sequence,
                    position: sequence.tokens.len(),
                    suppress_stop: sequence.output_tokens() < sequence.limits.min_tokens,
                });
            }
        }
        Step { id, batch, rows, admitted }
    }

    fn complete_part(&mut self, part: Part, result: Option<Sampled>, events: &mut Vec<SequenceEvent>) {
        let id = part.sequence;
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let total = if sequence.decoding {
            &mut self.totals.decode_tokens_total
        } else {
            &mut self.totals.prefill_tokens_total
        };
        *total += part.new_tokens as u64;
        sequence.computed += part.new_tokens;
        if result != Some(Sampled::Failed) {
            sharing::publish_computed(&mut self.pool, sequence, self.kv_block_tokens);
        }
        match result {
            None => {}
            Some(Sampled::Failed) => {
                self.lose(id);
                events.push(SequenceEvent::Failed { id });
            }
            Some(Sampled::Token(token) | Sampled::Last(token)) => {
                sequence.decoding = true;
                sequence.tokens.push(token);
                self.waiting.charge(&sequence.tenant, 1);
                events.push(SequenceEvent::Token { id, token });
                let end = match result {
                    Some(Sampled::Last(_)) => Some(EndReason::Stop),
                    _ => self.rule.end(&sequence.limits, token, sequence.output_tokens(), sequence.tokens.len()),
                };
                if let Some(reason) = end {
                    self.remove(id);
                    events.push(SequenceEvent::Ended { id, reason });
                }
            }
        }
    }

    /// Takes a sequence out whose computation failed. What it computed may be the reason or the result, so it
    /// must not be found by others.
    fn lose(&mut self, id: SequenceId) -> bool {
        if let Some(sequence) = self.sequences.get(&id) {
            self.pool.distrust(&sequence.blocks);
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

/// A step while it is put together.
struct StepPlan {
    budget: usize,
    parts: Vec<Part>,
}

impl StepPlan {
    fn new(budget: usize) -> Self {
        Self { budget, parts: Vec::new() }
    }

    fn add(&mut self, sequence: SequenceId, new_tokens: usize, logits: bool) {
        self.budget -= new_tokens;
        self.parts.push(Part { sequence, new_tokens, logits });
    }
}
