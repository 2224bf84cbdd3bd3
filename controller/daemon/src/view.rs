//! What the loop lets others see: its last snapshot, its engines, its newest decisions. Readers never hold
//! it up: each publication replaces one pointer.

use crate::fleet::Instance;
use crate::spares::SparesSeen;
use crate::timeline::StartRecord;
use controller_core::Nanos;
use controller_core::action::Decision;
use controller_core::snapshot::{InstanceId, ModelName, ModelView, Snapshot};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// Decisions that can be asked for while serve runs; the database keeps more.
pub const DECISIONS_SHOWN: usize = 2_000;

/// Starts that can be asked for.
pub(crate) const STARTS_SHOWN: usize = 1_000;

/// Ticks that can be asked for.
const TICKS_SHOWN: usize = 4_096;

/// A tick that saw demand grow: when load was seen, to be laid beside when it came.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TickSeen {
    /// When the tick observed, CLOCK_MONOTONIC ns.
    pub at_ns: Nanos,
    /// When it had decided and its actions were applied.
    pub acted_ns: Nanos,
    pub actions: usize,
    /// Offered load by model, a running total: arrivals and what only the kernel has seen.
    pub offered_total: BTreeMap<ModelName, f64>,
}

/// A reader of what the loop published. Cheap to clone.
#[derive(Clone)]
pub struct View {
    ticks: Arc<Mutex<VecDeque<Arc<TickSeen>>>>,
    decisions: Arc<Mutex<VecDeque<Arc<Decision>>>>,
    starts: Arc<Mutex<VecDeque<Arc<StartRecord>>>>,
    snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    instances: watch::Receiver<Arc<BTreeMap<InstanceId, Instance>>>,
    spares: watch::Receiver<Arc<SparesSeen>>,
}

impl View {
    /// The newest `limit` decisions, of one model or all, newest first.
    pub fn decisions(&self, model: Option<&str>, limit: usize) -> Vec<Arc<Decision>> {
        let decisions = self.decisions.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = decisions.iter().rev().filter(|decision| model.is_none_or(|model| decision.model == model));
        wanted.take(limit).cloned().collect()
    }

    /// The newest `limit` ticks that saw demand grow, newest first.
    pub fn ticks(&self, limit: usize) -> Vec<Arc<TickSeen>> {
        let ticks = self.ticks.lock().unwrap_or_else(PoisonError::into_inner);
        ticks.iter().rev().take(limit).cloned().collect()
    }

    /// The newest `limit` starts, of one model or all, newest first.
    pub fn starts(&self, model: Option<&str>, limit: usize) -> Vec<Arc<StartRecord>> {
        let starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = |start: &&Arc<StartRecord>| model.is_none_or(|model| start.model == model);
        starts.iter().rev().filter(wanted).take(limit).cloned().collect()
    }

    /// The last tick's input; none before the first.
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.snapshot.borrow().clone()
    }

    /// The engines.
    pub fn instances(&self) -> Arc<BTreeMap<InstanceId, Instance>> {
        self.instances.borrow().clone()
    }
}

impl View {
    /// The spare processes, and how many there should be.
    pub fn spares(&self) -> Arc<SparesSeen> {
        self.spares.borrow().clone()
    }
}

/// The loop's end of a [`View`].
pub(crate) struct ViewPublisher {
    ticks: Arc<Mutex<VecDeque<Arc<TickSeen>>>>,
    decisions: Arc<Mutex<VecDeque<Arc<Decision>>>>,
    starts: Arc<Mutex<VecDeque<Arc<StartRecord>>>>,
    snapshot: watch::Sender<Option<Arc<Snapshot>>>,
    instances: watch::Sender<Arc<BTreeMap<InstanceId, Instance>>>,
    spares: watch::Sender<Arc<SparesSeen>>,
}

impl ViewPublisher {
    /// Begins with the decisions of earlier runs, oldest first.
    pub(crate) fn new(decisions: Vec<Decision>, starts: Vec<StartRecord>) -> Self {
        let decisions = decisions.into_iter().map(Arc::new).collect();
        let starts = starts.into_iter().map(Arc::new).collect();
        Self {
            ticks: Arc::default(),
            decisions: Arc::new(Mutex::new(decisions)),
            starts: Arc::new(Mutex::new(starts)),
            snapshot: watch::Sender::new(None),
            instances: watch::Sender::new(Arc::default()),
            spares: watch::Sender::new(Arc::default()),
        }
    }

    pub(crate) fn view(&self) -> View {
        View {
            ticks: self.ticks.clone(),
            decisions: self.decisions.clone(),
            starts: self.starts.clone(),
            snapshot: self.snapshot.subscribe(),
            instances: self.instances.subscribe(),
            spares: self.spares.subscribe(),
        }
    }

    pub(crate) fn decided(&self, new: &[Decision]) {
        if new.is_empty() {
            return;
        }
        let mut decisions = self.decisions.lock().unwrap_or_else(PoisonError::into_inner);
        decisions.extend(new.iter().cloned().map(Arc::new));
        let excess = decisions.len().saturating_sub(DECISIONS_SHOWN);
        decisions.drain(..excess);
    }

    pub(crate) fn started(&self, start: StartRecord) {
        let mut starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        if starts.len() >= STARTS_SHOWN {
            starts.pop_front();
        }
        starts.push_back(Arc::new(start));
    }

    /// Keeps a tick if the load that it saw is more than the last one's.
    pub(crate) fn ticked(&self, snapshot: &Snapshot, acted_ns: Nanos, actions: usize) {
        let offered = |view: &ModelView| view.demand.arrivals_total as f64 + view.demand.unnamed_total;
        let offered_total = snapshot.models.iter().map(|(name, view)| (name.clone(), offered(view))).collect();
        let mut ticks = self.ticks.lock().unwrap_or_else(PoisonError::into_inner);
        if actions == 0 && ticks.back().is_some_and(|last| last.offered_total == offered_total) {
            return;
        }
        if ticks.len() >= TICKS_SHOWN {
            ticks.pop_front();
        }
        ticks.push_back(Arc::new(TickSeen { at_ns: snapshot.now_ns, acted_ns, actions, offered_total }));
    }

    pub(crate) fn saw(&self, snapshot: Snapshot) {
        self.snapshot.send_replace(Some(Arc::new(snapshot)));
    }

    pub(crate) fn instances(&self, instances: &BTreeMap<InstanceId, Instance>) {
        self.instances.send_replace(Arc::new(instances.clone()));
    }

    pub(crate) fn spares(&self, seen: SparesSeen) {
        self.spares.send_replace(Arc::new(seen));
    }
}
