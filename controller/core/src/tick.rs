//! The controller: one snapshot in, effects out. The same function runs live and in the simulator.

use crate::action::{Action, ActionKind, Decision, Effects, Reason, Seen};
use crate::explain;
use crate::fleet::Fleet;
use crate::need::{Need, needs};
use crate::plan::{Plan, solve};
use crate::snapshot::{ModelName, Snapshot};
use crate::state::{ModelState, State};
use crate::tiers::{Move, TierPlan};
use crate::{NS_PER_MS, NS_PER_S, Nanos, diff, learn, outlook, tiers};
use std::collections::BTreeMap;

/// The next tick while something is held, starting or draining, ns.
const SOON_NS: Nanos = 100 * NS_PER_MS;
/// The next tick while requests are served, ns: their queue may grow.
const SERVING_NS: Nanos = 250 * NS_PER_MS;
/// The next tick while nothing moves, ns.
const LATER_NS: Nanos = NS_PER_S;

/// Decides what to do about a snapshot, and remembers what it asked for. Pure: equal state and snapshot give
/// equal effects. Calling it again with the same snapshot asks for nothing more. A snapshot older than the
/// last one (same epoch) is not used. Actions are not assumed to have been applied: what does not show in
/// later snapshots within `Policy::pending_expiry_ms` is taken as failed and retried with back-off.
pub fn tick(state: &mut State, snapshot: &Snapshot) -> Effects {
    if !state.advance(snapshot) {
        return Effects { next_tick_ns: state.last_now_ns.saturating_add(SOON_NS), ..Effects::default() };
    }
    learn::absorb(state, snapshot);
    let fleet = Fleet::of(state, snapshot);
    let needs = needs(state, snapshot, &fleet);
    let plan = solve(state, snapshot, &fleet, &needs);
    let tiers = tiers::plan(state, snapshot, &fleet, &needs, &plan);
    let mut by_model = diff::actions(state, snapshot, &plan);
    let mut decisions = Vec::new();
    for (name, need) in &needs {
        let actions = by_model.remove(name).unwrap_or_default();
        decisions.extend(decide(state, snapshot, &plan, name, need, actions));
    }
    for (name, actions) in by_model {
        decisions.push(decide_unregistered(snapshot, &plan, name, actions));
    }
    decisions.extend(decide_moves(state, snapshot, &needs, &tiers));
    let actions: Vec<Action> = in_order(&decisions);
    let next_tick_ns = next_tick_ns(state, snapshot, &fleet, &needs, !actions.is_empty());
    Effects { actions, next_tick_ns, decisions, least_worth_first: tiers.least_worth_first }
}

/// What makes room before what takes it, and each kind in the order of the models.
fn in_order(decisions: &[Decision]) -> Vec<Action> {
    let mut actions: Vec<Action> = decisions.iter().flat_map(|decision| decision.actions.iter().cloned()).collect();
    actions.sort_by_key(|action| match action.kind {
        ActionKind::Drain { .. } | ActionKind::Forget { .. } => 0,
        ActionKind::Start { .. } => 1,
        ActionKind::Prefetch { .. } => 2,
    });
    actions
}

/// The decisions about weights that go to another tier.
fn decide_moves(
    state: &mut State,
    snapshot: &Snapshot,
    needs: &BTreeMap<ModelName, Need>,
    tiers: &TierPlan,
) -> Vec<Decision> {
    let actions = state.tiers.actions(snapshot, tiers);
    let pairs = tiers.moves.iter().zip(actions);
    let decide = |(one, action): (&Move, Action)| {
        let (need, model) = (needs.get(&one.model)?, state.models.get(&one.model)?);
        let have = need.seen.ready + need.seen.starting;
        let want = model.told.map_or(have, |(want, _)| want);
        Some(Decision {
            at_ns: snapshot.now_ns,
            epoch: snapshot.epoch,
            model: one.model.clone(),
            seen: need.seen.clone(),
            forecast: outlook::view(need, model, &state.policy, want),
            capacity: need.capacity.clone(),
            have,
            want,
            reason: one.reason,
            why: one.why.clone(),
            actions: vec![action],
        })
    };
    pairs.filter_map(decide).collect()
}

/// The decision about one registered model; none when nothing changes and nothing new is to be said.
fn decide(
    state: &mut State,
    snapshot: &Snapshot,
    plan: &Plan,
    name: &ModelName,
    need: &Need,
    actions: Vec<Action>,
) -> Option<Decision> {
    let model = state.models.get_mut(name)?;
    let have = need.seen.ready + need.seen.starting;
    let drained = plan.drains.iter().filter(|drain| drain.model == *name).count() as u32;
    let reason = reason_of(plan, name, model.failure_untold, !actions.is_empty());
    let want = match reason {
        Reason::NoRoom | Reason::StartFailed => need.need.max(have.saturating_sub(drained)),
        _ => (have + plan.starts.iter().filter(|start| start.model == *name).count() as u32).saturating_sub(drained),
    };
    let said_before = model.told == Some((want, reason));
    let told = actions.is_empty() && (reason == Reason::Steady || said_before);
    model.told = Some((want, reason));
    if told && !model.failure_untold {
        forget_lost(model, plan, name, need);
        return None;
    }
    let why = explain::sentence(name, need, model, plan, reason, snapshot.now_ns);
    let forecast = outlook::view(need, model, &state.policy, want);
    model.failure_untold = false;
    forget_lost(model, plan, name, need);
    Some(Decision {
        at_ns: snapshot.now_ns,
        epoch: snapshot.epoch,
        model: name.clone(),
        seen: need.seen.clone(),
        forecast,
        capacity: need.capacity.clone(),
        have,
        want,
        reason,
        why,
        actions,
    })
}

/// A death is remembered until it is made good or until nobody misses it.
fn forget_lost(model: &mut ModelState, plan: &Plan, name: &str, need: &Need) {
    let replaced = plan.starts.iter().any(|start| start.model == name);
    if replaced || need.need <= need.seen.ready + need.seen.starting {
        model.lost = 0;
    }
}

/// The reason that says most: what is started for, else why something is drained, else what stands in the way.
fn reason_of(plan: &Plan, name: &str, failure_untold: bool, acts: bool) -> Reason {
    let started = plan.starts.iter().find(|start| start.model == name).map(|start| start.reason);
    let drained = plan.drains.iter().find(|drain| drain.model == name).map(|drain| drain.reason);
    let blocked = plan.no_room.contains_key(name).then_some(Reason::NoRoom);
    let failed = failure_untold.then_some(Reason::StartFailed);
    let again = acts.then_some(Reason::Idle);
    started.or(drained).or(failed).or(blocked).or(again).unwrap_or(Reason::Steady)
}

fn decide_unregistered(snapshot: &Snapshot, plan: &Plan, name: ModelName, actions: Vec<Action>) -> Decision {
    let running = snapshot.instances.values().filter(|view| view.model == name).count() as u32;
    Decision {
        at_ns: snapshot.now_ns,
        epoch: snapshot.epoch,
        seen: Seen { ready: running, ..Seen::default() },
        forecast: Default::default(),
        capacity: Default::default(),
        have: running,
        want: 0,
        reason: Reason::Unregistered,
        why: explain::unregistered(&name, plan),
        model: name,
        actions,
    }
}

/// Soon while anything is in motion, else within a second: the end of a keep-alive waits as long.
fn next_tick_ns(
    state: &State,
    snapshot: &Snapshot,
    fleet: &Fleet,
    needs: &BTreeMap<ModelName, Need>,
    acted: bool,
) -> Nanos {
    let held = needs.values().any(|need| need.seen.held > 0 || need.seen.unidentified > 0.0);
    let starting = fleet.groups.values().any(|group| !group.starting.is_empty());
    let asked = !state.pending.is_empty() || state.tiers.is_waiting();
    let moving = acted || held || starting || !fleet.leaving.is_empty() || asked;
    let now_ns = snapshot.now_ns;
    let serving = needs.values().any(|need| need.load > 0);
    let wait_ns = match (moving, serving) {
        (true, _) => SOON_NS,
        (false, true) => SERVING_NS,
        (false, false) => LATER_NS,
    };
    now_ns.saturating_add(wait_ns)
}
