//! Weights between the loop and their keeper: what the plan is told of them, and what it asks for.

use crate::actuate::Models;
use crate::catalog::{instance_bytes, stored_weights_bytes};
use crate::config::DaemonConfig;
use crate::daemon::Daemon;
use crate::measure;
use crate::registry::ModelRecord;
use crate::weights::{Places, Seen};
use controller_core::action::Action;
use controller_core::snapshot::{
    InstanceState, ModelName, ModelView, NodeWeights, Revision, Snapshot, WeightsTier, WeightsView,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

impl Daemon {
    /// Tells the keeper whose weights there are.
    pub(crate) fn tell_models(&mut self, models: &Models) {
        if let Some(keeper) = self.keeper.as_mut() {
            keeper.registered(revisions(models));
        }
    }

    /// The weights as they were last seen; none where nobody looks.
    pub(crate) fn weights_seen(&self) -> Option<Arc<Seen>> {
        self.keeper.as_ref().map(|keeper| keeper.seen())
    }

    /// What is known of a model without its demand.
    pub(crate) fn model_view(&self, name: &ModelName, record: &ModelRecord, seen: Option<&Seen>) -> ModelView {
        let stored_bytes = stored_weights_bytes(record);
        let weights = seen.zip(stored_bytes).map(|(seen, bytes)| {
            let (memory_start_ms, disk_start_ms) = self.cold_starts.by_tier(&record.revision);
            // Its manifest may not have been read yet.
            let unseen = WeightsView { bytes, tier: WeightsTier::Disk, ..WeightsView::default() };
            let view = seen.weights(&record.revision).cloned().unwrap_or(unseen);
            WeightsView { memory_start_ms, disk_start_ms, ..view }
        });
        let shared_bytes = stored_bytes.filter(|_| weights.is_some()).unwrap_or(0);
        ModelView {
            revision: record.revision.clone(),
            instance_bytes: instance_bytes(record, &self.config).saturating_sub(shared_bytes),
            demand: Default::default(),
            cold_start_ms: self.cold_starts.of(name, &record.revision),
            weights,
        }
    }

    /// Something has mapped weights, or let go of them.
    pub(crate) fn look_at_weights(&self) {
        if let Some(keeper) = &self.keeper {
            keeper.look();
        }
    }

    /// Weights over all models.
    pub(crate) fn node_weights(&self, seen: Option<&Seen>) -> NodeWeights {
        let node = seen.map(|seen| seen.node.clone()).unwrap_or_default();
        NodeWeights { disk_bytes_per_s: self.cold_starts.disk_bytes_per_s(), ..node }
    }

    /// Hands a move of weights to the keeper. False where the action is no such.
    pub(crate) fn apply_move(&self, action: &Action, owners: &BTreeMap<String, ModelName>) -> bool {
        let Some(done) = self.keeper.as_ref().and_then(|keeper| keeper.apply(action)) else { return false };
        measure::action(owners, action, if done && action.epoch == self.epoch { "applied" } else { "failed" });
        true
    }

    /// Tells the keeper what the plan makes of it all.
    pub(crate) fn tell_plan(&mut self, snapshot: &Snapshot, least_worth_first: Vec<Revision>) {
        let is_in_memory = |name: &ModelName| {
            let view = snapshot.models.get(name).and_then(|view| view.weights.as_ref());
            view.is_none_or(|weights| weights.tier == WeightsTier::Memory)
        };
        let mut instances = self.fleet.instances().values();
        let reads = instances.any(|one| one.state == InstanceState::Starting && !is_in_memory(&one.model));
        if let Some(keeper) = self.keeper.as_mut() {
            keeper.planned(least_worth_first, reads);
        }
    }
}

/// Of the models whose weights instances share.
pub(crate) fn revisions(models: &Models) -> BTreeSet<Revision> {
    let stored = models.values().filter(|record| record.head.is_some());
    stored.map(|record| record.revision.clone()).collect()
}

/// Where the weights of a configuration are.
pub(crate) fn places(config: &DaemonConfig) -> Places {
    Places {
        store: crate::model_store::store_root(&config.state_dir),
        segments: config.segments.clone(),
        layout: config.kernel_layout.clone(),
        idle_bytes: config.idle_weights_bytes,
    }
}
