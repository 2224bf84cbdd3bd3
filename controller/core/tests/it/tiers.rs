//! Weights between host memory and disk: what is read ahead, what leaves, and that neither happens twice.

use crate::node::{MIB, S, apply, demand, node, pass, ready, register, told};
use controller_core::action::{Action, ActionKind, Effects};
use controller_core::policy::TierRule;
use controller_core::snapshot::{InstanceState, ModelView, Snapshot, WeightsTier, WeightsView};
use controller_core::{Policy, State, tick};
use insta::assert_snapshot;
use proptest::collection::vec;
use proptest::prelude::*;

/// A model of 100 MiB on disk, which a start reads in 0.2 s.
fn stored(snapshot: &mut Snapshot, name: &str, mib: u64) {
    register(snapshot, name);
    let model = snapshot.models.get_mut(name).expect("registered");
    model.revision = format!("r-{name}");
    model.weights = Some(WeightsView { bytes: mib * MIB, ..WeightsView::default() });
}

fn weights<'a>(snapshot: &'a mut Snapshot, name: &str) -> &'a mut WeightsView {
    snapshot.models.get_mut(name).and_then(|model| model.weights.as_mut()).expect("stored")
}

/// Its weights lie in memory, and nobody uses them.
fn remembered(snapshot: &mut Snapshot, name: &str) {
    let weights = weights(snapshot, name);
    let more = weights.bytes - weights.freeable_bytes;
    (weights.memory_bytes, weights.freeable_bytes, weights.tier) = (weights.bytes, weights.bytes, WeightsTier::Memory);
    snapshot.node.weights.idle_bytes += more;
}

/// What is being read ahead has come.
fn arrive(snapshot: &mut Snapshot) {
    let Some(revision) = snapshot.node.weights.bringing.take() else { return };
    let name = revision.trim_start_matches("r-").to_owned();
    remembered(snapshot, &name);
}

/// Seconds in which each model is called every so many of them.
fn calls(state: &mut State, snapshot: &mut Snapshot, seconds: u64, every_s: &[(&str, u64)]) -> Vec<Effects> {
    let second = |_| {
        pass(snapshot, 1.0);
        for (name, every_s) in every_s {
            demand(snapshot, name).arrivals_total += u64::from((snapshot.now_ns / S).is_multiple_of(*every_s));
        }
        let effects = tick(state, snapshot);
        apply(snapshot, &effects.actions);
        arrive(snapshot);
        effects
    };
    (0..seconds).map(second).collect()
}

/// Room for so many MiB of idle weights, at 500 MB/s.
fn world(idle_mib: u64) -> Snapshot {
    let mut snapshot = node();
    snapshot.node.weights.idle_bytes_max = idle_mib * MIB;
    snapshot.node.weights.disk_bytes_per_s = 500e6;
    snapshot
}

/// The same where no instance fits, so that none is started ahead of a request.
fn world_of_weights(idle_mib: u64) -> Snapshot {
    let mut snapshot = world(idle_mib);
    snapshot.node.cores_per_instance = 64;
    snapshot
}

fn moves(effects: &[Effects]) -> Vec<&Action> {
    effects.iter().flat_map(|effects| &effects.actions).collect()
}

fn in_memory(snapshot: &Snapshot) -> Vec<&str> {
    let is_there =
        |model: &ModelView| model.weights.as_ref().is_some_and(|weights| weights.tier == WeightsTier::Memory);
    snapshot.models.iter().filter(|(_, model)| is_there(model)).map(|(name, _)| name.as_str()).collect()
}

#[test]
fn what_is_called_often_is_read_ahead_and_what_is_not_stays_on_disk() {
    let (mut state, mut snapshot) = (State::default(), world(600));
    ["often", "seldom"].iter().for_each(|name| stored(&mut snapshot, name, 100));
    let effects = calls(&mut state, &mut snapshot, 120, &[("often", 20), ("seldom", 1000)]);
    assert_eq!(in_memory(&snapshot), ["often"]);
    let said = effects.iter().find(|effects| !effects.actions.is_empty()).expect("one move");
    assert_snapshot!(told(said), @"often 0->0 Prefetched: Reading 100 MiB into memory: a start within 60 s is expected with 76 %, and takes 210 ms more from disk.");
    assert_eq!(moves(&effects).len(), 1, "{:?}", moves(&effects));
}

#[test]
fn weights_worth_more_take_the_place_of_others() {
    let (mut state, mut snapshot) = (State::default(), world_of_weights(250));
    ["a", "b", "c"].iter().for_each(|name| stored(&mut snapshot, name, 100));
    ["a", "b"].iter().for_each(|name| remembered(&mut snapshot, name));
    let effects = calls(&mut state, &mut snapshot, 300, &[("a", 20), ("b", 900), ("c", 20)]);
    assert_eq!(in_memory(&snapshot), ["a", "c"]);
    let said = effects.iter().find(|effects| !effects.actions.is_empty()).expect("moves");
    assert_snapshot!(told(said), @r"
    b 0->0 Forgotten: Leaving memory, 100 MiB: the weights of c are worth more there. A start within 60 s is expected with 0 %, and takes 210 ms more from disk.
    c 0->0 Prefetched: Reading 100 MiB into memory in the place of b: a start within 60 s is expected with 76 %, and takes 210 ms more from disk.
    ");
    assert_eq!(moves(&effects).len(), 2, "{:?}", moves(&effects));
    assert_eq!(effects.last().expect("many").least_worth_first.len(), 2);
}

#[test]
fn the_disk_is_left_to_starts() {
    let (mut state, mut snapshot) = (State::default(), world(600));
    ["often", "starting"].iter().for_each(|name| stored(&mut snapshot, name, 100));
    for _ in 0..60 {
        pass(&mut snapshot, 1.0);
        demand(&mut snapshot, "often").arrivals_total += 1;
        demand(&mut snapshot, "starting").held = 1;
        let effects = tick(&mut state, &snapshot);
        let reads = |action: &Action| matches!(action.kind, ActionKind::Prefetch { .. });
        assert!(!effects.actions.iter().any(reads), "{:?}", effects.actions);
        apply(&mut snapshot, &effects.actions);
    }
    // From memory it takes nothing of the disk.
    remembered(&mut snapshot, "starting");
    pass(&mut snapshot, 1.0);
    let effects = tick(&mut state, &snapshot);
    assert!(
        matches!(&effects.actions[..], [Action { kind: ActionKind::Prefetch { model, .. }, .. }] if model == "often")
    );
}

#[test]
fn instances_of_a_model_share_its_weights_and_take_the_room_of_idle_ones() {
    let (mut state, mut snapshot) = (State::default(), world(1000));
    // 1 GiB: two instances of 256 MiB and their weights of 300 leave 212 of the 300 that lie there.
    ["a", "b", "c"].iter().for_each(|name| stored(&mut snapshot, name, if *name == "a" { 300 } else { 150 }));
    ["b", "c"].iter().for_each(|name| remembered(&mut snapshot, name));
    assert_eq!(tick(&mut state, &snapshot).actions, []);
    for (core, id) in ["a-0-1", "a-0-2"].into_iter().enumerate() {
        ready(&mut snapshot, id, "a", core as u32);
        let view = snapshot.instances.get_mut(id).expect("there");
        (view.revision, view.resident_bytes) = ("r-a".into(), 400 * MIB);
    }
    pass(&mut snapshot, 1.0);
    let effects = tick(&mut state, &snapshot);
    let forgotten = |action: &Action| matches!(action.kind, ActionKind::Forget { .. });
    assert_eq!(effects.actions.iter().filter(|action| forgotten(action)).count(), 1, "{:?}", effects.actions);
    assert!(!effects.actions.iter().any(|action| matches!(action.kind, ActionKind::Start { .. })));
}

#[test]
fn a_move_that_does_not_happen_is_asked_for_again_later_each_time() {
    let (mut state, mut snapshot) = (State::default(), world(600));
    stored(&mut snapshot, "often", 100);
    let mut asked_s = Vec::new();
    for _ in 0..200 {
        pass(&mut snapshot, 1.0);
        demand(&mut snapshot, "often").arrivals_total += 1;
        let effects = tick(&mut state, &snapshot);
        asked_s.extend(effects.actions.iter().map(|_| snapshot.now_ns / S));
    }
    let pauses: Vec<u64> = asked_s.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.len() > 3 && pauses.windows(2).all(|pair| pair[1] >= pair[0]), "{asked_s:?}");
    assert!(pauses.last() > pauses.first(), "{pauses:?}");
}

#[test]
fn the_rules_to_compare_with() {
    let rule = |tiers: TierRule| {
        let (mut state, mut snapshot) = (State::new(Policy { tiers, ..Policy::default() }), world_of_weights(250));
        ["a", "b", "c"].iter().for_each(|name| stored(&mut snapshot, name, 100));
        for (name, disk_ms) in [("a", 500.0), ("b", 500.0), ("c", 40.0)] {
            let weights = weights(&mut snapshot, name);
            (weights.memory_start_ms, weights.disk_start_ms) = (vec![20.0; 32], vec![disk_ms; 32]);
        }
        calls(&mut state, &mut snapshot, 400, &[("a", 5), ("b", 7), ("c", 6)]);
        ["a", "b", "c"].iter().for_each(|name| remembered(&mut snapshot, name));
        calls(&mut state, &mut snapshot, 1, &[]);
        in_memory(&snapshot).join(" ")
    };
    assert_eq!(rule(TierRule::Lru), "a c", "used last");
    assert_eq!(rule(TierRule::None), "");
    assert_eq!(rule(TierRule::Planned), "a b", "worth more");
}

/// Of the calls in the last two thirds of `seconds`, the share that found its model's weights in memory, and how many
/// were read ahead. Eight models are called every few seconds, 42 now and then; six fit into memory.
fn found_in_memory(tiers: TierRule, seconds: u64) -> (f64, usize) {
    let (mut state, mut snapshot) = (State::new(Policy { tiers, ..Policy::default() }), world_of_weights(650));
    let names: Vec<String> = (0..50).map(|at| format!("m{at:02}")).collect();
    names.iter().for_each(|name| stored(&mut snapshot, name, 100));
    let mut random = 7u64;
    let mut share = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((random >> 33) + 1) as f64 / (1u64 << 31) as f64
    };
    let period_s = |model: usize| 6.0 + 0.75 * model as f64;
    let mut due_s: Vec<f64> =
        (0..50).map(|at| if at < 8 { period_s(at) * share() } else { -90.0 * share().ln() }).collect();
    let (mut calls, mut found, mut ahead) = (0, 0, 0);
    for step in 0..seconds * 4 {
        let now_s = step as f64 / 4.0;
        pass(&mut snapshot, 0.25);
        arrive(&mut snapshot);
        for (model, name) in names.iter().enumerate() {
            if due_s[model] > now_s {
                continue;
            }
            due_s[model] += if model < 8 { period_s(model) * (0.9 + 0.2 * share()) } else { -90.0 * share().ln() };
            demand(&mut snapshot, name).arrivals_total += 1;
            calls += usize::from(now_s > seconds as f64 / 3.0);
            let is_there = weights(&mut snapshot, name).tier == WeightsTier::Memory;
            found += usize::from(is_there && now_s > seconds as f64 / 3.0);
            remembered(&mut snapshot, name);
        }
        let effects = tick(&mut state, &snapshot);
        ahead += effects.actions.iter().filter(|one| matches!(one.kind, ActionKind::Prefetch { .. })).count();
        apply(&mut snapshot, &effects.actions);
    }
    (found as f64 / calls as f64, ahead)
}

#[test]
fn regular_callers_find_their_weights_among_many_others() {
    let (planned, ahead) = found_in_memory(TierRule::Planned, 180);
    let (lru, _) = found_in_memory(TierRule::Lru, 180);
    assert!(planned > lru + 0.3 && ahead > 0, "planned {planned:.2}, {ahead} read ahead, lru {lru:.2}");
}

fn is_over(snapshot: &Snapshot) -> bool {
    let used: u64 = snapshot.instances.values().map(|view| view.placement.bytes()).sum();
    let mut shared: Vec<(&str, u64)> = Vec::new();
    for view in snapshot.instances.values() {
        let bytes = snapshot.models[&view.model].weights.as_ref().map_or(0, |weights| weights.bytes);
        shared.push((&view.model, bytes));
    }
    shared.sort_unstable();
    shared.dedup();
    let shared: u64 = shared.iter().map(|(_, bytes)| bytes).sum();
    let left = snapshot.node.memory_budget_bytes.saturating_sub(used + shared);
    let bringing = snapshot.node.weights.bringing.as_deref().map(|revision| revision.trim_start_matches("r-"));
    let is_used = |name: &str| snapshot.instances.values().any(|view| view.model == name);
    let coming = bringing.filter(|name| !is_used(name)).and_then(|name| snapshot.models[name].weights.as_ref());
    let coming = coming.map_or(0, |weights| weights.bytes - weights.memory_bytes);
    let idle: u64 = snapshot
        .models
        .iter()
        .filter(|(name, _)| !is_used(name))
        .map(|(_, model)| model.weights.as_ref().map_or(0, |weights| weights.memory_bytes))
        .sum();
    idle + coming > snapshot.node.weights.idle_bytes_max.min(left)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Models of any size are called at any rate, and one of them is started now and then: memory is never promised
    /// twice, what an instance maps is never told to leave, and the same snapshot asks for nothing twice.
    #[test]
    fn memory_is_never_over_its_bounds(
        models in vec((1u64..200, 1u64..90, any::<bool>()), 1..6),
        idle_mib in 0u64..500,
        held in vec((0usize..6, 20u64..150), 0..4),
    ) {
        let (mut state, mut snapshot) = (State::default(), world(idle_mib));
        let names: Vec<String> = (0..models.len()).map(|at| format!("m{at}")).collect();
        for (name, (mib, _, there)) in names.iter().zip(&models) {
            stored(&mut snapshot, name, *mib);
            if *there { remembered(&mut snapshot, name) }
        }
        for second in 0..160u64 {
            pass(&mut snapshot, 1.0);
            snapshot.instances.retain(|_, view| view.state != InstanceState::Draining);
            for (name, (_, every_s, _)) in names.iter().zip(&models) {
                demand(&mut snapshot, name).arrivals_total += u64::from(second % every_s == 0);
                demand(&mut snapshot, name).held = 0;
            }
            for (at, when_s) in &held {
                if second == *when_s { demand(&mut snapshot, &names[at % names.len()]).held = 1 }
            }
            let effects = tick(&mut state, &snapshot);
            for action in &effects.actions {
                let ActionKind::Forget { model, .. } = &action.kind else { continue };
                prop_assert!(!snapshot.instances.values().any(|view| view.model == *model), "{} is mapped", model);
            }
            prop_assert_eq!(&tick(&mut state, &snapshot).actions, &vec![], "asked again");
            apply(&mut snapshot, &effects.actions);
            prop_assert!(!is_over(&snapshot), "at {} s: {:?}", second, snapshot);
            if second % 3 == 0 { arrive(&mut snapshot) }
        }
    }

    /// With time standing still every forecast stays as it is: the moves come to an end.
    #[test]
    fn nothing_moves_to_and_fro_under_a_constant_forecast(
        models in vec((1u64..200, 1u64..90, any::<bool>()), 1..8), idle_mib in 0u64..600,
    ) {
        let (mut state, mut snapshot) = (State::default(), world(idle_mib));
        let names: Vec<String> = (0..models.len()).map(|at| format!("m{at}")).collect();
        names.iter().zip(&models).for_each(|(name, (mib, ..))| stored(&mut snapshot, name, *mib));
        // Nothing may lie in memory while the calls are learned from.
        let idle_bytes_max = std::mem::take(&mut snapshot.node.weights.idle_bytes_max);
        let every: Vec<(&str, u64)> = names.iter().zip(&models).map(|(name, (_, every_s, _))| (name.as_str(), *every_s)).collect();
        calls(&mut state, &mut snapshot, 200, &every);
        snapshot.node.weights.idle_bytes_max = idle_bytes_max;
        names.iter().zip(&models).filter(|(_, model)| model.2).for_each(|(name, _)| remembered(&mut snapshot, name));
        let mut last_move = 0;
        for step in 1..=60 {
            snapshot.now_ns += 1;
            let effects = tick(&mut state, &snapshot);
            if !effects.actions.is_empty() { last_move = step }
            apply(&mut snapshot, &effects.actions);
            arrive(&mut snapshot);
        }
        prop_assert!(last_move <= 3 * models.len() + 1, "still moving at step {}", last_move);
    }
}
