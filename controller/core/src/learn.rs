//! Takes a snapshot into the state: what appeared, what died, what failed, what was served, what arrived.

use crate::burst::Bursts;
use crate::capacity::{CapacityEstimator, ServiceMark};
use crate::policy::Policy;
use crate::silence::Silences;
use crate::snapshot::{InstanceState, InstanceView, Snapshot};
use crate::state::{Known, ModelState, State};
use crate::{NS_PER_MS, Nanos, expect};

/// An instance that dies sooner than this after it became ready counts as a failed start, so that a model
/// that crashes at once is not started over and over, ns.
const MIN_LIFE_NS: Nanos = 1_000 * NS_PER_MS;

/// Updates the memory of starts, deaths, capacity and arrivals.
pub(crate) fn absorb(state: &mut State, snapshot: &Snapshot) {
    // From here on the two maps have the same models, and are walked side by side.
    if !state.models.keys().eq(snapshot.models.keys()) {
        state.models.retain(|name, _| snapshot.models.contains_key(name));
        for name in snapshot.models.keys() {
            state.models.entry(name.clone()).or_default();
        }
    }
    notice_gone(state, snapshot);
    expire_pending(state, snapshot);
    expire_drains(state, snapshot);
    for (id, view) in &snapshot.instances {
        learn_instance(state, id, view);
    }
    expect::learn(state, snapshot);
    lend(state);
}

/// What the fleet is like is what is believed of a model that has not shown what it is like itself.
fn lend(state: &mut State) {
    let shape = CapacityEstimator::of_fleet(state.models.values().map(|model| &model.capacity));
    let left = Bursts::of_fleet(state.models.values().map(|model| &model.expected.bursts));
    let silences = state.models.values().map(|model| &model.expected.silences);
    let habit = Silences::of_fleet(silences, state.last_now_ns);
    for model in state.models.values_mut() {
        model.capacity.lend(shape);
        model.expected.bursts.lend(left);
        model.expected.silences.lend(habit);
    }
}

/// Instances of the last snapshot that are not in this one, and were not told to go, died.
fn notice_gone(state: &mut State, snapshot: &Snapshot) {
    let gone: Vec<_> = state.known.keys().filter(|id| !snapshot.instances.contains_key(*id)).cloned().collect();
    for id in gone {
        let told_to_go = state.drains.remove(&id).is_some();
        let Some(known) = state.known.remove(&id) else { continue };
        if told_to_go || known.state == InstanceState::Draining {
            continue;
        }
        let Some(model) = state.models.get_mut(&known.model) else { continue };
        let lived_ns = known.ready_at_ns.map(|ready| snapshot.now_ns.saturating_sub(ready));
        if lived_ns.is_none_or(|lived| lived < MIN_LIFE_NS) {
            fail(model, &state.policy, snapshot.now_ns);
        } else {
            model.lost = model.lost.saturating_add(1);
        }
    }
}

/// A started instance that shows is no longer pending; one that never showed failed.
fn expire_pending(state: &mut State, snapshot: &Snapshot) {
    let expiry_ns = state.policy.pending_expiry_ms.saturating_mul(NS_PER_MS);
    state.pending.retain(|id, _| !snapshot.instances.contains_key(id));
    let expired: Vec<_> = state
        .pending
        .iter()
        .filter(|(_, pending)| snapshot.now_ns.saturating_sub(pending.at_ns) >= expiry_ns)
        .map(|(id, _)| id.clone())
        .collect();
    for id in expired {
        let Some(pending) = state.pending.remove(&id) else { continue };
        if let Some(model) = state.models.get_mut(&pending.model) {
            fail(model, &state.policy, snapshot.now_ns);
        }
    }
}

/// A drain that shows, or whose instance is gone, is done with. One that never showed stays in memory for
/// its count of tries, and is asked for again by the diff.
fn expire_drains(state: &mut State, snapshot: &Snapshot) {
    state
        .drains
        .retain(|id, _| snapshot.instances.get(id).is_some_and(|instance| instance.state != InstanceState::Draining));
}

fn fail(model: &mut ModelState, policy: &Policy, now_ns: Nanos) {
    model.failures = model.failures.saturating_add(1);
    model.failure_untold = true;
    model.retry_at_ns = now_ns.saturating_add(policy.backoff_ns(model.failures));
}

fn learn_instance(state: &mut State, id: &str, view: &InstanceView) {
    let mark = ServiceMark::of(view);
    let before = state.known.get(id);
    if let Some(model) = state.models.get_mut(&view.model) {
        if let (Some(before), Some(after)) = (before.and_then(|known| known.mark.as_ref()), mark.as_ref()) {
            model.capacity.observe(before, after);
        }
        let became_ready =
            view.state == InstanceState::Ready && before.is_none_or(|known| known.state == InstanceState::Starting);
        if became_ready {
            model.failures = 0;
            model.failure_untold = false;
            model.retry_at_ns = 0;
        }
    }
    match state.known.get_mut(id) {
        Some(known) if known.model == view.model => {
            (known.state, known.ready_at_ns, known.mark) = (view.state, view.ready_at_ns, mark);
        }
        _ => {
            let known = Known { model: view.model.clone(), state: view.state, ready_at_ns: view.ready_at_ns, mark };
            state.known.insert(id.to_owned(), known);
        }
    }
}
