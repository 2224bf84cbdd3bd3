//! Properties of the queue of texts: every text is computed once, a step keeps its bound, and service is shared.

use engine_core::{EncodeId, EncodeQueue, EncodeStep, TokenId};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const STEP_TOKENS: usize = 32;
const LONGEST: usize = 40;

fn tenant(index: usize) -> Arc<str> {
    format!("tenant-{index}").into()
}

/// A text of this many tokens, each of which says whose it is.
fn text(id: u64, index: usize, tokens: usize) -> Vec<TokenId> {
    vec![(id * 1000) as TokenId + index as TokenId; tokens]
}

fn texts(id: u64, lengths: &[usize]) -> Vec<Vec<TokenId>> {
    lengths.iter().enumerate().map(|(index, tokens)| text(id, index, *tokens)).collect()
}

/// Checks a step against what was submitted and answers its rows with their lengths.
fn check(step: &EncodeStep, submitted: &BTreeMap<u64, Vec<usize>>) -> Vec<(u64, usize, usize)> {
    assert_eq!(step.rows.len(), step.batch.lengths.len());
    assert!(step.batch.tokens.len() <= STEP_TOKENS || step.rows.len() == 1, "{step:?}");
    let mut tokens = step.batch.tokens.as_slice();
    let mut rows = Vec::new();
    for ((EncodeId(id), index), length) in step.rows.iter().zip(&step.batch.lengths) {
        let (own, rest) = tokens.split_at(*length);
        assert_eq!(own, text(*id, *index, submitted[id][*index]));
        tokens = rest;
        rows.push((*id, *index, *length));
    }
    assert!(tokens.is_empty());
    rows
}

#[derive(Clone, Debug)]
enum Op {
    Submit { tenant: usize, lengths: Vec<usize> },
    Cancel(usize),
    Step,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0..3usize, prop::collection::vec(1..=LONGEST, 1..6)).prop_map(|(tenant, lengths)| Op::Submit { tenant, lengths }),
        1 => (0..20usize).prop_map(Op::Cancel),
        3 => Just(Op::Step),
    ]
}

proptest! {
    #[test]
    fn every_text_is_computed_once_and_in_order(ops in prop::collection::vec(op(), 1..60)) {
        let mut queue = EncodeQueue::new(STEP_TOKENS);
        let mut submitted = BTreeMap::new();
        let mut waiting: BTreeMap<u64, usize> = BTreeMap::new();
        let mut cancelled = BTreeSet::new();
        let step = |queue: &mut EncodeQueue, submitted: &BTreeMap<u64, Vec<usize>>, waiting: &mut BTreeMap<u64, usize>, cancelled: &BTreeSet<u64>| {
            let Some(step) = queue.schedule() else { return false };
            for (id, index, _) in check(&step, submitted) {
                assert!(!cancelled.contains(&id));
                let next = waiting.get_mut(&id).expect("it waits");
                assert_eq!(index, *next);
                *next += 1;
                if *next == submitted[&id].len() {
                    waiting.remove(&id);
                }
            }
            true
        };
        for op in ops {
            match op {
                Op::Submit { tenant: owner, lengths } => {
                    let id = submitted.len() as u64;
                    assert!(queue.submit(EncodeId(id), &tenant(owner), texts(id, &lengths)));
                    submitted.insert(id, lengths);
                    waiting.insert(id, 0);
                    assert!(!queue.submit(EncodeId(id), &tenant(owner), texts(id, &[1])));
                }
                Op::Cancel(index) => {
                    let id = index as u64;
                    queue.cancel(EncodeId(id));
                    if waiting.remove(&id).is_some() {
                        cancelled.insert(id);
                    }
                }
                Op::Step => drop(step(&mut queue, &submitted, &mut waiting, &cancelled)),
            }
            assert_eq!((queue.waiting(), queue.is_empty()), (waiting.len(), waiting.is_empty()));
        }
        while step(&mut queue, &submitted, &mut waiting, &cancelled) {}
        prop_assert!(waiting.is_empty() && queue.is_empty());
    }

    #[test]
    fn the_backlogged_are_served_alike(lengths in prop::collection::vec(1..=LONGEST, 1..8), joins_after in 0..20usize) {
        let mut queue = EncodeQueue::new(STEP_TOKENS);
        let many = |id: u64| texts(id, &lengths.iter().copied().cycle().take(2_000).collect::<Vec<_>>());
        // One tenant with one request, one with two, one that joins later; none runs out.
        for (id, owner) in [(0, 0), (1, 1), (2, 1)] {
            queue.submit(EncodeId(id), &tenant(owner), many(id));
        }
        let mut served = [0usize; 4];
        for number in 0..joins_after + 40 {
            if number == joins_after {
                served = [0; 4];
                queue.submit(EncodeId(3), &tenant(2), many(3));
            }
            let step = queue.schedule().expect("there is work");
            for ((EncodeId(id), _), length) in step.rows.iter().zip(&step.batch.lengths) {
                served[*id as usize] += length;
            }
        }
        // Each is within a text of level when the count begins and when it ends.
        let tenants = [served[0], served[1] + served[2], served[3]];
        for (a, b) in [(tenants[0], tenants[1]), (tenants[1], tenants[2]), (served[1], served[2])] {
            prop_assert!(a.abs_diff(b) <= 2 * LONGEST, "{served:?}");
        }
    }
}

#[test]
fn a_request_for_one_text_does_not_wait_for_a_large_one() {
    let mut queue = EncodeQueue::new(STEP_TOKENS);
    queue.submit(EncodeId(0), &tenant(0), texts(0, &[16; 500]));
    for _ in 0..3 {
        queue.schedule();
    }
    queue.submit(EncodeId(1), &tenant(0), texts(1, &[4]));
    let step = queue.schedule().expect("there is work");
    assert!(step.rows.contains(&(EncodeId(1), 0)), "{step:?}");
    assert!(!queue.submit(EncodeId(2), &tenant(0), Vec::new()), "nothing to do");
}
