//! Ours: `controller_core::tick`, the very function that runs live, on snapshots of the simulated fleet. A device is to
//! it what a core is on a node: given out whole, one to an instance.

use super::Knobs;
use crate::fleet::{Config, Policy, REVISION, Tick, View, Wanted};
use controller_core::action::Effects;
use controller_core::outside::Slo;
use controller_core::snapshot::{Demand, Fidelity, ModelView, NodeView, Snapshot};
use controller_core::{State, tick};
use std::collections::BTreeMap;

/// The function under test: `controller_core::tick`, or a broken one that a checker must catch.
pub type Planner = fn(&mut State, &Snapshot) -> Effects;

/// What the mean fill of an instance is beside the one that chance may take it to, about: knobs are in means.
const MEAN_FILL: f64 = 0.6;

/// Time that nobody looks while a controller is replaced, s.
const RESTART_S: f64 = 1.0;

/// The tick with its memory.
pub struct Ticker {
    planner: Planner,
    policy: controller_core::Policy,
    state: State,
    models: BTreeMap<String, ModelView>,
    /// Totals that the gateway's process before this one had counted, by model.
    counted: Vec<(u64, u64, u64)>,
    restarted: bool,
}

impl Ticker {
    /// With these knobs: the fill is the mean one that an instance comes to, and keeping for longer is a lower
    /// price of holding a device.
    pub fn new(knobs: Knobs, config: &Config) -> Self {
        let default = controller_core::Policy::default();
        let policy = controller_core::Policy {
            slo: Slo { ttft_ms: config.slo.ttft_ms, itl_ms: config.slo.itl_ms, ..Slo::default() },
            idle_cost_per_s: default.idle_cost_per_s / knobs.keep.unwrap_or(1.0).max(1e-6),
            // A device is one price, its memory with it.
            memory_cost_per_gib_s: 0.0,
            target_fill: knobs.fill.map_or(default.target_fill, |fill| fill / MEAN_FILL),
            max_instances: config.devices,
            start_timeout_ms: ((config.cold_start_s() * 20e3) as u64).max(default.start_timeout_ms),
            ..default
        };
        Self::with(tick, policy)
    }

    /// Any planner with any prices.
    pub fn with(planner: Planner, policy: controller_core::Policy) -> Self {
        let state = State::new(policy.clone());
        Self { planner, policy, state, models: BTreeMap::new(), counted: Vec::new(), restarted: false }
    }

    fn snapshot(&mut self, view: &View<'_>) -> Snapshot {
        self.counted.resize(view.models.len(), (0, 0, 0));
        if std::mem::take(&mut self.restarted) {
            let totals = view.models.iter();
            self.counted = totals.map(|m| (m.arrivals_total, m.prompt_tokens_total, m.output_tokens_total)).collect();
        }
        let mut models = std::mem::take(&mut self.models);
        for ((name, sight), counted) in view.names.iter().zip(view.models).zip(&self.counted) {
            let known = models.entry(name.clone()).or_insert_with(|| ModelView {
                revision: REVISION.to_owned(),
                instance_bytes: view.instance_bytes,
                demand: Demand::default(),
                cold_start_ms: Vec::new(),
                weights: None,
            });
            known.demand = Demand {
                observed_at_ns: view.now_ns,
                fidelity: Fidelity::Gateway,
                arrivals_total: sight.arrivals_total - counted.0,
                unidentified: 0.0,
                unnamed_total: 0.0,
                held: sight.held,
                in_flight: sight.in_flight,
                prompt_tokens_total: sight.prompt_tokens_total - counted.1,
                output_tokens_total: sight.output_tokens_total - counted.2,
                ..Demand::default()
            };
            known.cold_start_ms.clone_from(&sight.cold_start_ms);
        }
        Snapshot {
            now_ns: view.now_ns,
            epoch: view.epoch,
            node: NodeView {
                observed_at_ns: view.now_ns,
                cores: view.devices.to_vec(),
                cores_per_instance: 1,
                memory_budget_bytes: view.instance_bytes.saturating_mul(view.devices.len() as u64 + 1_000_000),
                weights: Default::default(),
            },
            models,
            instances: view.instances().map(|(id, view)| (id.clone(), view)).collect(),
        }
    }
}

impl Policy for Ticker {
    fn name(&self) -> &'static str {
        "foreshock"
    }

    fn tick(&mut self, view: &View<'_>) -> Tick {
        let snapshot = self.snapshot(view);
        let effects = (self.planner)(&mut self.state, &snapshot);
        crate::refit(&mut self.state);
        self.models = snapshot.models;
        let unexplained = effects.actions.iter().find(|action| {
            let mut stands_in = effects.decisions.iter().filter(|decision| decision.actions.contains(action));
            let told = stands_in.next().is_some_and(|decision| !decision.why.is_empty());
            !told || stands_in.next().is_some()
        });
        let unexplained = unexplained.map(|action| format!("{action:?}"));
        Tick { wanted: Wanted::Actions(effects.actions), next_ns: effects.next_tick_ns, unexplained }
    }

    /// A request that finds nothing brings the tick forward, as it does live.
    fn eager(&self) -> bool {
        true
    }

    fn detailed(&self) -> bool {
        true
    }

    fn quantile_per_s(&self, model: &str, horizon_s: f64) -> Option<f64> {
        self.state.forecast(model, horizon_s).map(|forecast| forecast.rate_quantile(0.9))
    }

    /// A new process: what was learned of arrivals comes from the database, all else is empty and counters start from 0.
    fn restart(&mut self) {
        let stored = self.state.worth_storing("", usize::MAX);
        self.state = State::new(self.policy.clone());
        for (model, predictor) in stored {
            self.state.restore(&model, predictor, RESTART_S);
        }
        self.restarted = true;
    }

    fn idempotent(&mut self, view: &View<'_>) -> bool {
        let snapshot = self.snapshot(view);
        let effects = (self.planner)(&mut self.state, &snapshot);
        self.models = snapshot.models;
        effects.actions.is_empty()
    }
}
