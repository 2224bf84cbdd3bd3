//! Properties of the scheduler under arbitrary submissions, cancellations, failures and steps, over a fake
//! device whose next token depends on every KV slot of its sequence: a block that leaked, was shared, or was
//! not written shows up as another token.

use engine_core::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const VOCAB: u64 = 17;
const EOS: TokenId = 3;

fn mix(state: u64, value: u64) -> u64 {
    (state ^ value.wrapping_add(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(23)
}

/// KV memory: a slot holds a digest of the prefix that ends there.
struct FakeDevice {
    block_tokens: usize,
    slots: Vec<u64>,
}

impl FakeDevice {
    fn new(shape: ForwardShape) -> Self {
        Self { block_tokens: shape.kv_block_tokens, slots: vec![0; shape.kv_blocks * shape.kv_block_tokens] }
    }

    fn slot(&self, sequence: &BatchSequence, position: usize) -> usize {
        sequence.blocks[position / self.block_tokens] as usize * self.block_tokens + position % self.block_tokens
    }

    /// The next token of each sequence that wants logits.
    fn forward(&mut self, batch: &Batch) -> Vec<TokenId> {
        let mut tokens = batch.tokens.iter();
        let mut next = Vec::new();
        for sequence in &batch.sequences {
            for position in sequence.start..sequence.start + sequence.new_tokens {
                let before = if position == 0 { 1 } else { self.slots[self.slot(sequence, position - 1)] };
                let token = *tokens.next().expect("as many tokens as the sequences say");
                let slot = self.slot(sequence, position);
                self.slots[slot] = mix(before, u64::from(token));
            }
            if sequence.logits {
                let end = sequence.start + sequence.new_tokens;
                next.push(choose((0..end).map(|p| self.slots[self.slot(sequence, p)])));
            }
        }
        assert_eq!(tokens.next(), None);
        next
    }
}

fn choose(slots: impl Iterator<Item = u64>) -> TokenId {
    (slots.fold(7, mix) % VOCAB) as TokenId
}

/// One sequence, alone, without paging: what the scheduler must reproduce.
fn reference(submission: &Submission, max_sequence_tokens: usize) -> (Vec<TokenId>, EndReason) {
    let mut tokens: Vec<TokenId> = submission.prompt.iter().chain(&submission.emitted).copied().collect();
    let mut output = submission.emitted.len();
    let mut produced = Vec::new();
    loop {
        let slots = tokens.iter().scan(1, |state, token| {
            *state = mix(*state, u64::from(*token));
            Some(*state)
        });
        let token = choose(slots);
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
    (tokens(1..24), tokens(0..4), limits).prop_map(
        |(prompt, emitted, (max, min_tokens, ignore_eos, stop_token_ids))| {
            let limits = Limits { max_tokens: max, min_tokens, ignore_eos, stop_token_ids };
            Submission { id: SequenceId(0), prompt, emitted, limits }
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

/// The scheduler, its fake device, and what is known from outside.
struct World {
    shape: ForwardShape,
    config: SchedulerConfig,
    scheduler: Scheduler,
    device: FakeDevice,
    live: BTreeMap<SequenceId, Submission>,
    output: BTreeMap<SequenceId, Vec<TokenId>>,
    joined: Vec<SequenceId>,
    next_id: u64,
}

impl World {
    fn new(shape: ForwardShape, config: SchedulerConfig) -> Self {
        Self {
            shape,
            scheduler: Scheduler::new(shape, config.clone()).expect("a valid configuration"),
            config,
            device: FakeDevice::new(shape),
            live: BTreeMap::new(),
            output: BTreeMap::new(),
            joined: Vec::new(),
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

    fn step(&mut self, cancelled: Option<SequenceId>, bad_row: Option<usize>) -> bool {
        let Some(step) = self.scheduler.schedule() else { return false };
        self.check_step(&step);
        assert_eq!(self.scheduler.schedule(), None, "one step at a time");
        let tokens = self.device.forward(&step.batch);
        self.cancel(cancelled);
        let mut sampled: Vec<Sampled> = tokens.into_iter().map(Sampled::Token).collect();
        if let Some(n) = bad_row.filter(|_| !sampled.is_empty()) {
            let row = n % sampled.len();
            sampled[row] = Sampled::Failed;
        }
        let wrong = self.scheduler.complete(step.id, &[Sampled::Failed; 99]);
        assert!(matches!(wrong, Err(StepError::RowCount { .. })));
        let events = self.scheduler.complete(step.id, &sampled).expect("the step in flight");
        assert_eq!(self.scheduler.complete(step.id, &sampled), Err(StepError::NotInFlight));
        self.take(events);
        true
    }

    fn failing_step(&mut self, n: usize) {
        let Some(step) = self.scheduler.schedule() else { return };
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
                    let (expected, expected_reason) = reference(&submission, self.longest());
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
        assert_eq!(batch.sequences.iter().filter(|s| s.logits).count(), step.rows.len());
        let mut held = BTreeSet::new();
        for sequence in &batch.sequences {
            assert!(sequence.new_tokens > 0);
            let end = sequence.start + sequence.new_tokens;
            assert!(sequence.blocks.len() * self.shape.kv_block_tokens >= end);
            for block in &sequence.blocks {
                assert!((*block as usize) < self.shape.kv_blocks);
                assert!(held.insert(*block), "block {block} is owned twice");
            }
        }
        self.joined.extend(&step.admitted);
        assert!(self.joined.is_sorted(), "first come, first served, and each joins once: {:?}", self.joined);
        self.joined.dedup();
    }

    fn check_blocks(&self) {
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
    ) {
        let shape = ForwardShape { vocab: VOCAB as usize, kv_block_tokens, kv_blocks, context_tokens };
        let config = SchedulerConfig {
            step_tokens: max_running + more_tokens,
            max_running,
            max_waiting,
            eos_token_ids: vec![EOS],
        };
        let mut world = World::new(shape, config);
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
        prop_assert_eq!(world.scheduler.stats().kv_blocks_used, 0);
    }
}

fn plain(id: u64, prompt_tokens: usize, max_tokens: usize) -> Submission {
    let limits = Limits { max_tokens, min_tokens: 0, ignore_eos: true, stop_token_ids: Vec::new() };
    Submission { id: SequenceId(id), prompt: vec![1; prompt_tokens], emitted: Vec::new(), limits }
}

fn scheduler(kv_blocks: usize, step_tokens: usize) -> Scheduler {
    let shape = ForwardShape { vocab: 17, kv_block_tokens: 4, kv_blocks, context_tokens: 64 };
    let config = SchedulerConfig { step_tokens, max_running: 4, max_waiting: 2, eos_token_ids: vec![EOS] };
    Scheduler::new(shape, config).expect("a valid configuration")
}

#[test]
fn decodes_go_before_prefill_chunks() {
    let mut scheduler = scheduler(32, 8);
    scheduler.submit(plain(0, 3, 20)).expect("room");
    let step = scheduler.schedule().expect("work");
    scheduler.complete(step.id, &[Sampled::Token(1)]).expect("in flight");
    scheduler.submit(plain(1, 20, 20)).expect("room");
    let shape = |step: &Step| -> Vec<(usize, usize, bool)> {
        step.batch.sequences.iter().map(|s| (s.start, s.new_tokens, s.logits)).collect()
    };
    let step = scheduler.schedule().expect("work");
    assert_eq!(shape(&step), [(3, 1, true), (0, 7, false)]);
    scheduler.complete(step.id, &[Sampled::Token(1)]).expect("in flight");
    let step = scheduler.schedule().expect("work");
    assert_eq!(shape(&step), [(4, 1, true), (7, 7, false)]);
    scheduler.complete(step.id, &[Sampled::Token(1)]).expect("in flight");
    let step = scheduler.schedule().expect("work");
    assert_eq!(shape(&step), [(5, 1, true), (14, 6, true)]);
}

/// Steps until nothing is left; the order in which sequences ended.
fn run_out(scheduler: &mut Scheduler) -> Vec<u64> {
    let mut ended = Vec::new();
    while let Some(step) = scheduler.schedule() {
        let events = scheduler.complete(step.id, &vec![Sampled::Token(1); step.rows.len()]).expect("in flight");
        ended.extend(events.into_iter().filter_map(|event| match event {
            SequenceEvent::Ended { id, reason: EndReason::Length } => Some(id.0),
            _ => None,
        }));
    }
    ended
}

#[test]
fn the_latest_arrival_is_preempted_and_comes_back_before_those_behind_it() {
    // Two sequences of up to 16 tokens on 6 blocks of 4: they cannot both grow to their end. The third never
    // finds room beside them, and must not take that of the preempted one.
    let mut scheduler = scheduler(6, 32);
    scheduler.submit(plain(0, 6, 10)).expect("room");
    scheduler.submit(plain(1, 6, 10)).expect("room");
    let step = scheduler.schedule().expect("work");
    scheduler.complete(step.id, &[Sampled::Token(1); 2]).expect("in flight");
    scheduler.submit(plain(2, 12, 1)).expect("room");
    assert_eq!(run_out(&mut scheduler), [0, 1, 2]);
    assert!(scheduler.stats().preemptions_total > 0);
    assert_eq!(scheduler.stats().kv_blocks_used, 0);
}

#[test]
fn refusals() {
    let mut scheduler = scheduler(2, 8);
    let mut check = |submission: Submission, expected: Result<Submitted, SubmitError>| {
        assert_eq!(scheduler.submit(submission), expected);
    };
    check(plain(0, 0, 4), Err(SubmitError::EmptyPrompt));
    check(plain(0, 8, 4), Err(SubmitError::TooLong { prefix_tokens: 8, max_sequence_tokens: 8 }));
    check(plain(0, 7, 4), Ok(Submitted::Queued));
    check(plain(0, 7, 4), Err(SubmitError::DuplicateId));
    check(plain(1, 1, 0), Ok(Submitted::Ended(EndReason::Length)));
    let mut resumed = plain(2, 2, 3);
    resumed.emitted = vec![4, 5, 6];
    check(resumed.clone(), Ok(Submitted::Ended(EndReason::Length)));
    resumed.limits.max_tokens = 9;
    resumed.limits.stop_token_ids = vec![6];
    check(resumed, Ok(Submitted::Ended(EndReason::Stop)));
    check(plain(3, 1, 4), Ok(Submitted::Queued));
    check(plain(4, 1, 4), Err(SubmitError::QueueFull { max_waiting: 2 }));
}

#[test]
fn a_configuration_that_can_serve_nothing_is_refused() {
    let shape = ForwardShape { vocab: 17, kv_block_tokens: 4, kv_blocks: 0, context_tokens: 64 };
    let refused = Scheduler::new(shape, SchedulerConfig::default()).err();
    assert_eq!(refused, Some(ConfigError::NoBlocks { kv_blocks: 0 }));
    let config = SchedulerConfig { step_tokens: 3, max_running: 4, ..SchedulerConfig::default() };
    let refused = Scheduler::new(ForwardShape { kv_blocks: 4, ..shape }, config).err();
    assert_eq!(refused, Some(ConfigError::Budget { step_tokens: 3, max_running: 4 }));
}

#[test]
fn a_cancelled_sequence_keeps_its_blocks_until_its_step_is_over() {
    let mut scheduler = scheduler(8, 8);
    scheduler.submit(plain(0, 6, 4)).expect("room");
    let step = scheduler.schedule().expect("work");
    assert!(scheduler.cancel(SequenceId(0)));
    assert_eq!(scheduler.stats().kv_blocks_used, 2);
    assert_eq!(scheduler.complete(step.id, &[Sampled::Token(1)]), Ok(vec![]));
    assert_eq!(scheduler.stats().kv_blocks_used, 0);
}
