//! Who is let in next: sequences that wait, in one line for each tenant.
//!
//! Tenants take turns by surplus round robin (Adiseshu, Parulkar and Varghese, SIGCOMM '96: deficit round robin
//! that charges afterwards): a tenant in turn lets its sequences in, oldest first, while it has credit; then it
//! gets a quantum and goes behind the others. Credit is counted in tokens that the device computes: a prompt's,
//! less what the prefix cache had, when it is let in, and output as it is made, so neither long prompts nor long
//! answers buy more than a share. Between tenants that always have something waiting, service differs by
//! what one of them has in the batch plus a quantum; one that waits for nothing owes nothing, so no capacity is
//! left unused. One tenant alone is served strictly in order of arrival.
//!
//! Nobody starves: a tenant that joins goes behind those that are there, so every round is finite, and every
//! round brings a quantum. Sequences that lost their blocks come before all, since they had been let in before.

use crate::sequence::SequenceId;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

#[derive(Debug)]
struct Line {
    /// Oldest arrival first.
    waiting: VecDeque<SequenceId>,
    /// Tokens that it may still have computed in this turn; below zero what it had beyond.
    credit: i64,
}

/// All sequences that hold no blocks.
#[derive(Debug)]
pub(crate) struct FairQueue {
    /// Credit of a turn, tokens.
    quantum: i64,
    /// Preempted sequences, in the order in which they were first let in.
    returned: VecDeque<SequenceId>,
    /// Only tenants that wait.
    lines: BTreeMap<Arc<str>, Line>,
    /// The same tenants; the first has its turn.
    turns: VecDeque<Arc<str>>,
}

impl FairQueue {
    /// `quantum` is in tokens, at least 1.
    pub fn new(quantum: usize) -> Self {
        let quantum = i64::try_from(quantum).unwrap_or(i64::MAX).max(1);
        Self { quantum, returned: VecDeque::new(), lines: BTreeMap::new(), turns: VecDeque::new() }
    }

    /// Behind all of its tenant's.
    pub fn push(&mut self, tenant: &Arc<str>, id: SequenceId) {
        let quantum = self.quantum;
        let line = self.lines.entry(tenant.clone()).or_insert_with(|| {
            self.turns.push_back(tenant.clone());
            Line { waiting: VecDeque::new(), credit: quantum }
        });
        line.waiting.push_back(id);
    }

    /// Takes a preempted sequence back. Preemption takes the latest first, so it goes before those here.
    pub fn push_returned(&mut self, id: SequenceId) {
        self.returned.push_front(id);
    }

    /// Whose turn it is; the same one until it is taken, its tenant's credit is used up, or one returns.
    pub fn next(&mut self) -> Option<SequenceId> {
        if let Some(id) = self.returned.front() {
            return Some(*id);
        }
        loop {
            let line = self.lines.get_mut(self.turns.front()?)?;
            if line.credit > 0 {
                return line.waiting.front().copied();
            }
            line.credit = line.credit.saturating_add(self.quantum);
            self.turns.rotate_left(1);
        }
    }

    /// Lets in what `next` named, at the cost of `tokens` to compute. A returned one has been paid for.
    pub fn take_next(&mut self, tokens: usize) {
        if self.returned.pop_front().is_some() {
            return;
        }
        let Some(tenant) = self.turns.front().cloned() else { return };
        if let Some(line) = self.lines.get_mut(&tenant) {
            line.waiting.pop_front();
        }
        self.charge(&tenant, tokens);
        self.drop_if_empty(&tenant);
    }

    /// Charges a tenant for tokens computed; nothing when it waits for nothing.
    pub fn charge(&mut self, tenant: &str, tokens: usize) {
        if let Some(line) = self.lines.get_mut(tenant) {
            line.credit = line.credit.saturating_sub(i64::try_from(tokens).unwrap_or(i64::MAX));
        }
    }

    /// Forgets a sequence, wherever it waits.
    pub fn remove(&mut self, tenant: &str, id: SequenceId) {
        self.returned.retain(|other| *other != id);
        if let Some(line) = self.lines.get_mut(tenant) {
            line.waiting.retain(|other| *other != id);
        }
        self.drop_if_empty(tenant);
    }

    fn drop_if_empty(&mut self, tenant: &str) {
        if self.lines.get(tenant).is_some_and(|line| line.waiting.is_empty()) {
            self.lines.remove(tenant);
            self.turns.retain(|other| **other != *tenant);
        }
    }

    /// Sequences that were never let in.
    pub fn new_ones(&self) -> usize {
        self.lines.values().map(|line| line.waiting.len()).sum()
    }

    /// Sequences in all.
    pub fn len(&self) -> usize {
        self.returned.len() + self.new_ones()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Lets everybody in, each at the cost of `tokens`; tenants in order.
    fn order(queue: &mut FairQueue, tokens: usize) -> String {
        let mut order = String::new();
        while let Some(id) = queue.next() {
            assert_eq!(queue.next(), Some(id), "asking changes nothing");
            order.push(char::from_digit(id.0 as u32 / 100, 10).unwrap_or('?'));
            queue.take_next(tokens);
        }
        assert_eq!(queue.len(), 0);
        order
    }

    /// `counts[t]` sequences of each tenant t, tenant by tenant.
    fn check(counts: &[u64], quantum: usize, tokens: usize, expected: &str) {
        let mut queue = FairQueue::new(quantum);
        for (tenant, count) in counts.iter().enumerate() {
            let name: Arc<str> = tenant.to_string().into();
            (0..*count).for_each(|n| queue.push(&name, SequenceId(tenant as u64 * 100 + n)));
        }
        assert_eq!(order(&mut queue, tokens), expected);
    }

    #[test]
    fn tenants_take_turns() {
        check(&[6, 2, 1], 10, 10, "012010000");
        check(&[4, 2], 20, 10, "001100");
        check(&[4, 2], 10, 25, "010100");
        check(&[3], 1, 1000, "000");
    }

    #[test]
    fn output_is_charged_and_an_empty_line_owes_nothing() {
        let (one, two): (Arc<str>, Arc<str>) = ("1".into(), "2".into());
        let mut queue = FairQueue::new(10);
        (100..104).for_each(|id| queue.push(&one, SequenceId(id)));
        (200..206).for_each(|id| queue.push(&two, SequenceId(id)));
        queue.charge(&one, 30);
        queue.charge("nobody", 30);
        assert_eq!(order(&mut queue, 10), "2221212121");
        queue.push(&one, SequenceId(100));
        assert_eq!(order(&mut queue, 10), "1");
    }

    #[test]
    fn returned_ones_come_first_and_anybody_may_leave() {
        let (one, two): (Arc<str>, Arc<str>) = ("1".into(), "2".into());
        let mut queue = FairQueue::new(10);
        queue.push(&one, SequenceId(100));
        queue.push(&two, SequenceId(200));
        queue.push_returned(SequenceId(301));
        queue.push_returned(SequenceId(300));
        assert_eq!((queue.len(), queue.new_ones(), queue.next()), (4, 2, Some(SequenceId(300))));
        queue.remove("3", SequenceId(300));
        queue.remove(&one, SequenceId(100));
        assert_eq!(order(&mut queue, 10), "32");
    }

    proptest! {
        /// Tenants that always have something waiting get the same, but for a turn and what one let-in costs.
        #[test]
        fn the_backlogged_are_served_alike(
            costs in proptest::collection::vec(1..400usize, 300),
            tenants in 2..5u64,
            quantum in 1..200usize,
        ) {
            let mut queue = FairQueue::new(quantum);
            let names: Vec<Arc<str>> = (0..tenants).map(|tenant| tenant.to_string().into()).collect();
            let waiting = |tenant: u64| SequenceId(tenant);
            // Two at once, so that the line never empties and the debts stay.
            for _ in 0..2 {
                (0..tenants).for_each(|tenant| queue.push(&names[tenant as usize], waiting(tenant)));
            }
            let mut served = vec![0; tenants as usize];
            for cost in costs {
                let id = queue.next().expect("somebody waits");
                queue.take_next(cost);
                served[id.0 as usize] += cost;
                queue.push(&names[id.0 as usize], id);
                let gap = served.iter().max().zip(served.iter().min()).map_or(0, |(most, least)| most - least);
                prop_assert!(gap <= quantum + 2 * 400, "{served:?}");
            }
        }
    }
}
