//! What one tick costs, as models and devices grow: time, and memory of its state and snapshot.

use crate::fleet::{REVISION, on_device};
use crate::random::Random;
use controller_core::snapshot::{Demand, InstanceState, InstanceView, ModelView, NodeView, Snapshot};
use controller_core::{Policy, State, tick};
use serde::Serialize;
use std::time::Instant;

/// Bytes of one instance in the snapshots.
const BYTES: u64 = 16 << 30;

/// The cost at one size.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    pub models: usize,
    pub devices: usize,
    /// Every measured tick, ms, in order.
    pub ms: Vec<f64>,
    /// Resident memory that state and snapshot took beyond what there was before, bytes.
    pub resident_bytes: u64,
    pub actions: usize,
}

/// Ticks so many times over a fleet of as many devices as models. A tenth of the models is busy, half is idle with an instance, the
/// rest is at zero; between two ticks requests arrive, and what was asked for happens at once.
pub fn tick_cost(models: usize, ticks: usize) -> Cost {
    let before = resident_bytes();
    let mut random = Random::new(models as u64);
    let mut snapshot = fleet(models);
    let mut state = State::new(Policy { memory_cost_per_gib_s: 0.0, ..Policy::default() });
    let mut cost = Cost { models, devices: models, ms: Vec::new(), resident_bytes: 0, actions: 0 };
    for at in 0..ticks {
        snapshot.now_ns += 250_000_000;
        demand(&mut snapshot, &mut random);
        let begun = Instant::now();
        let effects = tick(&mut state, &snapshot);
        let ms = begun.elapsed().as_secs_f64() * 1e3;
        // The first ticks meet an empty state, and are not what a controller lives with.
        if at >= ticks / 4 {
            cost.ms.push(ms);
        }
        cost.actions += effects.actions.len();
        happen(&mut snapshot, effects.actions);
    }
    cost.resident_bytes = resident_bytes().saturating_sub(before);
    cost
}

fn fleet(models: usize) -> Snapshot {
    let now_ns = 1_000_000_000_000;
    let name = |at: usize| format!("model-{at:05}");
    let view = |_| ModelView {
        revision: REVISION.to_owned(),
        instance_bytes: BYTES,
        demand: Demand { observed_at_ns: now_ns, ..Demand::default() },
        cold_start_ms: vec![10_000.0; 32],
        weights: None,
    };
    let instance = |at: usize| InstanceView {
        observed_at_ns: now_ns,
        model: name(at),
        revision: REVISION.to_owned(),
        state: InstanceState::Ready,
        placement: on_device(at as u32, BYTES),
        spawned_at_ns: now_ns - 60_000_000_000,
        ready_at_ns: Some(now_ns - 50_000_000_000),
        running: 0,
        waiting: 0,
        prefill_tokens_total: 0,
        decode_tokens_total: 0,
        requests_total: 0,
        busy_ns_total: 0,
        steps_total: 0,
        last_used_at_ns: now_ns,
        disturbed: false,
        resident_bytes: BYTES,
    };
    Snapshot {
        now_ns,
        epoch: 1,
        node: NodeView {
            observed_at_ns: now_ns,
            cores: (0..models as u32).collect(),
            cores_per_instance: 1,
            memory_budget_bytes: u64::MAX,
            weights: Default::default(),
        },
        models: (0..models).map(|at| (name(at), view(at))).collect(),
        instances: (0..models).filter(|at| at % 10 < 6).map(|at| (format!("i{at:05}"), instance(at))).collect(),
    }
}

/// A quarter of a second of requests.
fn demand(snapshot: &mut Snapshot, random: &mut Random) {
    let now_ns = snapshot.now_ns;
    for (at, view) in snapshot.models.values_mut().enumerate() {
        let busy = at % 10 == 0 || random.chance(0.001);
        let arrived = if busy { random.between(0, 2) } else { 0 };
        view.demand.observed_at_ns = now_ns;
        view.demand.arrivals_total += arrived;
        view.demand.in_flight = arrived as u32;
        view.demand.prompt_tokens_total += 500 * arrived;
        view.demand.output_tokens_total += 100 * arrived;
    }
    for view in snapshot.instances.values_mut() {
        view.observed_at_ns = now_ns;
        let demand = snapshot.models.get(&view.model).map(|model| &model.demand);
        let running = demand.map_or(0, |demand| demand.in_flight);
        view.running = running;
        if running > 0 {
            view.last_used_at_ns = now_ns;
            view.busy_ns_total += 250_000_000;
            view.decode_tokens_total += 10 * u64::from(running);
            view.requests_total += u64::from(running);
        }
    }
}

/// What was asked for has happened.
fn happen(snapshot: &mut Snapshot, actions: Vec<controller_core::action::Action>) {
    use controller_core::action::ActionKind;
    let now_ns = snapshot.now_ns;
    for action in actions {
        match action.kind {
            ActionKind::Prefetch { .. } | ActionKind::Forget { .. } => {}
            ActionKind::Drain { instance, .. } => {
                snapshot.instances.remove(&instance);
            }
            ActionKind::Start { instance, model, revision, placement } => {
                let view = InstanceView {
                    observed_at_ns: now_ns,
                    model,
                    revision,
                    state: InstanceState::Ready,
                    placement,
                    spawned_at_ns: now_ns,
                    ready_at_ns: Some(now_ns),
                    running: 0,
                    waiting: 0,
                    prefill_tokens_total: 0,
                    decode_tokens_total: 0,
                    requests_total: 0,
                    busy_ns_total: 0,
                    steps_total: 0,
                    last_used_at_ns: now_ns,
                    disturbed: false,
                    resident_bytes: BYTES,
                };
                snapshot.instances.insert(instance, view);
            }
        }
    }
}

/// Resident memory of this process, bytes; 0 where the system does not tell.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = status.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * 4096
}
