//! Snapshots for the tests: a small node that a test changes step by step.

use controller_core::action::{Action, ActionKind, Effects};
use controller_core::snapshot::{
    Demand, DeviceSlice, InstanceState, InstanceView, ModelView, NodeView, NodeWeights, Placement, Shard, Snapshot,
    WeightsTier,
};
use std::collections::BTreeMap;

/// One second.
pub const S: u64 = 1_000_000_000;
/// One MiB.
pub const MIB: u64 = 1 << 20;

/// A node with two cores, 1 GiB and one core per instance, at 100 s.
pub fn node() -> Snapshot {
    Snapshot {
        now_ns: 100 * S,
        epoch: 1,
        node: NodeView {
            observed_at_ns: 100 * S,
            cores: vec![0, 1],
            cores_per_instance: 1,
            memory_budget_bytes: 1024 * MIB,
            weights: NodeWeights::default(),
        },
        models: BTreeMap::new(),
        instances: BTreeMap::new(),
    }
}

/// Registers a model of 256 MiB with two measured cold starts.
pub fn register(snapshot: &mut Snapshot, name: &str) {
    let view = ModelView {
        revision: "r1".to_owned(),
        instance_bytes: 256 * MIB,
        demand: Demand { observed_at_ns: snapshot.now_ns, ..Demand::default() },
        cold_start_ms: vec![800.0, 1200.0],
        weights: None,
    };
    snapshot.models.insert(name.to_owned(), view);
}

/// Moves time, and the moment at which demand was observed.
pub fn pass(snapshot: &mut Snapshot, seconds: f64) {
    snapshot.now_ns += (seconds * 1e9) as u64;
    for model in snapshot.models.values_mut() {
        model.demand.observed_at_ns = snapshot.now_ns;
    }
}

/// The model's demand, to be changed.
pub fn demand<'a>(snapshot: &'a mut Snapshot, name: &str) -> &'a mut Demand {
    &mut snapshot.models.get_mut(name).expect("registered").demand
}

/// An instance on one core, ready since ten seconds and used just now.
pub fn ready(snapshot: &mut Snapshot, id: &str, model: &str, core: u32) {
    let placement = Placement { shards: vec![Shard { device: DeviceSlice::Cores(vec![core]), bytes: 256 * MIB }] };
    let view = InstanceView {
        observed_at_ns: snapshot.now_ns,
        model: model.to_owned(),
        revision: "r1".to_owned(),
        state: InstanceState::Ready,
        placement,
        spawned_at_ns: snapshot.now_ns - 11 * S,
        ready_at_ns: Some(snapshot.now_ns - 10 * S),
        running: 0,
        waiting: 0,
        prefill_tokens_total: 0,
        decode_tokens_total: 0,
        requests_total: 0,
        busy_ns_total: 0,
        steps_total: 0,
        last_used_at_ns: snapshot.now_ns,
        resident_bytes: 200 * MIB,
        disturbed: false,
    };
    snapshot.instances.insert(id.to_owned(), view);
}

/// Carries out actions as the node would: starts show as starting, drains as draining.
pub fn apply(snapshot: &mut Snapshot, actions: &[Action]) {
    for action in actions {
        match &action.kind {
            ActionKind::Start { instance, model, revision, placement } => {
                ready(snapshot, instance, model, 0);
                if let Some(view) = snapshot.instances.get_mut(instance) {
                    view.state = InstanceState::Starting;
                    view.ready_at_ns = None;
                    view.spawned_at_ns = snapshot.now_ns;
                    view.revision = revision.clone();
                    view.resident_bytes = 0;
                    view.placement = placement.clone();
                }
            }
            ActionKind::Prefetch { revision, .. } => snapshot.node.weights.bringing = Some(revision.clone()),
            ActionKind::Forget { model, .. } => {
                let weights = snapshot.models.get_mut(model).and_then(|view| view.weights.as_mut());
                let Some(weights) = weights.filter(|weights| !weights.mapped) else { continue };
                let freed = weights.freeable_bytes;
                (weights.tier, weights.freeable_bytes) = (WeightsTier::Disk, 0);
                weights.memory_bytes = weights.memory_bytes.saturating_sub(freed);
                let idle_bytes = &mut snapshot.node.weights.idle_bytes;
                *idle_bytes = idle_bytes.saturating_sub(freed);
            }
            ActionKind::Drain { instance, .. } => {
                if let Some(view) = snapshot.instances.get_mut(instance) {
                    view.state = InstanceState::Draining;
                }
            }
        }
    }
}

/// Decisions as lines: model, from and to, reason, words.
pub fn told(effects: &Effects) -> String {
    let lines = effects.decisions.iter().map(|decision| {
        format!("{} {}->{} {:?}: {}", decision.model, decision.have, decision.want, decision.reason, decision.why)
    });
    lines.collect::<Vec<_>>().join("\n")
}
