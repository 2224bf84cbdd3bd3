//! The engine's own scheduler, block pool and prefix cache, around a device that computes nothing and takes the time that
//! a cost model says. Steps, preemptions and cached prefixes are those of a live engine.

use super::{Done, EngineCost, Job, Totals};
use crate::NS_PER_MS;
use engine_core::{
    ForwardShape, Limits, Sampled, Scheduler, SchedulerConfig, SequenceEvent, SequenceId, Speculation, StepId,
    Submission, SubmitError, Submitted, TokenId,
};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Tokens per KV block.
const KV_BLOCK_TOKENS: usize = 16;
/// Prompt tokens that one hash of a trace stands for.
const HASHED_TOKENS: usize = 512;
const VOCAB: usize = 1 << 20;

/// The engine.
#[derive(Debug)]
pub struct ScheduledEngine {
    scheduler: Scheduler,
    step: Option<RunningStep>,
    /// What is inside, by request.
    inside: BTreeMap<u32, Inside>,
    /// Where it is in time, ns: not before the last step that ended.
    now_ns: u64,
    totals: Totals,
    /// What no engine of this size can take: over at once, so that nobody waits for it.
    refused: VecDeque<u32>,
}

#[derive(Debug)]
struct RunningStep {
    id: StepId,
    rows: usize,
    began_ns: u64,
    ends_ns: u64,
    decodes: usize,
    prefill_tokens: usize,
}

#[derive(Debug)]
struct Inside {
    job: Job,
    /// Tokens made here.
    made: u32,
}

impl ScheduledEngine {
    /// An engine that begins at a time.
    pub fn new(now_ns: u64, cost: &EngineCost) -> Self {
        let max_running = (cost.max_batch as usize).max(1);
        let shape = ForwardShape {
            vocab: VOCAB,
            kv_block_tokens: KV_BLOCK_TOKENS,
            kv_blocks: (cost.kv_tokens as usize / KV_BLOCK_TOKENS).max(2),
            context_tokens: usize::MAX,
        };
        let config = SchedulerConfig {
            step_tokens: (cost.prefill_chunk as usize).max(max_running),
            max_running,
            max_waiting: usize::MAX,
            speculation: Speculation::Off,
            ..SchedulerConfig::default()
        };
        let Ok(scheduler) = Scheduler::new(shape, config) else {
            unreachable!("there are blocks, and steps hold a batch")
        };
        let (inside, refused) = (BTreeMap::new(), VecDeque::new());
        Self { scheduler, step: None, inside, now_ns, totals: Totals::default(), refused }
    }

    /// Requests at it.
    pub fn load(&self) -> u32 {
        (self.inside.len() + self.refused.len()) as u32
    }

    /// Sequences that hold blocks.
    pub fn running(&self) -> u32 {
        self.scheduler.stats().running as u32
    }

    /// What it has done so far.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Takes a request. The caller has advanced the engine to now.
    pub fn submit(&mut self, job: Job, prefix: &[u64], cost: &EngineCost) {
        let limits = Limits {
            max_tokens: job.output_tokens.max(1) as usize,
            min_tokens: 0,
            given_tokens: 0,
            ignore_eos: true,
            stop_token_ids: Vec::new(),
        };
        let submission = Submission {
            id: SequenceId(u64::from(job.request)),
            tenant: Arc::from("trace"),
            adapter: None,
            prompt: prompt(&job, prefix),
            emitted: Vec::new(),
            limits,
            priority: 0,
            deadline_ns: self.now_ns,
            speculate: false,
        };
        match self.scheduler.submit(submission) {
            Ok(Submitted::Queued) => drop(self.inside.insert(job.request, Inside { job, made: 0 })),
            Ok(Submitted::Ended(_)) | Err(SubmitError::TooLong { .. }) => self.refused.push_back(job.request),
            Err(error) => unreachable!("a request with a prompt comes once to a queue without bound: {error}"),
        }
        self.begin_step(cost);
    }

    /// Moves to `now_ns`, which is no later than [`ScheduledEngine::due_ns`], and tells what happened there.
    pub fn advance(&mut self, now_ns: u64, cost: &EngineCost, done: &mut Vec<Done>) {
        for request in self.refused.drain(..) {
            done.extend([Done::First(request), Done::Last(request)]);
            self.totals.finished += 1;
        }
        while let Some(step) = self.step.take_if(|step| step.ends_ns <= now_ns) {
            self.now_ns = step.ends_ns;
            self.end_step(&step, done);
            self.begin_step(cost);
        }
        self.now_ns = self.now_ns.max(now_ns);
    }

    /// When the next request is done or has its first token, if nothing comes in before; none while idle.
    pub fn due_ns(&self) -> Option<u64> {
        if !self.refused.is_empty() {
            return Some(self.now_ns);
        }
        let step = self.step.as_ref()?;
        // While nothing but decoding goes on and there are blocks for it, steps are alike until a sequence ends.
        let stats = self.scheduler.stats();
        let roomy = 2 * stats.kv_blocks_used <= stats.kv_blocks_total;
        let alike = roomy && step.prefill_tokens == 0 && step.decodes == self.inside.len();
        let left = |inside: &Inside| inside.job.output_tokens.saturating_sub(inside.made).max(1);
        let steps = if alike { self.inside.values().map(left).min().unwrap_or(1) } else { 1 };
        Some(step.ends_ns + u64::from(steps - 1) * (step.ends_ns - step.began_ns))
    }

    /// Takes everything out, as jobs that go on where these stopped.
    pub fn abandon(&mut self) -> Vec<Job> {
        self.step = None;
        let refused = self.refused.drain(..).map(|request| Job { request, prefill_tokens: 1, output_tokens: 1 });
        let mut jobs: Vec<Job> = refused.collect();
        for (request, inside) in std::mem::take(&mut self.inside) {
            self.scheduler.cancel(SequenceId(u64::from(request)));
            let Inside { job, made } = inside;
            let (prefill_tokens, output_tokens) = (job.prefill_tokens + made, job.output_tokens - made);
            jobs.push(Job { prefill_tokens, output_tokens, ..job });
        }
        jobs
    }

    fn begin_step(&mut self, cost: &EngineCost) {
        if self.step.is_some() {
            return;
        }
        let Some(step) = self.scheduler.schedule() else { return };
        let decodes = step.batch.sequences.iter().filter(|part| part.new_tokens == 1 && part.logits == 1).count();
        let prefill_tokens = step.batch.tokens.len() - decodes;
        let ms = cost.itl_ms(decodes as u32) + prefill_tokens as f64 * cost.prefill_ms_per_token;
        let took_ns = ((ms * NS_PER_MS as f64) as u64).max(1);
        self.scheduler.observe_step(step.batch.tokens.len(), took_ns);
        let (began_ns, ends_ns) = (self.now_ns, self.now_ns + took_ns);
        self.step =
            Some(RunningStep { id: step.id, rows: step.rows.len(), began_ns, ends_ns, decodes, prefill_tokens });
    }

    fn end_step(&mut self, step: &RunningStep, done: &mut Vec<Done>) {
        self.totals.busy_ns += step.ends_ns - step.began_ns;
        self.totals.steps += 1.0;
        self.totals.decode_tokens += step.decodes as f64;
        self.totals.prefill_tokens += step.prefill_tokens as f64;
        // What is drawn is of no account, but that it is no end and that no two sequences share it by chance.
        let token = (self.totals.steps as usize % VOCAB) as TokenId;
        let events = self.scheduler.complete(step.id, &vec![Sampled::Token(token); step.rows]);
        for event in events.unwrap_or_default() {
            match event {
                SequenceEvent::Token { id, .. } => self.made_one(id, done),
                SequenceEvent::Ended { id, .. } | SequenceEvent::Failed { id } => {
                    self.inside.remove(&(id.0 as u32));
                    self.totals.finished += 1;
                    done.push(Done::Last(id.0 as u32));
                }
            }
        }
    }

    fn made_one(&mut self, id: SequenceId, done: &mut Vec<Done>) {
        let Some(inside) = self.inside.get_mut(&(id.0 as u32)) else { return };
        inside.made += 1;
        if inside.made == 1 {
            done.push(Done::First(inside.job.request));
        }
    }
}

/// Tokens of a prompt: those of one hash are the same in every prompt, the others are the request's own.
fn prompt(job: &Job, prefix: &[u64]) -> Vec<TokenId> {
    let own = u64::from(job.request).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let count = job.prefill_tokens.max(1) as usize;
    let token = |at: usize| {
        let block = prefix.get(at / HASHED_TOKENS).map_or(own, |hash| hash.wrapping_mul(0xd6e8_feb8_6659_fd93));
        ((block >> 20).wrapping_add(at as u64) % VOCAB as u64) as TokenId
    };
    (0..count).map(token).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: EngineCost = EngineCost {
        itl_base_ms: 10.0,
        itl_per_sequence_ms: 1.0,
        prefill_ms_per_token: 0.1,
        prefill_chunk: 100,
        max_batch: 2,
        kv_tokens: 1024,
    };

    /// Runs to the end and lists what happened when, ms.
    fn run(engine: &mut ScheduledEngine) -> Vec<(u64, Done)> {
        let mut seen = Vec::new();
        while let Some(due_ns) = engine.due_ns() {
            let mut done = Vec::new();
            engine.advance(due_ns, &COST, &mut done);
            seen.extend(done.into_iter().map(|done| (due_ns / NS_PER_MS, done)));
        }
        assert_eq!(engine.load(), 0);
        seen
    }

    fn job(request: u32, prefill_tokens: u32, output_tokens: u32) -> Job {
        Job { request, prefill_tokens, output_tokens }
    }

    #[test]
    fn a_request_takes_its_prompt_and_its_steps() {
        let mut engine = ScheduledEngine::new(0, &COST);
        engine.submit(job(0, 200, 11), &[], &COST);
        // Two chunks of (10 + 10) ms, then ten steps of 11 ms.
        assert_eq!(run(&mut engine), [(40, Done::First(0)), (150, Done::Last(0))]);
        assert_eq!(engine.totals().decode_tokens, 10.0);
    }

    #[test]
    fn a_prompt_that_was_seen_before_is_not_computed_again() {
        let mut engine = ScheduledEngine::new(0, &COST);
        for request in 0..2 {
            engine.submit(job(request, 600, 2), &[7], &COST);
            let _done = run(&mut engine);
        }
        // Of the second prompt only what follows the block that both share, and the rest of a KV block.
        assert!(engine.totals().prefill_tokens < 700.0, "{:?}", engine.totals());
    }

    #[test]
    fn what_cannot_fit_ends_at_once_and_a_full_cache_preempts() {
        let mut engine = ScheduledEngine::new(0, &COST);
        engine.submit(job(0, 2000, 10), &[], &COST);
        assert_eq!(run(&mut engine), [(0, Done::First(0)), (0, Done::Last(0))]);
        for request in 1..3 {
            engine.submit(job(request, 400, 300), &[], &COST);
        }
        let last = run(&mut engine).into_iter().filter(|(_, done)| matches!(done, Done::Last(_))).count();
        assert_eq!((last, engine.scheduler.stats().preemptions_total > 0), (2, true));
    }

    #[test]
    fn what_is_abandoned_goes_on_where_it_stopped() {
        let mut engine = ScheduledEngine::new(0, &COST);
        engine.submit(job(0, 100, 11), &[], &COST);
        let mut done = Vec::new();
        engine.advance((20 + 55) * NS_PER_MS, &COST, &mut done);
        assert_eq!(done, [Done::First(0)]);
        assert_eq!(engine.abandon(), [job(0, 106, 5)]);
        assert_eq!((engine.load(), engine.due_ns()), (0, None));
    }
}
