//! What the controller remembers between ticks. Everything can be relearned: a fresh state beside a
//! running fleet adopts it, so a lost or unreadable state costs measurements and nothing else.

use crate::Nanos;
use crate::action::Reason;
use crate::capacity::{CapacityEstimator, ServiceMark};
use crate::expect::{Expectation, Rota};
use crate::forecast::ArrivalEstimator;
use crate::policy::Policy;
use crate::snapshot::{InstanceId, InstanceState, ModelName, Placement, Snapshot};
use crate::tiers::Asked;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Memory of the pure controller; serialisable, so it may be kept across restarts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub policy: Policy,
    pub(crate) epoch: u64,
    pub(crate) last_now_ns: Nanos,
    /// Instances that this state has ever asked for: the last part of their identity.
    pub(crate) instances_named: u64,
    pub(crate) models: BTreeMap<ModelName, ModelState>,
    #[serde(default)]
    pub(crate) rota: Rota,
    /// Asked for, and in no snapshot yet.
    pub(crate) pending: BTreeMap<InstanceId, Pending>,
    /// Told to drain, and not seen draining yet.
    pub(crate) drains: BTreeMap<InstanceId, Drain>,
    /// What was asked for between tiers.
    #[serde(default)]
    pub(crate) tiers: Asked,
    /// In the last snapshot.
    pub(crate) known: BTreeMap<InstanceId, Known>,
}

/// What is remembered of one model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelState {
    pub arrivals: ArrivalEstimator,
    #[serde(default)]
    pub expected: Expectation,
    pub capacity: CapacityEstimator,
    /// Entry `k`: when a `k+1`-th instance was last needed.
    pub(crate) needed_ns: Vec<Nanos>,
    /// Since when requests have been held with nothing that serves or is about to.
    pub(crate) starved_since_ns: Option<Nanos>,
    /// Instances that died and have not been replaced.
    pub(crate) lost: u32,
    /// Starts that failed in a row.
    pub(crate) failures: u32,
    /// A failure that has not been told yet.
    pub(crate) failure_untold: bool,
    /// No start before this.
    pub(crate) retry_at_ns: Nanos,
    /// What was last decided, so that it is told once.
    pub(crate) told: Option<(u32, Reason)>,
}

/// An instance that was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pending {
    pub(crate) model: ModelName,
    pub(crate) placement: Placement,
    pub(crate) at_ns: Nanos,
}

/// A drain that was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Drain {
    pub(crate) at_ns: Nanos,
    /// How often it was asked for: the last part of its key.
    pub(crate) tries: u32,
}

/// An instance as last seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Known {
    pub(crate) model: ModelName,
    pub(crate) state: InstanceState,
    pub(crate) ready_at_ns: Option<Nanos>,
    pub(crate) mark: Option<ServiceMark>,
}

impl State {
    /// A state that knows nothing yet.
    pub fn new(policy: Policy) -> Self {
        Self { policy, ..Self::default() }
    }

    /// Starts that failed in a row, for models where the last one did.
    pub fn failing(&self) -> BTreeMap<ModelName, u32> {
        let failing = self.models.iter().filter(|(_, model)| model.failures > 0);
        failing.map(|(name, model)| (name.clone(), model.failures)).collect()
    }

    /// Forgets what was asked for. For an advisory controller, whose actions nobody applies: none of them
    /// is to count as failed.
    pub fn forget_actions(&mut self) {
        self.pending.clear();
        self.drains.clear();
        self.tiers = Asked::default();
    }

    /// What is known of a model's arrivals; none before its first tick.
    pub fn arrivals(&self, model: &str) -> Option<&ArrivalEstimator> {
        self.models.get(model).map(|model| &model.arrivals)
    }

    /// Moves to the snapshot's time. False where the snapshot is older than the last one and must not be used.
    /// A new epoch is a new controller: its clock and counters may have started anew, and what the old one
    /// asked for either shows in the snapshot or never happened.
    pub(crate) fn advance(&mut self, snapshot: &Snapshot) -> bool {
        if snapshot.epoch == self.epoch && snapshot.now_ns < self.last_now_ns {
            return false;
        }
        if snapshot.epoch != self.epoch {
            self.epoch = snapshot.epoch;
            self.instances_named = 0;
            self.pending.clear();
            self.drains.clear();
            self.tiers = Asked::default();
            self.known.clear();
            for model in self.models.values_mut() {
                model.arrivals.rebase();
                model.expected.rebase(0.0);
                model.needed_ns.clear();
                model.starved_since_ns = None;
                model.retry_at_ns = 0;
                model.lost = 0;
                model.told = None;
            }
        }
        self.last_now_ns = snapshot.now_ns;
        true
    }

    /// An identity that nothing in the snapshot or pending has. It becomes a file name and part of a socket
    /// path, so it is short and of plain characters.
    pub(crate) fn name_instance(&mut self, model: &str, snapshot: &Snapshot) -> InstanceId {
        let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
        let slug: String = model.chars().take(24).map(plain).collect();
        loop {
            self.instances_named += 1;
            let id = format!("{slug}-{}-{}", self.epoch, self.instances_named);
            if !snapshot.instances.contains_key(&id) && !self.pending.contains_key(&id) {
                return id;
            }
        }
    }
}
