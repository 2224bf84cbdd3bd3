//! The scheduler's decisions, one story each.

use engine_core::*;

const EOS: TokenId = 3;

fn plain(id: u64, prompt_tokens: usize, max_tokens: usize) -> Submission {
    let limits = Limits { max_tokens, min_tokens: 0, ignore_eos: true, stop_token_ids: Vec::new() };
    // A prompt of its own, so that only stories that are about shared prefixes have any.
    let prompt = (0..prompt_tokens as u32).map(|n| if n == 0 { id as u32 + 100 } else { 1 }).collect();
    Submission { id: SequenceId(id), tenant: "one".into(), prompt, emitted: Vec::new(), limits, speculate: false }
}

fn scheduler(kv_blocks: usize, step_tokens: usize) -> Scheduler {
    let shape = ForwardShape { vocab: 17, kv_block_tokens: 4, kv_blocks, context_tokens: 64 };
    let config =
        SchedulerConfig { step_tokens, max_running: 4, max_waiting: 2, eos_token_ids: vec![EOS], ..Default::default() };
    Scheduler::new(shape, config).expect("a valid configuration")
}

#[test]
fn decodes_go_before_prefill_chunks() {
    let mut scheduler = scheduler(32, 8);
    scheduler.submit(plain(0, 3, 20)).expect("room");
    let step = scheduler.schedule().expect("work");
    scheduler.complete(step.id, &[Sampled::Token(1)]).expect("in flight");
    scheduler.submit(plain(1, 20, 20)).expect("room");
    let shape = |step: &Step| -> Vec<(usize, usize, usize)> {
        step.batch.sequences.iter().map(|s| (s.start, s.new_tokens, s.logits)).collect()
    };
    let step = scheduler.schedule().expect("work");
    assert_eq!(shape(&step), [(3, 1, 1), (0, 7, 0)]);
    scheduler.complete(step.id, &[Sampled::Token(1)]).expect("in flight");
    let step = scheduler.schedule().expect("work");
    assert_eq!(shape(&step), [(4, 1, 1), (7, 7, 0)]);
    scheduler.complete(step.id, &[Sampled::Token(1)]).expect("in flight");
    let step = scheduler.schedule().expect("work");
    assert_eq!(shape(&step), [(5, 1, 1), (14, 6, 1)]);
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

/// Computes everything; tokens computed meanwhile, and cached tokens of each sequence in order of admission.
fn compute(scheduler: &mut Scheduler) -> (u64, Vec<(u64, usize)>) {
    let before = scheduler.stats().prefill_tokens_total;
    let mut admitted = Vec::new();
    while let Some(step) = scheduler.schedule() {
        admitted.extend(step.admitted.iter().map(|admitted| (admitted.id.0, admitted.cached_tokens)));
        scheduler.complete(step.id, &vec![Sampled::Token(1); step.rows.len()]).expect("in flight");
        assert_eq!(scheduler.audit(), Ok(()));
    }
    (scheduler.stats().prefill_tokens_total - before, admitted)
}

fn of(id: u64, tenant: &str, prompt: Vec<TokenId>) -> Submission {
    Submission { tenant: tenant.into(), prompt, ..plain(id, 1, 2) }
}

#[test]
fn a_prefix_is_computed_once_for_each_tenant() {
    // Blocks of 4 tokens.
    let mut scheduler = scheduler(16, 32);
    let mut check = |submission: Submission, computed: u64, cached: usize| {
        let id = submission.id.0;
        scheduler.submit(submission).expect("room");
        assert_eq!(compute(&mut scheduler), (computed, vec![(id, cached)]), "sequence {id}");
    };
    let prompt: Vec<TokenId> = (10..22).collect();
    check(of(0, "one", prompt.clone()), 12, 0);
    // Whole blocks only, and at least the last token is computed.
    check(of(1, "one", prompt.clone()), 4, 8);
    check(of(2, "one", prompt[..11].to_vec()), 3, 8);
    check(of(3, "one", prompt[..4].to_vec()), 4, 0);
    check(of(4, "two", prompt.clone()), 12, 0);
    check(of(5, "two", prompt.clone()), 4, 8);
    // The output of an earlier request is a prefix too: it gave the tokens 1 and 1, of which the last is not computed.
    let turn: Vec<TokenId> = prompt.iter().copied().chain([1, 9, 9, 9, 9]).collect();
    check(of(6, "one", turn), 5, 12);
    let other: Vec<TokenId> = prompt.iter().map(|token| if *token == 14 { 99 } else { *token }).collect();
    check(of(7, "one", other), 8, 4);
    // Sequence 2 went on like this: twelve tokens are found, of which eleven are the prompt's.
    let resumed = Submission { emitted: vec![1, 1, 1, 1, 1], ..plain(0, 1, 9) };
    check(Submission { id: SequenceId(8), prompt: prompt[..11].to_vec(), ..resumed }, 4, 11);
    let stats = scheduler.stats();
    assert_eq!((stats.prefix_hit_tokens_total, stats.kv_blocks_used), (8 + 8 + 8 + 12 + 4 + 12, 0));
    assert_eq!(stats.prefix_miss_tokens_total, stats.prefill_tokens_total);
}

#[test]
fn nothing_is_found_before_it_was_computed_or_after_it_failed() {
    let mut scheduler = scheduler(16, 8);
    let prompt: Vec<TokenId> = (10..22).collect();
    scheduler.submit(of(0, "one", prompt.clone())).expect("room");
    let step = scheduler.schedule().expect("work");
    assert_eq!(step.batch.tokens.len(), 8);
    // The step fails for nobody in particular: its sequence computes the same again.
    assert_eq!(scheduler.fail(step.id, &[]), Ok(vec![]));
    scheduler.submit(of(1, "one", prompt.clone())).expect("room");
    let step = scheduler.schedule().expect("work");
    assert_eq!((step.batch.sequences[0].start, step.batch.tokens.len()), (0, 8));
    scheduler.complete(step.id, &[]).expect("in flight");
    // The second finds what the first has computed so far.
    let step = scheduler.schedule().expect("work");
    assert_eq!(step.admitted, [Admitted { id: SequenceId(1), cached_tokens: 8 }]);
    // Now the first one's own computation is to blame: what it left is not found any more.
    assert_eq!(scheduler.fail(step.id, &[0]), Ok(vec![SequenceEvent::Failed { id: SequenceId(0) }]));
    assert_eq!(scheduler.audit(), Ok(()));
    scheduler.submit(of(2, "one", prompt)).expect("room");
    let (_, admitted) = compute(&mut scheduler);
    assert_eq!(admitted, [(2, 0)]);
}

#[test]
fn the_cache_gives_way_and_a_preempted_sequence_finds_what_is_left() {
    let mut scheduler = scheduler(6, 32);
    scheduler.submit(of(0, "one", (10..30).collect())).expect("room");
    compute(&mut scheduler);
    // Idle blocks are room: this one needs five of six, and takes them from the chain's end.
    scheduler.submit(of(1, "one", (40..60).collect())).expect("room");
    assert_eq!(compute(&mut scheduler), (20, vec![(1, 0)]));
    scheduler.submit(of(2, "one", (10..30).collect())).expect("room");
    let (computed, _) = compute(&mut scheduler);
    assert_eq!(computed, 20, "its end had gone first, and then its beginning");

    // Two that cannot both grow to their end: the second is preempted, and computes less when it comes back.
    let before = scheduler.stats();
    for id in [3, 4] {
        let limits = Limits { max_tokens: 10, ..plain(0, 1, 1).limits };
        scheduler.submit(Submission { limits, ..of(id, "one", vec![id as u32; 9]) }).expect("room");
    }
    let (computed, _) = compute(&mut scheduler);
    assert!(scheduler.stats().preemptions_total > before.preemptions_total);
    assert!((18..18 + 12).contains(&computed), "{computed} tokens");
}

#[test]
fn tenants_take_turns_in_being_admitted() {
    let shape = ForwardShape { vocab: 17, kv_block_tokens: 4, kv_blocks: 8, context_tokens: 32 };
    let config = SchedulerConfig { step_tokens: 8, max_running: 1, ..SchedulerConfig::default() };
    let mut scheduler = Scheduler::new(shape, config).expect("a valid configuration");
    let mut submit = |id: u64, tenant: &str| {
        let submission = Submission { tenant: tenant.into(), ..plain(id, 6, 2) };
        scheduler.submit(submission).expect("room");
    };
    (0..10).for_each(|id| submit(id, "many"));
    (10..12).for_each(|id| submit(id, "few"));
    submit(12, "one");
    let (_, admitted) = compute(&mut scheduler);
    let order: Vec<u64> = admitted.into_iter().map(|(id, _)| id).collect();
    assert_eq!(order.len(), 13);
    let place = |id: u64| order.iter().position(|other| *other == id).expect("admitted");
    assert!(place(10) <= 3 && place(11) <= 6 && place(12) <= 4, "{order:?}");
    assert!((0..9).all(|id| place(id) < place(id + 1)), "{order:?}");
}
