//! The scheduler's decisions, one story each.

use engine_core::*;

const EOS: TokenId = 3;

fn plain(id: u64, prompt_tokens: usize, max_tokens: usize) -> Submission {
    let limits = Limits { max_tokens, min_tokens: 0, given_tokens: 0, ignore_eos: true, stop_token_ids: Vec::new() };
    // A prompt of its own, so that only stories that are about shared prefixes have any.
    let prompt = (0..prompt_tokens as u32).map(|n| if n == 0 { id as u32 + 100 } else { 1 }).collect();
    Submission {
        id: SequenceId(id),
        tenant: "one".into(),
        adapter: None,
        prompt,
        emitted: Vec::new(),
        limits,
        priority: 0,
        deadline_ns: u64::MAX,
        speculate: false,
    }
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
    let mut scheduler = scheduler(32, 32);
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
    // Adapters make other keys and values of the same tokens, and agree by what they are, not by their names.
    let adapted = |id: u64, adapter: u32, revision: &str| {
        let adapter = Some(Adapter { id: adapter, revision: revision.into() });
        Submission { adapter, ..of(id, "one", prompt.clone()) }
    };
    check(adapted(10, 0, "sql"), 12, 0);
    check(adapted(11, 0, "sql"), 4, 8);
    check(adapted(12, 1, "poems"), 12, 0);
    check(adapted(13, 2, "sql"), 4, 8);
    // The output of an earlier request is a prefix too: it gave the tokens 1 and 1, of which the last is not computed.
    let turn: Vec<TokenId> = prompt.iter().copied().chain([1, 9, 9, 9, 9]).collect();
    check(of(6, "one", turn), 5, 12);
    let other: Vec<TokenId> = prompt.iter().map(|token| if *token == 14 { 99 } else { *token }).collect();
    check(of(7, "one", other), 8, 4);
    // Sequence 2 went on like this: twelve tokens are found, of which eleven are the prompt's.
    let resumed = Submission { emitted: vec![1, 1, 1, 1, 1], ..plain(0, 1, 9) };
    check(Submission { id: SequenceId(8), prompt: prompt[..11].to_vec(), ..resumed }, 4, 11);
    let stats = scheduler.stats();
    assert_eq!((stats.prefix_hit_tokens_total, stats.kv_blocks_used), (5 * 8 + 12 + 4 + 12, 0));
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

#[test]
fn a_right_draft_brings_several_tokens_in_one_step_and_a_wrong_one_costs_blocks_only_for_that_step() {
    let mut scheduler = scheduler(32, 32);
    scheduler.submit(Submission { speculate: true, ..plain(0, 6, 7) }).expect("room");
    let step = scheduler.schedule().expect("work");
    scheduler.complete(step.id, &[Sampled::Token(1)]).expect("in flight");
    let mut draft = |draft: &[TokenId], drawn: &[Sampled], rows: usize, expected: &[TokenId], blocks: usize| {
        let step = scheduler.schedule_with_drafts(&mut |_, _| draft.to_vec()).expect("work");
        assert_eq!((step.rows.len(), step.batch.sequences[0].logits), (rows, rows));
        let positions: Vec<usize> = step.rows.iter().map(|row| row.position).collect();
        assert_eq!(positions, (positions[0]..positions[0] + rows).collect::<Vec<_>>());
        let events = scheduler.complete(step.id, drawn).expect("in flight");
        let tokens = events.iter().filter_map(|event| match event {
            SequenceEvent::Token { token, .. } => Some(*token),
            _ => None,
        });
        assert_eq!(tokens.collect::<Vec<_>>(), expected);
        assert_eq!((scheduler.audit(), scheduler.stats().kv_blocks_used), (Ok(()), blocks));
    };
    // Seven tokens in two blocks, with the draft in three; token 17 is none.
    draft(&[9, 9, 17, 9], &[Sampled::Token(5), Sampled::Skipped, Sampled::Skipped], 3, &[5], 2);
    draft(&[6, 7], &[Sampled::Token(6), Sampled::Token(7), Sampled::Token(8)], 3, &[6, 7, 8], 3);
    // Two more may be drawn, so one is drafted; the end comes with the first row of all that is left.
    draft(&[1, 2, 3, 4, 5], &[Sampled::Token(1), Sampled::Token(4)], 2, &[1, 4], 0);
    let stats = scheduler.stats();
    assert_eq!((stats.drafts_total, stats.draft_tokens_total, stats.draft_tokens_accepted_total), (3, 5, 3));
    assert_eq!(stats.decode_tokens_total, 6);
}

#[test]
fn a_text_that_repeats_itself_is_drafted_once_that_is_known_to_pay() {
    let steps = |speculation: Speculation, row_ns: u64| {
        let shape = ForwardShape { vocab: 17, kv_block_tokens: 16, kv_blocks: 32, context_tokens: 512 };
        let config = SchedulerConfig { speculation, ..SchedulerConfig::default() };
        let mut scheduler = Scheduler::new(shape, config).expect("a valid configuration");
        scheduler.submit(Submission { speculate: true, ..plain(0, 12, 200) }).expect("room");
        let mut count = 0;
        while let Some(step) = scheduler.schedule() {
            // A step of a fixed time and one for each token; the text is a cycle of five.
            scheduler.observe_step(step.batch.tokens.len(), 100_000 + row_ns * step.batch.tokens.len() as u64);
            let drawn: Vec<Sampled> = step.rows.iter().map(|row| Sampled::Token((row.position % 5) as u32)).collect();
            scheduler.complete(step.id, &drawn).expect("in flight");
            count += 1;
        }
        count
    };
    assert_eq!(steps(Speculation::Off, 1_000), 200);
    assert!((24..40).contains(&steps(Speculation::Always, 1_000)));
    let paying = steps(Speculation::WhenItPays, 1_000);
    assert!((24..50).contains(&paying), "{paying} steps");
    // Where a row costs as much as a step, it never does.
    assert_eq!(steps(Speculation::WhenItPays, 10_000_000), 200);
}

#[test]
fn prefill_keeps_to_the_time_between_tokens_and_takes_long_steps_alone() {
    let shape = ForwardShape { vocab: 17, kv_block_tokens: 16, kv_blocks: 256, context_tokens: 2048 };
    let config = SchedulerConfig { itl_target_ns: 50_000_000, ..SchedulerConfig::default() };
    let mut scheduler = Scheduler::new(shape, config).expect("a valid configuration");
    let mut step = |submitted: &[(u64, usize)]| -> Vec<usize> {
        for (id, prompt_tokens) in submitted {
            scheduler.submit(plain(*id, *prompt_tokens, 50)).expect("room");
        }
        let step = scheduler.schedule().expect("work");
        // A millisecond a token, and eight for every step.
        scheduler.observe_step(step.batch.tokens.len(), 1_000_000 * (8 + step.batch.tokens.len() as u64));
        scheduler.complete(step.id, &vec![Sampled::Token(1); step.rows.len()]).expect("in flight");
        step.batch.sequences.iter().map(|sequence| sequence.new_tokens).collect()
    };
    // Nothing is known of times: one step's worth for all.
    assert_eq!(step(&[(0, 600)]), [128]);
    // Four times the target for a long prompt alone.
    let alone = step(&[])[0];
    assert!((180..=200).contains(&alone), "{alone}");
    // Until its end; the others do not fit beside it, but go together.
    let again = step(&[(1, 100), (2, 100)]);
    assert_eq!(again.len(), 1);
    let rest = step(&[]);
    assert_eq!((rest.len(), rest[0]), (2, 600 - 128 - alone - again[0]), "{rest:?}");
    // Beside decodes no more than the target leaves, once it is known what small steps take.
    assert_eq!(step(&[(3, 400)]).iter().sum::<usize>(), 17);
    let beside = step(&[]);
    assert!(beside.iter().sum::<usize>() <= 50 && beside.iter().sum::<usize>() >= 36, "{beside:?}");
}

#[test]
fn the_highest_priority_number_is_preempted_and_then_protected() {
    // Each grows to five blocks of nine.
    let mut scheduler = scheduler(9, 32);
    scheduler.submit(Submission { priority: 1, ..plain(0, 6, 14) }).expect("room");
    let step = scheduler.schedule().expect("work");
    scheduler.complete(step.id, &[Sampled::Token(1)]).expect("in flight");
    scheduler.submit(Submission { priority: 0, ..plain(1, 6, 14) }).expect("room");
    scheduler.submit(Submission { priority: 0, ..plain(2, 6, 14) }).expect("room");
    // The first to come gives way to both, though they came later.
    assert_eq!(run_out(&mut scheduler), [1, 2, 0]);
    assert!(scheduler.stats().preemptions_total > 0);
    assert_eq!(scheduler.stats().kv_blocks_used, 0);
}

#[test]
fn what_fell_out_of_the_window_is_given_back_and_found_again() {
    let shape = ForwardShape { vocab: 17, kv_block_tokens: 4, kv_blocks: 24, context_tokens: 96 };
    let config = SchedulerConfig { window_tokens: Some(8), step_tokens: 8, max_running: 4, ..Default::default() };
    let mut scheduler = Scheduler::new(shape, config).expect("a valid configuration");
    scheduler.submit(plain(0, 40, 30)).expect("room");
    let mut most = 0;
    while let Some(step) = scheduler.schedule() {
        let sequence = &step.batch.sequences[0];
        let first_seen = (sequence.start + 1).saturating_sub(8) / 4;
        assert!(sequence.blocks[first_seen..].iter().all(|block| *block != NO_BLOCK));
        scheduler.complete(step.id, &vec![Sampled::Token(1); step.rows.len()]).expect("in flight");
        assert_eq!(scheduler.audit(), Ok(()));
        if sequence.start >= 40 {
            most = most.max(scheduler.stats().kv_blocks_used);
        }
    }
    // The window, the block that begins, and the one before the window.
    assert!((2..=4).contains(&most), "{most} blocks in use");
    // The whole prompt is still in the cache, held or not.
    scheduler.submit(plain(1, 40, 2)).expect("room");
    let prompt = plain(0, 40, 2).prompt;
    scheduler.submit(Submission { prompt, ..plain(2, 1, 2) }).expect("room");
    let (_, admitted) = compute(&mut scheduler);
    assert_eq!(admitted, [(1, 0), (2, 36)]);
}
