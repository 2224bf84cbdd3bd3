//! Nobody waits for ever, whoever else comes.

use crate::{VOCAB, draw, mix};
use engine_core::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// However many others come, of known tenants and of new ones, before it and with every step after it:
    /// whoever waits is let in within as many admissions as there were tenants and running ones before it.
    #[test]
    fn nobody_starves_while_others_keep_coming(
        before in proptest::collection::vec((0..6u64, 1..40usize, 1..6usize), 0..30),
        after in proptest::collection::vec((0..60u64, 1..40usize, 1..6usize), 120),
        max_running in 1..4usize,
        kv_blocks in 12..30usize,
    ) {
        let shape = ForwardShape { vocab: VOCAB as usize, kv_block_tokens: 4, kv_blocks, context_tokens: 48 };
        let config = SchedulerConfig { step_tokens: 48, max_running, max_waiting: 1000, ..Default::default() };
        let mut scheduler = Scheduler::new(shape, config).expect("a valid configuration");
        let submission = |id: u64, (tenant, prompt_tokens, max_tokens): (u64, usize, usize)| Submission {
            id: SequenceId(id),
            tenant: format!("tenant {tenant}").into(),
            prompt: (0..prompt_tokens as u64).map(|n| (mix(id, n) % VOCAB) as TokenId).collect(),
            emitted: Vec::new(),
            adapter: None,
            limits: Limits { max_tokens, min_tokens: 0, given_tokens: 0, ignore_eos: true, stop_token_ids: Vec::new() },
            priority: (id % 5) as i32,
            deadline_ns: u64::MAX,
            speculate: true,
        };
        let tenants: BTreeSet<u64> = before.iter().map(|(tenant, ..)| *tenant).collect();
        for (id, other) in before.into_iter().enumerate() {
            scheduler.submit(submission(id as u64 + 1000, other)).expect("room");
        }
        scheduler.submit(Submission { tenant: "waits".into(), priority: 9, ..submission(0, (0, 40, 6)) }).expect("room");
        let mut overtaken = BTreeSet::new();
        for (id, other) in after.into_iter().enumerate() {
            scheduler.submit(submission(id as u64 + 2000, other)).expect("room");
            let step = scheduler.schedule().expect("work");
            let place = step.admitted.iter().position(|admitted| admitted.id == SequenceId(0));
            overtaken.extend(step.admitted.iter().take(place.unwrap_or(usize::MAX)).map(|admitted| admitted.id));
            if place.is_some() {
                overtaken.clear();
                break;
            }
            let tokens = draw(&step, vec![1; step.rows.len()]);
            scheduler.complete(step.id, &tokens).expect("in flight");
            prop_assert_eq!(scheduler.audit(), Ok(()));
            // A turn lets in at most a quantum of prompts and one more; each has at least one token.
            prop_assert!(overtaken.len() <= 49 * (tenants.len() + 1), "{:?} came before", overtaken);
        }
        prop_assert!(overtaken.is_empty(), "it still waits behind {:?}", overtaken);
    }

    /// However many of a higher rank keep coming, in its own tenant's line and with too few blocks for all: the one
    /// that is always last by rank is let in and comes to its end.
    #[test]
    fn nobody_starves_behind_higher_priorities(
        others in proptest::collection::vec((1..20usize, 1..12usize, -3..3i32), 1500),
        max_running in 1..4usize,
        kv_blocks in 8..14usize,
    ) {
        let shape = ForwardShape { vocab: VOCAB as usize, kv_block_tokens: 4, kv_blocks, context_tokens: 32 };
        let config = SchedulerConfig { step_tokens: 32, max_running, max_waiting: 10_000, ..Default::default() };
        let mut scheduler = Scheduler::new(shape, config).expect("a valid configuration");
        let submission = |id: u64, (prompt_tokens, max_tokens, priority): (usize, usize, i32)| Submission {
            id: SequenceId(id),
            tenant: "t".into(),
            prompt: (0..prompt_tokens as u64).map(|n| (mix(id, n) % VOCAB) as TokenId).collect(),
            emitted: Vec::new(),
            adapter: None,
            limits: Limits { max_tokens, min_tokens: 0, given_tokens: 0, ignore_eos: true, stop_token_ids: Vec::new() },
            priority,
            deadline_ns: u64::MAX,
            speculate: true,
        };
        scheduler.submit(submission(0, (15, 16, 9))).expect("room");
        let mut ended = false;
        for (id, other) in others.into_iter().enumerate() {
            scheduler.submit(submission(id as u64 + 1, other)).expect("room");
            let step = scheduler.schedule().expect("work");
            let drawn = draw(&step, vec![1; step.rows.len()]);
            let events = scheduler.complete(step.id, &drawn).expect("in flight");
            prop_assert_eq!(scheduler.audit(), Ok(()));
            if events.contains(&SequenceEvent::Ended { id: SequenceId(0), reason: EndReason::Length }) {
                ended = true;
                break;
            }
        }
        prop_assert!(ended, "it has not come to its end in 1500 steps");
    }
}
