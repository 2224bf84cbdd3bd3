//! Who is let in next: sequences that wait, in one line for each tenant.
//!
//! Tenants take turns by surplus round robin (Adiseshu, Parulkar and Varghese, SIGCOMM '96: deficit round robin
//! that charges afterwards): a tenant in turn lets its sequences in, oldest first, while it has credit; then it
//! gets a quantum and goes behind the others. Credit is counted in tokens that the device computes: a prompt's,
//! less what the prefix cache had, when it is let in, and output as it is made, so neither long prompts nor long
//! answers buy more than a share. Between tenants that always have something waiting, service differs by
//! what one of them has in the batch plus a quantum; one that waits for nothing owes nothing, so no capacity is
//! left unused.
//!
//! Within a tenant the lowest priority number goes first, then the earliest deadline, then the first to arrive. Priority
//! buys nothing from other tenants. Sequences that lost their blocks come before all, since they had been let in
//! before, but for those of a lower number.
//!
//! Nobody starves: a tenant that joins goes behind those that are there, so every round is finite, and every
//! round brings a quantum; and whoever was overtaken [`OVERTAKEN_MAX`] times by later ones is not overtaken again.

use crate::sequence::SequenceId;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// How often one may be overtaken by those that came later, or that were never let in before.
pub(crate) const OVERTAKEN_MAX: u32 = 64;

/// Who goes first of those that wait: the smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// Lower goes first.
    pub priority: i32,
    /// Time by some clock of the caller's, ns.
    pub deadline_ns: u64,
}

/// Who goes first of those that have been let in: the smaller. It is the order of prefill, and the other way round
/// that of preemption.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Standing {
    /// 0 for one that was preempted often enough, and gives way to nobody that came later.
    pub class: u8,
    /// 0 where the class decides.
    pub priority: i32,
    /// When it was first let in.
    pub admission: u64,
}

#[derive(Debug)]
struct Waiter {
    id: SequenceId,
    rank: Rank,
    overtaken: u32,
}

#[derive(Debug)]
struct Returned {
    id: SequenceId,
    standing: Standing,
    overtaken: u32,
}

impl Returned {
    /// Whether one of this rank that was never let in goes first.
    fn gives_way(&self, rank: Rank) -> bool {
        self.standing.class > 0 && rank.priority < self.standing.priority && self.overtaken < OVERTAKEN_MAX
    }
}

#[derive(Debug)]
struct Line {
    /// Oldest arrival first.
    waiting: VecDeque<Waiter>,
    /// Tokens that it may still have computed in this turn; below zero what it had beyond.
    credit: i64,
}

impl Line {
    /// Place of the one that goes next.
    fn next(&self) -> Option<usize> {
        let due = self.waiting.iter().position(|waiter| waiter.overtaken >= OVERTAKEN_MAX);
        // The first of equals: the oldest.
        due.or_else(|| (0..self.waiting.len()).min_by_key(|place| self.waiting[*place].rank))
    }

    fn take(&mut self, place: usize) {
        self.waiting.iter_mut().take(place).for_each(|waiter| waiter.overtaken += 1);
        self.waiting.remove(place);
    }
}

/// All sequences that hold no blocks.
#[derive(Debug)]
pub(crate) struct FairQueue {
    /// Credit of a turn, tokens.
    quantum: i64,
    /// Preempted sequences, by standing.
    returned: Vec<Returned>,
    /// Only tenants that wait.
    lines: BTreeMap<Arc<str>, Line>,
    /// The same tenants; the first has its turn.
    turns: VecDeque<Arc<str>>,
}

impl FairQueue {
    /// `quantum` is in tokens, at least 1.
    pub fn new(quantum: usize) -> Self {
        let quantum = i64::try_from(quantum).unwrap_or(i64::MAX).max(1);
        Self { quantum, returned: Vec::new(), lines: BTreeMap::new(), turns: VecDeque::new() }
    }

    /// In its tenant's line.
    pub fn push(&mut self, tenant: &Arc<str>, id: SequenceId, rank: Rank) {
        let quantum = self.quantum;
        let line = self.lines.entry(tenant.clone()).or_insert_with(|| {
            self.turns.push_back(tenant.clone());
            Line { waiting: VecDeque::new(), credit: quantum }
        });
        line.waiting.push_back(Waiter { id, rank, overtaken: 0 });
    }

    /// Takes a preempted sequence back.
    pub fn push_returned(&mut self, id: SequenceId, standing: Standing) {
        let place = self.returned.partition_point(|other| other.standing < standing);
        self.returned.insert(place, Returned { id, standing, overtaken: 0 });
    }

    /// Whose turn it is; the same one until it is taken, its tenant's credit is used up, one returns, or a better
    /// one of its tenant's comes.
    pub fn next(&mut self) -> Option<SequenceId> {
        let new = self.next_new();
        match (self.returned.first(), new) {
            (Some(returned), Some((id, rank))) if returned.gives_way(rank) => Some(id),
            (Some(returned), _) => Some(returned.id),
            (None, new) => new.map(|(id, _)| id),
        }
    }

    /// The one that goes next of those that were never let in.
    fn next_new(&mut self) -> Option<(SequenceId, Rank)> {
        loop {
            let line = self.lines.get_mut(self.turns.front()?)?;
            if line.credit > 0 {
                return line.next().map(|place| (line.waiting[place].id, line.waiting[place].rank));
            }
            line.credit = line.credit.saturating_add(self.quantum);
            self.turns.rotate_left(1);
        }
    }

    /// Lets in the one that `next` named, at the cost of `tokens` to compute. A returned one has been paid for.
    pub fn take_next(&mut self, id: SequenceId, tokens: usize) {
        if self.returned.first().is_some_and(|returned| returned.id == id) {
            self.returned.remove(0);
            return;
        }
        let Some(tenant) = self.turns.front().cloned() else { return };
        if let Some(line) = self.lines.get_mut(&tenant)
            && let Some(place) = line.next()
        {
            line.take(place);
            self.returned.iter_mut().for_each(|returned| returned.overtaken += 1);
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
        self.returned.retain(|other| other.id != id);
        if let Some(line) = self.lines.get_mut(tenant) {
            line.waiting.retain(|other| other.id != id);
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

    const PLAIN: Rank = Rank { priority: 0, deadline_ns: u64::MAX };

    fn standing(class: u8, priority: i32, admission: u64) -> Standing {
        Standing { class, priority, admission }
    }

    /// Lets everybody in, each at the cost of `tokens`; tenants in order.
    fn order(queue: &mut FairQueue, tokens: usize) -> String {
        let mut order = String::new();
        while let Some(id) = queue.next() {
            assert_eq!(queue.next(), Some(id), "asking changes nothing");
            order.push(char::from_digit(id.0 as u32 / 100, 10).unwrap_or('?'));
            queue.take_next(id, tokens);
        }
        assert_eq!(queue.len(), 0);
        order
    }

    /// `counts[t]` sequences of each tenant t, tenant by tenant.
    fn check(counts: &[u64], quantum: usize, tokens: usize, expected: &str) {
        let mut queue = FairQueue::new(quantum);
        for (tenant, count) in counts.iter().enumerate() {
            let name: Arc<str> = tenant.to_string().into();
            (0..*count).for_each(|n| queue.push(&name, SequenceId(tenant as u64 * 100 + n), PLAIN));
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
        (100..104).for_each(|id| queue.push(&one, SequenceId(id), PLAIN));
        (200..206).for_each(|id| queue.push(&two, SequenceId(id), PLAIN));
        queue.charge(&one, 30);
        queue.charge("nobody", 30);
        assert_eq!(order(&mut queue, 10), "2221212121");
        queue.push(&one, SequenceId(100), PLAIN);
        assert_eq!(order(&mut queue, 10), "1");
    }

    #[test]
    fn returned_ones_come_first_and_anybody_may_leave() {
        let (one, two): (Arc<str>, Arc<str>) = ("1".into(), "2".into());
        let mut queue = FairQueue::new(10);
        queue.push(&one, SequenceId(100), PLAIN);
        queue.push(&two, SequenceId(200), PLAIN);
        queue.push_returned(SequenceId(301), standing(1, 0, 8));
        queue.push_returned(SequenceId(300), standing(1, 0, 7));
        assert_eq!((queue.len(), queue.new_ones(), queue.next()), (4, 2, Some(SequenceId(300))));
        queue.remove("3", SequenceId(300));
        queue.remove(&one, SequenceId(100));
        assert_eq!(order(&mut queue, 10), "32");
    }

    #[test]
    fn priority_then_deadline_then_arrival() {
        let (one, two): (Arc<str>, Arc<str>) = ("1".into(), "2".into());
        let mut queue = FairQueue::new(10);
        let rank = |priority, deadline_ns| Rank { priority, deadline_ns };
        for (id, rank) in [(500, rank(0, 90)), (400, rank(0, 80)), (600, rank(0, 90)), (900, rank(3, 1))] {
            queue.push(&one, SequenceId(id), rank);
        }
        queue.push(&one, SequenceId(100), rank(-2, 99));
        // Another tenant's priority is its own affair.
        queue.push(&two, SequenceId(200), rank(-9, 0));
        assert_eq!(order(&mut queue, 10), "124569");
        // One that was let in before gives way to a lower number only, and not if it was preempted too often.
        queue.push_returned(SequenceId(300), standing(1, 0, 1));
        queue.push(&one, SequenceId(100), rank(0, 0));
        queue.push(&one, SequenceId(200), rank(-1, 0));
        assert_eq!(order(&mut queue, 1), "231");
        queue.push_returned(SequenceId(300), standing(0, 0, 1));
        queue.push(&one, SequenceId(200), rank(-1, 0));
        assert_eq!(order(&mut queue, 1), "32");
    }

    proptest! {
        /// However many better ones keep coming: it is overtaken so often, and no more.
        #[test]
        fn overtaking_is_bounded(
            others in proptest::collection::vec((-3..3i32, 0..5u64, any::<bool>()), 400),
            priority in -3..3i32,
            is_returned: bool,
        ) {
            let tenant: Arc<str> = "t".into();
            let mut queue = FairQueue::new(1_000_000);
            let id = SequenceId(1000);
            let rank = |priority, deadline_ns| Rank { priority, deadline_ns };
            match is_returned {
                true => queue.push_returned(id, standing(1, priority, 0)),
                false => queue.push(&tenant, id, rank(priority, 9)),
            }
            let mut overtaken = 0;
            for (number, (priority, deadline_ns, twice)) in others.into_iter().enumerate() {
                queue.push(&tenant, SequenceId(number as u64), rank(priority, deadline_ns));
                for _ in 0..=usize::from(twice) {
                    let Some(next) = queue.next() else { continue };
                    queue.take_next(next, 1);
                    if next == id {
                        return Ok(());
                    }
                    overtaken += 1;
                    prop_assert!(overtaken <= OVERTAKEN_MAX);
                }
            }
            // Only if those that came were never enough.
            prop_assert!(overtaken < OVERTAKEN_MAX || queue.next() == Some(id));
        }

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
                (0..tenants).for_each(|tenant| queue.push(&names[tenant as usize], waiting(tenant), PLAIN));
            }
            let mut served = vec![0; tenants as usize];
            for cost in costs {
                let id = queue.next().expect("somebody waits");
                queue.take_next(id, cost);
                served[id.0 as usize] += cost;
                queue.push(&names[id.0 as usize], id, PLAIN);
                let gap = served.iter().max().zip(served.iter().min()).map_or(0, |(most, least)| most - least);
                prop_assert!(gap <= quantum + 2 * 400, "{served:?}");
            }
        }
    }
}
