//! Continuous batching with chunked prefill over paged KV blocks, with a prefix cache.
//!
//! Every step takes one token of each decoding sequence first, then fills the token budget with prefill
//! chunks, oldest sequence first (the scheme of Sarathi-Serve, OSDI '24: decodes never wait for a long
//! prompt), and then with drafts where they pay ([`speculation`](crate::speculation)). The budget follows from
//! measured step times, so that tokens keep coming in time ([`StepCost`]). Tenants take turns in being admitted ([`FairQueue`]). A sequence is admitted when there are
//! blocks for its whole prefix, of which it shares those that the cache has ([`sharing`](crate::sharing));
//! afterwards only decoding takes new blocks, one at a time, and when none is left the one of the lowest standing is
//! preempted: of the highest priority number, and of these the latest admitted. It gives up its blocks, keeps its
//! tokens and goes on later with what is then left of its blocks in the cache. Where all layers attend to a window,
//! blocks that fell out of it are given back.
//!
//! Nothing starves: the sequence of the best standing is never preempted, and `max_sequence_tokens` is at most what the
//! whole pool holds, so it always ends and the next one has the best; one that was preempted twice stands before all
//! that came later, whatever their priority; and whoever is next to be admitted is waited for, so it is let in, and
//! stands first in the end. Who is next may be overtaken, but only so often ([`FairQueue`]).

use crate::blocks::BlockPool;
use crate::cost::StepCost;
use crate::error::{ConfigError, SubmitError};
use crate::forward::{Batch, BatchSequence, BlockId, ForwardShape, TokenId};
use crate::prefix::BlockKey;
use crate::queue::{FairQueue, Rank};
use crate::sequence::{EndRule, Sequence, SequenceId, Submission};
use crate::speculation::Speculation;
use crate::step::{Admitted, LogitsRow, Step, StepId, Submitted};
use plan::{DraftSource, StepPlan};
use std::collections::BTreeMap;

mod audit;
mod outcome;
mod plan;

/// What may be in the scheduler and in one step.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    /// New tokens in one step, over all sequences.
    pub step_tokens: usize,
    /// New tokens up to which several prompts share a step, and beside decodes while step times are not known.
    pub chunk_tokens: usize,
    /// Time that a step should take at most when it has decodes: what clients see between two tokens, ns. One that
    /// has none may take four times as long, since only those wait for it that come meanwhile.
    pub itl_target_ns: u64,
    /// When to draft.
    pub speculation: Speculation,
    /// Latest tokens that any layer attends to, itself included, if no layer attends to all.
    pub window_tokens: Option<usize>,
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
        Self {
            step_tokens: 512,
            chunk_tokens: 128,
            itl_target_ns: 100_000_000,
            speculation: Speculation::default(),
            window_tokens: None,
            max_running: 32,
            max_waiting: 256,
            eos_token_ids: Vec::new(),
            prefix_scope: String::new(),
        }
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
    /// Sequences' shares of steps that had a draft, tokens drafted, and those of them that were drawn as well.
    pub drafts_total: u64,
    pub draft_tokens_total: u64,
    pub draft_tokens_accepted_total: u64,
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
#[derive(Clone, Debug)]
struct Part {
    sequence: SequenceId,
    /// Those of the draft included.
    new_tokens: usize,
    /// Rows of logits: of the last new tokens.
    logits: usize,
    /// Tokens that are only guessed, behind the sequence's last one.
    draft: Vec<TokenId>,
}

/// All sequences of one device.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    kv_block_tokens: usize,
    vocab: usize,
    rule: EndRule,
    pool: BlockPool,
    sequences: BTreeMap<SequenceId, Sequence>,
    /// Hold blocks; the best standing first.
    running: Vec<SequenceId>,
    /// Hold none.
    waiting: FairQueue,
    in_flight: Option<InFlight>,
    /// Sequences admitted so far, each counted once.
    admissions: u64,
    cost: StepCost,
    /// Whether the last step that could have had drafts had some.
    drafting: bool,
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
            waiting: FairQueue::new(config.step_tokens.min(config.chunk_tokens)),
            pool: match config.window_tokens {
                Some(_) => BlockPool::new(shape.kv_blocks).windowed(),
                None => BlockPool::new(shape.kv_blocks),
            },
            config,
            kv_block_tokens: shape.kv_block_tokens,
            vocab: shape.vocab,
            rule,
            sequences: BTreeMap::new(),
            running: Vec::new(),
            in_flight: None,
            admissions: 0,
            cost: StepCost::default(),
            drafting: false,
            totals: SchedulerStats::default(),
        })
    }

    /// Takes a sequence, to wait among its tenant's.
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
        let adapter = submission.adapter.as_ref().map(|adapter| &*adapter.revision);
        let root = BlockKey::root(&self.config.prefix_scope, adapter, &submission.tenant);
        let rank = Rank { priority: submission.priority, deadline_ns: submission.deadline_ns };
        self.waiting.push(&submission.tenant, id, rank);
        self.sequences.insert(id, Sequence::new(submission, root));
        Ok(Submitted::Queued)
    }

    /// The next step, or none when there is nothing to do or a step is still in flight.
    pub fn schedule(&mut self) -> Option<Step> {
        self.schedule_step(None)
    }

    /// As [`schedule`](Self::schedule), with drafts from elsewhere: `draft` is asked for each decoding sequence
    /// with its tokens, and may answer anything. Drafts are verified, so they decide how long the work takes, and
    /// nothing else.
    pub fn schedule_with_drafts(
        &mut self,
        draft: &mut dyn FnMut(SequenceId, &[TokenId]) -> Vec<TokenId>,
    ) -> Option<Step> {
        self.schedule_step(Some(draft))
    }

    fn schedule_step(&mut self, drafts: Option<DraftSource<'_>>) -> Option<Step> {
        if self.in_flight.is_some() {
            return None;
        }
        let mut plan = StepPlan::new(self.config.step_tokens);
        let preempted = self.plan_decodes(&mut plan);
        self.limit_prefill(&mut plan);
        self.plan_prefills(&mut plan);
        let admitted = if preempted { Vec::new() } else { self.admit(&mut plan) };
        self.plan_drafts(&mut plan, drafts);
        if plan.parts.is_empty() {
            return None;
        }
        self.totals.steps_total += 1;
        let id = StepId(self.totals.steps_total);
        let step = self.build_step(id, &plan.parts, admitted);
        self.in_flight = Some(InFlight { id, parts: plan.parts, orphaned: Vec::new() });
        Some(step)
    }

    /// Takes the time that a step of so many new tokens took, ns: what budgets and drafts are judged by. Output does
    /// not depend on it.
    pub fn observe_step(&mut self, tokens: usize, ns: u64) {
        self.cost.observe(tokens, ns);
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
            batch.tokens.extend_from_slice(&sequence.tokens[sequence.computed..end - part.draft.len()]);
            batch.tokens.extend_from_slice(&part.draft);
            batch.sequences.push(BatchSequence {
                new_tokens: part.new_tokens,
                start: sequence.computed,
                blocks: sequence.blocks.clone(),
                logits: part.logits,
                adapter: sequence.adapter.as_ref().map(|adapter| adapter.id),
            });
            rows.extend((0..part.logits).map(|row| LogitsRow {
                sequence: part.sequence,
                position: sequence.tokens.len() + row,
                suppress_stop: sequence.output_tokens() + row < sequence.limits.min_tokens,
                draft: part.draft.get(row).copied(),
            }));
        }
        Step { id, batch, rows, admitted }
    }
}
