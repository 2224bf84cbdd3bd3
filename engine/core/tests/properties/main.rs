//! Properties of the scheduler under arbitrary submissions, cancellations, failures and steps, over a fake
//! device whose next token depends on every KV slot of its sequence: a block that leaked, was overwritten, was
//! found under a wrong name or before it was written shows up as another token. Prompts of several tenants and
//! adapters begin alike, so that many find a prefix in the cache.

mod starvation;

use engine_core::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const VOCAB: u64 = 17;
const EOS: TokenId = 3;
const TENANTS: usize = 3;
/// Adapters, and one that stands for none.
const ADAPTERS: u32 = 3;

fn mix(state: u64, value: u64) -> u64 {
    (state ^ value.wrapping_add(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(23)
}

/// KV memory: a slot holds a digest of the prefix that ends there.
struct FakeDevice {
    block_tokens: usize,
    /// Slots that a draw depends on.
    window_tokens: usize,
    slots: Vec<u64>,
}

impl FakeDevice {
    fn new(shape: ForwardShape, window_tokens: usize) -> Self {
        Self {
            block_tokens: shape.kv_block_tokens,
            window_tokens,
            slots: vec![0; shape.kv_blocks * shape.kv_block_tokens],
        }
    }

    fn slot(&self, sequence: &BatchSequence, position: usize) -> usize {
        sequence.blocks[position / self.block_tokens] as usize * self.block_tokens + position % self.block_tokens
    }

    /// The next token after each one whose logits are wanted.
    fn forward(&mut self, batch: &Batch) -> Vec<TokenId> {
        let mut tokens = batch.tokens.iter();
        let mut next = Vec::new();
        for sequence in &batch.sequences {
            for position in sequence.start..sequence.start + sequence.new_tokens {
                let before =
                    if position == 0 { begin(sequence.adapter) } else { self.slots[self.slot(sequence, position - 1)] };
                let token = *tokens.next().expect("as many tokens as the sequences say");
                let slot = self.slot(sequence, position);
                self.slots[slot] = mix(before, u64::from(token));
            }
            let end = sequence.start + sequence.new_tokens;
            for end in end - sequence.logits + 1..=end {
                let first = end.saturating_sub(self.window_tokens);
                next.push(choose((first..end).map(|p| self.slots[self.slot(sequence, p)])));
            }
        }
        assert_eq!(tokens.next(), None);
        next
    }
}

/// What the first slot of a sequence is made from.
fn begin(adapter: Option<AdapterId>) -> u64 {
    adapter.map_or(1, |adapter| u64::from(adapter) + 2)
}

/// The token after these.
fn choose_after(adapter: Option<AdapterId>, tokens: &[TokenId], window_tokens: usize) -> TokenId {
    choose(slots_of(adapter, tokens).skip(tokens.len().saturating_sub(window_tokens)))
}

/// The slots of a sequence of these tokens.
fn slots_of(adapter: Option<AdapterId>, tokens: &[TokenId]) -> impl Iterator<Item = u64> {
    tokens.iter().scan(begin(adapter), |state, token| {
        *state = mix(*state, u64::from(*token));
        Some(*state)
    })
}

fn choose(slots: impl Iterator<Item = u64>) -> TokenId {
    (slots.fold(7, mix) % VOCAB) as TokenId
}

/// One sequence, alone, without paging: what the scheduler must reproduce.
fn reference(submission: &Submission, max_sequence_tokens: usize, window_tokens: usize) -> (Vec<TokenId>, EndReason) {
    let mut tokens: Vec<TokenId> = submission.prompt.iter().chain(&submission.emitted).copied().collect();
    let mut output = submission.emitted.len();
    let mut produced = Vec::new();
    loop {
        let token = choose_after(submission.adapter.as_ref().map(|adapter| adapter.id), &tokens, window_tokens);
        tokens.push(token);
        produced.push(token);
        output += 1;
        let limits = &submission.limits;
        let eos = token == EOS && !limits.ignore_eos;
        if output >= limits.min_tokens && (eos || limits.stop_token_ids.contains(&token)) {
            return (produced, EndReason::Stop);
        }
        if output >= limits.max_tokens || tokens.len() >= max_sequence_tokens {
            return (produced, EndReason::Length);
        }
    }
}

#[derive(Clone, Debug)]
enum Operation {
    Submit(Submission),
    Step,
    /// A step during which the n-th live sequence is cancelled.
    StepWithCancel(usize),
    Cancel(usize),
    /// A step that fails and loses the n-th sequence of its batch.
    FailingStep(usize),
    /// A step whose n-th logits row is unusable.
    BadRow(usize),
}

fn submission() -> impl Strategy<Value = Submission> {
    let tokens = |count| proptest::collection::vec(0..VOCAB as TokenId, count);
    let limits = (1..20usize, 0..6usize, any::<bool>(), tokens(0..2));
    let prompt = (0..24usize, tokens(1..8)).prop_map(|(common, own)| {
        let common = (0..common as TokenId).map(|n| n * n % VOCAB as TokenId);
        common.chain(own).collect()
    });
    let rank = (-2..3i32, 0..3u64);
    (prop_oneof![prompt, tokens(1..24)], tokens(0..4), limits, (0..TENANTS, 0..ADAPTERS), rank).prop_map(
        |(
            prompt,
            emitted,
            (max, min_tokens, ignore_eos, stop_token_ids),
            (tenant, adapter),
            (priority, deadline_ns),
        )| {
            let limits = Limits { max_tokens: max, min_tokens, given_tokens: 0, ignore_eos, stop_token_ids };
            let (id, tenant) = (SequenceId(0), tenant.to_string().into());
            let adapter = adapter.checked_sub(1).map(|id| Adapter { id, revision: format!("r{id}").into() });
            Submission { id, tenant, adapter, prompt, emitted, limits, priority, deadline_ns, speculate: true }
        },
    )
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        4 => submission().prop_map(Operation::Submit),
        8 => Just(Operation::Step),
        1 => any::<usize>().prop_map(Operation::StepWithCancel),
        1 => any::<usize>().prop_map(Operation::Cancel),
        1 => any::<usize>().prop_map(Operation::FailingStep),
        1 => any::<usize>().prop_map(Operation::BadRow),
    ]
}

/// Where drafts come from.
#[derive(Clone, Copy, Debug)]
enum Drafts {
    /// What the scheduler itself does.
    Own,
    /// Tokens without meaning, as many as allowed, some outside the vocabulary.
    Garbage,
    /// What will be drawn, so that every draft is accepted whole.
    Right,
    /// The same with an error somewhere.
    Nearly,
}

fn drafts() -> impl Strategy<Value = Drafts> {
    prop_oneof![Just(Drafts::Own), Just(Drafts::Garbage), Just(Drafts::Right), Just(Drafts::Nearly)]
}

/// What a drafter that knows the device drafts after these tokens.
fn foretell(
    drafts: Drafts,
    adapter: Option<AdapterId>,
    tokens: &[TokenId],
    window_tokens: usize,
    salt: u64,
) -> Vec<TokenId> {
    if matches!(drafts, Drafts::Garbage) {
        return (0..9).map(|n| (mix(salt, n) % (VOCAB + 1)) as TokenId).collect();
    }
    let mut all = tokens.to_vec();
    for _ in 0..9 {
        all.push(choose_after(adapter, &all, window_tokens));
    }
    let mut draft = all.split_off(tokens.len());
    if matches!(drafts, Drafts::Nearly) {
        let wrong = salt as usize % draft.len();
        draft[wrong] = (draft[wrong] + 1) % VOCAB as TokenId;
    }
    draft
}

/// The draws of a step whose rows say these tokens.
fn draw(step: &Step, tokens: Vec<TokenId>) -> Vec<Sampled> {
    let mut void = None;
    let draws = step.rows.iter().zip(tokens).map(|(row, token)| {
        if void == Some(row.sequence) {
            return Sampled::Skipped;
        }
        if row.draft.is_some_and(|draft| draft != token) {
            void = Some(row.sequence);
        }
        Sampled::Token(token)
    });
    draws.collect()
}

/// The scheduler, its fake device, and what is known from outside.
struct World {
    drafts: Drafts,
    shape: ForwardShape,
    config: SchedulerConfig,
    scheduler: Scheduler,
    device: FakeDevice,
    live: BTreeMap<SequenceId, Submission>,
    output: BTreeMap<SequenceId, Vec<TokenId>>,
    /// What was admitted, with the number of tokens that came from the cache.
    hit_tokens: usize,
    next_id: u64,
}

impl World {
    fn new(shape: ForwardShape, config: SchedulerConfig, drafts: Drafts) -> Self {
        let window_tokens = config.window_tokens.unwrap_or(usize::MAX);
        Self {
            drafts,
            shape,
            scheduler: Scheduler::new(shape, config.clone()).expect("a valid configuration"),
            config,
            device: FakeDevice::new(shape, window_tokens),
            live: BTreeMap::new(),
            output: BTreeMap::new(),
            hit_tokens: 0,
            next_id: 0,
        }
    }

    fn longest(&self) -> usize {
        self.shape.context_tokens.min(self.shape.kv_blocks * self.shape.kv_block_tokens)
    }

    fn apply(&mut self, operation: Operation) {
        match operation {
            Operation::Submit(submission) => self.submit(submission),
            Operation::Step => {
                self.step(None, None);
            }
            Operation::StepWithCancel(n) => {
                self.step(self.pick(n), None);
            }
            Operation::BadRow(n) => {
                self.step(None, Some(n));
            }
            Operation::Cancel(n) => {
                let id = self.pick(n);
                self.cancel(id);
            }
            Operation::FailingStep(n) => self.failing_step(n),
        }
        self.check_blocks();
    }

    fn pick(&self, n: usize) -> Option<SequenceId> {
        let count = self.live.len().max(1);
        self.live.keys().nth(n % count).copied()
    }

    fn submit(&mut self, mut submission: Submission) {
        submission.id = SequenceId(self.next_id);
        self.next_id += 1;
        let prefix = submission.prompt.len() + submission.emitted.len();
        match self.scheduler.submit(submission.clone()) {
            Ok(Submitted::Queued) => {
                self.live.insert(submission.id, submission);
            }
            Ok(Submitted::Ended(_)) => assert!(!submission.emitted.is_empty()),
            Err(SubmitError::TooLong { .. }) => assert!(prefix >= self.longest()),
            Err(SubmitError::QueueFull { .. }) => {
                assert!(self.scheduler.stats().waiting >= self.config.max_waiting);
            }
            Err(other) => panic!("unexpected refusal: {other}"),
        }
    }

    fn cancel(&mut self, id: Option<SequenceId>) {
        let Some(id) = id else { return };
        assert!(self.scheduler.cancel(id));
        assert!(!self.scheduler.cancel(id));
        self.live.remove(&id);
    }

    fn schedule(&mut self) -> Option<Step> {
        let (drafts, window_tokens) = (self.drafts, self.device.window_tokens);
        let live = &self.live;
        let adapter = |id| live.get(&id).and_then(|submission: &Submission| submission.adapter.as_ref()).map(|a| a.id);
        let mut salt = self.scheduler.stats().steps_total;
        match drafts {
            Drafts::Own => self.scheduler.schedule(),
            _ => self.scheduler.schedule_with_drafts(&mut |id, tokens| {
                salt = mix(salt, id.0);
                foretell(drafts, adapter(id), tokens, window_tokens, salt)
            }),
        }
    }

    fn step(&mut self, cancelled: Option<SequenceId>, bad_row: Option<usize>) -> bool {
        let Some(step) = self.schedule() else { return false };
        self.check_step(&step);
        assert_eq!(self.scheduler.audit(), Ok(()));
        assert_eq!(self.scheduler.schedule(), None, "one step at a time");
        let tokens = self.device.forward(&step.batch);
        self.cancel(cancelled);
        assert_eq!(self.scheduler.audit(), Ok(()));
        let mut sampled = draw(&step, tokens);
        // Times that neither grow nor fall in order: whatever is made of them, the output is the same.
        let tokens = step.batch.tokens.len();
        self.scheduler.observe_step(tokens, 1000 + mix(self.next_id, tokens as u64) % 5000);
        if let Some(n) = bad_row.filter(|_| !sampled.is_empty()) {
            let row = n % sampled.len();
            sampled[row] = Sampled::Failed;
        }
        let wrong = self.scheduler.complete(step.id, &[Sampled::Failed; 999]);
        assert!(matches!(wrong, Err(StepError::RowCount { .. })));
        let events = self.scheduler.complete(step.id, &sampled).expect("the step in flight");
        assert_eq!(self.scheduler.complete(step.id, &sampled), Err(StepError::NotInFlight));
        self.take(events);
        true
    }

    fn failing_step(&mut self, n: usize) {
        let Some(step) = self.schedule() else { return };
        self.check_step(&step);
        let lost = n % step.batch.sequences.len();
        let events = self.scheduler.fail(step.id, &[lost]).expect("the step in flight");
        assert_eq!(events.len(), 1);
        self.take(events);
    }

    fn take(&mut self, events: Vec<SequenceEvent>) {
        for event in events {
            match event {
                SequenceEvent::Token { id, token } => {
                    assert!(self.live.contains_key(&id), "{id:?} has ended");
                    self.output.entry(id).or_default().push(token);
                }
                SequenceEvent::Ended { id, reason } => {
                    let submission = self.live.remove(&id).expect("it lives");
                    let (expected, expected_reason) = reference(&submission, self.longest(), self.device.window_tokens);
                    assert_eq!(self.output[&id], expected, "{submission:?}");
                    assert_eq!(reason, expected_reason, "{submission:?}");
                }
                SequenceEvent::Failed { id } => assert!(self.live.remove(&id).is_some()),
            }
        }
    }

    fn check_step(&mut self, step: &Step) {
        let batch = &step.batch;
        assert!(!batch.sequences.is_empty() && batch.sequences.len() <= self.config.max_running);
        assert!(batch.tokens.len() <= self.config.step_tokens, "the budget is kept");
        assert_eq!(batch.sequences.iter().map(|s| s.logits).sum::<usize>(), step.rows.len());
        let mut written = BTreeSet::new();
        let mut read = BTreeSet::new();
        for sequence in &batch.sequences {
            assert!(sequence.new_tokens > 0);
            let end = sequence.start + sequence.new_tokens;
            assert!(sequence.blocks.len() * self.shape.kv_block_tokens >= end);
            let first = sequence.start / self.shape.kv_block_tokens;
            let seen = (sequence.start + 1).saturating_sub(self.device.window_tokens) / self.shape.kv_block_tokens;
            assert!(sequence.blocks[seen..].iter().all(|block| (*block as usize) < self.shape.kv_blocks));
            let held = sequence.blocks.iter().filter(|block| **block != NO_BLOCK).count();
            if let Some(window_tokens) = self.config.window_tokens
                && sequence.logits == sequence.new_tokens
            {
                let most = (window_tokens + sequence.new_tokens).div_ceil(self.shape.kv_block_tokens) + 2;
                assert!(held <= most, "{held} blocks of {most} for a window of {window_tokens} tokens");
            }
            read.extend(sequence.blocks[..first].iter().filter(|block| **block != NO_BLOCK));
            for block in &sequence.blocks[first..] {
                assert!(written.insert(*block), "block {block} is written by two");
            }
        }
        assert!(written.is_disjoint(&read), "what one writes is no other's prefix");
        for Admitted { id, cached_tokens } in &step.admitted {
            let submission = &self.live[id];
            assert!(
                *cached_tokens < submission.prompt.len() + submission.emitted.len(),
                "one token is left to compute"
            );
            assert!(*cached_tokens <= submission.prompt.len());
            self.hit_tokens += cached_tokens;
        }
    }

    fn check_blocks(&self) {
        assert_eq!(self.scheduler.audit(), Ok(()));
        let stats = self.scheduler.stats();
        assert_eq!(stats.running + stats.waiting, self.live.len());
        assert_eq!(self.scheduler.is_idle(), self.live.is_empty());
        assert!(stats.running <= self.config.max_running);
        if stats.running == 0 {
            assert_eq!(stats.kv_blocks_used, 0, "nobody runs, so nobody holds blocks");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn every_sequence_ends_as_if_alone(
        operations in proptest::collection::vec(operation(), 1..60),
        kv_block_tokens in 1..5usize,
        kv_blocks in 2..20usize,
        context_tokens in 4..40usize,
        max_running in 1..6usize,
        more_tokens in 0..12usize,
        max_waiting in 1..10usize,
        (drafts, speculation) in (drafts(), prop_oneof![
            Just(Speculation::Off), Just(Speculation::WhenItPays), Just(Speculation::Always)
        ]),
        itl_target_ns in 500..8000u64,
        window_tokens in proptest::option::of(2..24usize),
    ) {
        let shape = ForwardShape { vocab: VOCAB as usize, kv_block_tokens, kv_blocks, context_tokens };
        let config = SchedulerConfig {
            step_tokens: max_running + more_tokens,
            max_running,
            max_waiting,
            eos_token_ids: vec![EOS],
            chunk_tokens: 4,
            itl_target_ns,
            speculation,
            window_tokens,
            ..SchedulerConfig::default()
        };
        let mut world = World::new(shape, config, drafts);
        for operation in operations {
            world.apply(operation);
        }
        // No starvation: with no new arrivals everything ends within a generous number of steps.
        let bound = 50_000;
        let mut steps = 0;
        while world.step(None, None) {
            steps += 1;
            world.check_blocks();
            prop_assert!(steps < bound);
        }
        prop_assert!(world.live.is_empty(), "left over: {:?}", world.live.keys());
        let stats = world.scheduler.stats();
        prop_assert_eq!(stats.kv_blocks_used, 0);
        prop_assert!(stats.prefix_hit_tokens_total >= world.hit_tokens as u64);
    }
}
