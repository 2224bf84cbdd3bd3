//! Whatever a snapshot says: no panic, no core or byte given twice, nothing asked for twice, and the same
//! effects from the same input.

use crate::node::{S, apply};
use controller_core::action::{ActionKind, Effects};
use controller_core::snapshot::{
    Demand, DeviceSlice, Fidelity, InstanceState, InstanceView, ModelView, NodeView, NodeWeights, Placement, Shard,
    Snapshot, Turn, WeightsTier, WeightsView,
};
use controller_core::{State, tick};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use std::collections::BTreeSet;

const NAMES: [&str; 4] = ["a", "b/c", "d", "ünï"];

/// Any number, with the ones that break arithmetic among them.
fn wild() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => 0.0..20.0f64,
        1 => Just(f64::NAN),
        1 => Just(f64::INFINITY),
        1 => Just(-1.0),
        1 => Just(1e300),
    ]
}

fn total() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0u64..1000, 1 => Just(u64::MAX), 1 => Just(0)]
}

fn count() -> impl Strategy<Value = u32> {
    prop_oneof![3 => Just(0u32), 6 => 0u32..12, 1 => Just(u32::MAX)]
}

fn model() -> impl Strategy<Value = ModelView> {
    let demand = (total(), wild(), count(), count(), total(), total(), 0u64..200).prop_map(
        |(arrivals_total, unidentified, held, in_flight, prompt, output, at_s)| Demand {
            observed_at_ns: at_s * S,
            fidelity: Fidelity::Gateway,
            arrivals_total,
            unidentified,
            unnamed_total: unidentified,
            held,
            in_flight,
            prompt_tokens_total: prompt,
            output_tokens_total: output,
            connections_total: unidentified,
            turns_total: arrivals_total,
            turns: (0..held.min(3)).map(|n| Turn { session: u64::from(n), at_ns: at_s * S }).collect(),
        },
    );
    (0..2u8, bytes(), demand, vec(wild(), 0..4), option::of(weights())).prop_map(
        |(revision, instance_bytes, demand, cold_start_ms, weights)| ModelView {
            revision: format!("r{revision}"),
            instance_bytes,
            demand,
            cold_start_ms,
            weights,
        },
    )
}

fn bytes() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0u64..600, 1 => Just(u64::MAX >> 20)].prop_map(|mib| mib << 20)
}

fn weights() -> impl Strategy<Value = WeightsView> {
    let tier = prop_oneof![Just(WeightsTier::Memory), Just(WeightsTier::Disk), Just(WeightsTier::Absent)];
    let samples = (vec(wild(), 0..5), vec(wild(), 0..5));
    (bytes(), bytes(), bytes(), tier, any::<bool>(), samples).prop_map(
        |(bytes, memory_bytes, freeable_bytes, tier, mapped, (memory_start_ms, disk_start_ms))| WeightsView {
            bytes,
            tier,
            memory_bytes,
            freeable_bytes,
            mapped,
            memory_start_ms,
            disk_start_ms,
        },
    )
}

fn node_weights() -> impl Strategy<Value = NodeWeights> {
    let bringing = option::of((0..2u8).prop_map(|revision| format!("r{revision}")));
    (bytes(), bytes(), wild(), bringing).prop_map(|(idle_bytes_max, idle_bytes, disk_bytes_per_s, bringing)| {
        NodeWeights { idle_bytes_max, idle_bytes, disk_bytes_per_s, bringing }
    })
}

fn instance() -> impl Strategy<Value = InstanceView> {
    let state = prop_oneof![Just(InstanceState::Starting), Just(InstanceState::Ready), Just(InstanceState::Draining)];
    let placement = (vec(0u32..6, 0..3), prop_oneof![4 => 0u64..600, 1 => Just(u64::MAX >> 20)]);
    let totals = (total(), total(), total(), total());
    (0..NAMES.len(), 0..2u8, state, placement, count(), count(), totals, 0u64..200).prop_map(
        |(name, revision, state, (cores, mib), running, waiting, totals, at_s)| InstanceView {
            observed_at_ns: at_s * S,
            model: NAMES[name].to_owned(),
            revision: format!("r{revision}"),
            state,
            placement: Placement { shards: vec![Shard { device: DeviceSlice::Cores(cores), bytes: mib << 20 }] },
            spawned_at_ns: at_s * S,
            ready_at_ns: (state != InstanceState::Starting).then_some(at_s * S),
            running,
            waiting,
            prefill_tokens_total: totals.0,
            decode_tokens_total: totals.1,
            requests_total: totals.2,
            busy_ns_total: totals.3,
            steps_total: totals.2 / 2,
            last_used_at_ns: at_s * S,
            resident_bytes: mib << 19,
            disturbed: at_s % 7 == 0,
        },
    )
}

fn snapshot() -> impl Strategy<Value = Snapshot> {
    let node = (vec(0u32..6, 0..8), 0u32..4, prop_oneof![6 => 0u64..4096, 1 => Just(u64::MAX >> 20)], node_weights());
    let models = btree_map((0..NAMES.len()).prop_map(|at| NAMES[at].to_owned()), model(), 0..4);
    let instances = btree_map("[abd]-[12]-[1-4]", instance(), 0..5);
    (prop_oneof![8 => 0u64..300, 1 => Just(18_000_000_000u64)], 1u64..3, node, models, instances).prop_map(
        |(now_s, epoch, (cores, cores_per_instance, mib, weights), models, instances)| Snapshot {
            now_ns: now_s * S,
            epoch,
            node: NodeView {
                observed_at_ns: now_s * S,
                cores,
                cores_per_instance,
                memory_budget_bytes: mib << 20,
                weights,
            },
            models,
            instances,
        },
    )
}

/// What is started goes on free cores of the node, distinct, and within what is left of the budget, with
/// everything that is running, starting or draining counted, and what they share counted once.
fn within_room(snapshot: &Snapshot, effects: &Effects) -> Result<(), TestCaseError> {
    let mut taken: BTreeSet<u32> = snapshot.instances.values().flat_map(|view| view.placement.cores()).collect();
    let lot = |model: &str, revision: &str| {
        let view = snapshot.models.get(model).filter(|view| view.revision == revision)?;
        view.weights.as_ref().map(|weights| (view.revision.clone(), u128::from(weights.bytes)))
    };
    let own = |view: &InstanceView| {
        let shared = lot(&view.model, &view.revision).map_or(0, |(_, bytes)| bytes);
        u128::from(view.placement.bytes()).max(u128::from(view.resident_bytes).saturating_sub(shared))
    };
    let mut bytes: u128 = snapshot.instances.values().map(own).sum();
    let running = snapshot.instances.values().filter_map(|view| lot(&view.model, &view.revision));
    let mut lots: BTreeSet<(String, u128)> = running.collect();
    for action in &effects.actions {
        let ActionKind::Start { instance, model, revision, placement } = &action.kind else { continue };
        prop_assert!(snapshot.models.contains_key(model));
        prop_assert!(!snapshot.instances.contains_key(instance));
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        prop_assert!(instance.len() < 70 && instance.chars().all(plain), "{}", instance);
        prop_assert_eq!(placement.cores().len(), snapshot.node.cores_per_instance.max(1) as usize);
        for core in placement.cores() {
            prop_assert!(snapshot.node.cores.contains(&core) && taken.insert(core), "core {}", core);
        }
        bytes += u128::from(placement.bytes());
        lots.extend(lot(model, revision));
        prop_assert!(
            bytes + lots.iter().map(|(_, bytes)| bytes).sum::<u128>() <= u128::from(snapshot.node.memory_budget_bytes)
        );
    }
    Ok(())
}

fn finite(effects: &Effects) -> Result<(), TestCaseError> {
    for decision in &effects.decisions {
        let (forecast, capacity) = (&decision.forecast, &decision.capacity);
        let figures = [
            decision.seen.arrival_rate_per_s,
            decision.seen.unidentified,
            decision.seen.idle_s,
            forecast.horizon_s,
            forecast.requests_per_s_p50,
            forecast.requests_per_s_p90,
            capacity.requests_per_s_per_instance,
            capacity.concurrency_per_instance,
            capacity.cold_start_ms_p50,
            capacity.cold_start_ms_p90,
        ];
        prop_assert!(figures.iter().all(|figure| figure.is_finite() && *figure >= 0.0), "{:?}", decision);
        prop_assert!(!decision.why.is_empty() && !decision.why.contains("NaN") && !decision.why.contains("inf "));
    }
    let in_decisions: usize = effects.decisions.iter().map(|decision| decision.actions.len()).sum();
    prop_assert_eq!(in_decisions, effects.actions.len());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Unrelated snapshots, one after another: time, counters and instances jump in every direction.
    #[test]
    fn arbitrary_snapshots(snapshots in vec(snapshot(), 1..6)) {
        let mut state = State::default();
        for snapshot in &snapshots {
            let mut twin = state.clone();
            let effects = tick(&mut state, snapshot);
            prop_assert_eq!(&tick(&mut twin, snapshot), &effects);
            prop_assert_eq!(&twin, &state);
            within_room(snapshot, &effects)?;
            finite(&effects)?;
            let next = tick(&mut state, snapshot);
            prop_assert_eq!(&next.actions, &vec![], "asked again");
            let keys: BTreeSet<&String> = effects.actions.iter().map(|action| &action.key).collect();
            prop_assert_eq!(keys.len(), effects.actions.len());
        }
    }

    /// One world in which the actions are carried out: the second tick asks for nothing more, and a state
    /// that was saved and read back goes on alike.
    #[test]
    fn applied_worlds(mut snapshot in snapshot()) {
        let mut state = State::default();
        let effects = tick(&mut state, &snapshot);
        apply(&mut snapshot, &effects.actions);
        let again = tick(&mut state, &snapshot);
        prop_assert_eq!(&again.actions, &vec![]);
        let text = serde_json::to_string(&state).map_err(|error| TestCaseError::fail(error.to_string()))?;
        let mut read: State = serde_json::from_str(&text).map_err(|error| TestCaseError::fail(error.to_string()))?;
        snapshot.now_ns += S;
        prop_assert_eq!(tick(&mut read, &snapshot).actions, tick(&mut state, &snapshot).actions);
    }
}
