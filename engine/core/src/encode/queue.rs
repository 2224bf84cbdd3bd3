//! Which texts are in the next step: one after the other by turns, until the step is full.
//!
//! Requests take turns, tenant by tenant, and a turn is charged by its tokens (start-time fair queueing, Goyal, Vin
//! and Cheng, SIGCOMM '96): next is whoever was served least since it joined. So a request for one text does not
//! wait for a request for two thousand, and a tenant gains nothing by cutting its work into many requests. Between
//! two that always have something waiting, service differs by the longest text; who joins begins level with the one
//! in turn, so nobody starves.

use super::EncodeBatch;
use crate::forward::TokenId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// A request for vectors. Later requests have higher ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EncodeId(pub u64);

/// One step: the batch, and whose text each of its rows is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncodeStep {
    pub batch: EncodeBatch,
    /// Request and index of the text in it.
    pub rows: Vec<(EncodeId, usize)>,
}

/// Texts that wait.
#[derive(Debug)]
pub struct EncodeQueue {
    step_tokens: usize,
    lines: BTreeMap<Arc<str>, Line>,
    turns: Turns<Arc<str>>,
    owners: BTreeMap<EncodeId, Arc<str>>,
}

/// Requests of one tenant.
#[derive(Debug, Default)]
struct Line {
    requests: BTreeMap<EncodeId, Request>,
    turns: Turns<EncodeId>,
}

#[derive(Debug)]
struct Request {
    texts: VecDeque<Vec<TokenId>>,
    /// Index of the first text that still waits.
    next: usize,
}

impl EncodeQueue {
    /// A step has at most this many tokens, or one text that is longer.
    pub fn new(step_tokens: usize) -> Self {
        Self { step_tokens, lines: BTreeMap::new(), turns: Turns::default(), owners: BTreeMap::new() }
    }

    /// Takes a request in; false, and no change, when there is nothing to do or its id is here already.
    pub fn submit(&mut self, id: EncodeId, tenant: &Arc<str>, texts: Vec<Vec<TokenId>>) -> bool {
        if texts.is_empty() || self.owners.contains_key(&id) {
            return false;
        }
        self.owners.insert(id, tenant.clone());
        let line = self.lines.entry(tenant.clone()).or_insert_with(|| {
            self.turns.join(tenant.clone());
            Line::default()
        });
        line.turns.join(id);
        line.requests.insert(id, Request { texts: texts.into(), next: 0 });
        true
    }

    /// Forgets what still waits of a request.
    pub fn cancel(&mut self, id: EncodeId) {
        let Some(tenant) = self.owners.remove(&id) else { return };
        let Some(line) = self.lines.get_mut(&tenant) else { return };
        line.requests.remove(&id);
        line.turns.leave(&id);
        if line.requests.is_empty() {
            self.lines.remove(&tenant);
            self.turns.leave(&tenant);
        }
    }

    /// Whether no text waits.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Requests of which a text waits.
    pub fn waiting(&self) -> usize {
        self.owners.len()
    }

    /// Takes the texts of the next step; none when no text waits.
    pub fn schedule(&mut self) -> Option<EncodeStep> {
        let mut step = EncodeStep::default();
        while let Some((id, index, text)) = self.take(self.step_tokens.saturating_sub(step.batch.tokens.len()), &step) {
            step.batch.lengths.push(text.len());
            step.batch.tokens.extend(text);
            step.rows.push((id, index));
        }
        (!step.rows.is_empty()).then_some(step)
    }

    /// The text in turn, if it has at most `room` tokens or is the step's first.
    fn take(&mut self, room: usize, step: &EncodeStep) -> Option<(EncodeId, usize, Vec<TokenId>)> {
        let tenant = self.turns.next()?.clone();
        let line = self.lines.get_mut(&tenant)?;
        let id = *line.turns.next()?;
        let request = line.requests.get_mut(&id)?;
        if request.texts.front()?.len() > room && !step.rows.is_empty() {
            return None;
        }
        let text = request.texts.pop_front()?;
        let index = request.next;
        request.next += 1;
        let is_last = request.texts.is_empty();
        self.turns.charge(text.len());
        line.turns.charge(text.len());
        if is_last {
            self.cancel(id);
        }
        Some((id, index, text))
    }
}

/// Who was served how much, least first; ties go to the lower key.
#[derive(Debug)]
struct Turns<K> {
    order: BTreeSet<(u64, K)>,
    served: BTreeMap<K, u64>,
    /// What the one in turn had been served: where newcomers begin.
    now: u64,
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self { order: BTreeSet::new(), served: BTreeMap::new(), now: 0 }
    }
}

impl<K: Ord + Clone> Turns<K> {
    fn join(&mut self, key: K) {
        self.served.insert(key.clone(), self.now);
        self.order.insert((self.now, key));
    }

    fn leave(&mut self, key: &K) {
        if let Some(served) = self.served.remove(key) {
            self.order.remove(&(served, key.clone()));
        }
    }

    fn next(&self) -> Option<&K> {
        self.order.first().map(|(_, key)| key)
    }

    /// Charges the one in turn.
    fn charge(&mut self, tokens: usize) {
        let Some((served, key)) = self.order.pop_first() else { return };
        self.now = served;
        let served = served.saturating_add(tokens.max(1) as u64);
        self.served.insert(key.clone(), served);
        self.order.insert((served, key));
    }
}
