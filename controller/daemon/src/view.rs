//! What the loop lets others see: its last snapshot, its engines, its newest decisions. Readers never hold
//! it up: each publication replaces one pointer.

use crate::fleet::Instance;
use controller_core::action::Decision;
use controller_core::snapshot::{InstanceId, Snapshot};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// Decisions that can be asked for while serve runs; the database keeps more.
pub const DECISIONS_SHOWN: usize = 2_000;

/// A reader of what the loop published. Cheap to clone.
#[derive(Clone)]
pub struct View {
    decisions: Arc<Mutex<VecDeque<Arc<Decision>>>>,
    snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    instances: watch::Receiver<Arc<BTreeMap<InstanceId, Instance>>>,
}

impl View {
    /// The newest `limit` decisions, of one model or all, newest first.
    pub fn decisions(&self, model: Option<&str>, limit: usize) -> Vec<Arc<Decision>> {
        let decisions = self.decisions.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = decisions.iter().rev().filter(|decision| model.is_none_or(|model| decision.model == model));
        wanted.take(limit).cloned().collect()
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

/// The loop's end of a [`View`].
pub(crate) struct ViewPublisher {
    decisions: Arc<Mutex<VecDeque<Arc<Decision>>>>,
    snapshot: watch::Sender<Option<Arc<Snapshot>>>,
    instances: watch::Sender<Arc<BTreeMap<InstanceId, Instance>>>,
}

impl ViewPublisher {
    /// Begins with the decisions of earlier runs, oldest first.
    pub(crate) fn new(decisions: Vec<Decision>) -> Self {
        let decisions = decisions.into_iter().map(Arc::new).collect();
        Self {
            decisions: Arc::new(Mutex::new(decisions)),
            snapshot: watch::Sender::new(None),
            instances: watch::Sender::new(Arc::default()),
        }
    }

    pub(crate) fn view(&self) -> View {
        View {
            decisions: self.decisions.clone(),
            snapshot: self.snapshot.subscribe(),
            instances: self.instances.subscribe(),
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

    pub(crate) fn saw(&self, snapshot: Snapshot) {
        self.snapshot.send_replace(Some(Arc::new(snapshot)));
    }

    pub(crate) fn instances(&self, instances: &BTreeMap<InstanceId, Instance>) {
        self.instances.send_replace(Arc::new(instances.clone()));
    }
}
