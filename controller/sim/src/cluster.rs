//! The node: cores, memory and the engines on it, with the actuator that the controller's actions go to.
//! It refuses nothing: an action that would overcommit is carried out and the checker names it.

use crate::NS_PER_MS;
use crate::check::{Invariant, Violation, ensure};
use crate::engine::{Engine, Speed};
use crate::gateway::Gateway;
use controller_core::Nanos;
use controller_core::action::{Action, ActionKind};
use controller_core::snapshot::{Demand, Fidelity, InstanceState, ModelView, NodeView, Snapshot};
use std::collections::{BTreeMap, BTreeSet};

/// Cold starts kept per model, as the state database keeps them.
const COLD_STARTS_KEPT: usize = 32;

/// A node and what runs on it.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub cores: Vec<u32>,
    pub cores_per_instance: u32,
    pub memory_budget_bytes: u64,
    pub engines: BTreeMap<String, Engine>,
    pub models: BTreeMap<String, ClusterModel>,
    pub epoch: u64,
    applied: BTreeSet<String>,
}

/// What the node knows of a model.
#[derive(Clone, Debug)]
pub struct ClusterModel {
    pub revision: String,
    pub instance_bytes: u64,
    pub speed: Speed,
    pub cold_start_ms: Vec<f64>,
}

/// What an applied action changed.
#[derive(Clone, Debug, PartialEq)]
pub enum Applied {
    Nothing,
    Started { instance: String, model: String },
    Draining { instance: String, model: String, deadline_ns: Nanos },
}

impl Cluster {
    /// An empty node.
    pub fn new(cores: u32, cores_per_instance: u32, memory_budget_bytes: u64) -> Self {
        Self {
            cores: (0..cores).collect(),
            cores_per_instance,
            memory_budget_bytes,
            engines: BTreeMap::new(),
            models: BTreeMap::new(),
            epoch: 1,
            applied: BTreeSet::new(),
        }
    }

    /// Carries out an action once; the same key again, or an old epoch, does nothing.
    pub fn apply(&mut self, action: &Action, now_ns: Nanos) -> Applied {
        if action.epoch != self.epoch || !self.applied.insert(action.key.clone()) {
            return Applied::Nothing;
        }
        match &action.kind {
            ActionKind::Start { instance, model, revision, placement } => {
                let Some(known) = self.models.get(model) else { return Applied::Nothing };
                let engine = Engine::spawn(model, revision, placement.clone(), known.speed, now_ns);
                self.engines.insert(instance.clone(), engine);
                Applied::Started { instance: instance.clone(), model: model.clone() }
            }
            ActionKind::Drain { instance, deadline_ms } => {
                let Some(engine) = self.engines.get_mut(instance) else { return Applied::Nothing };
                let deadline_ns = now_ns.saturating_add(deadline_ms.saturating_mul(NS_PER_MS));
                engine.state = InstanceState::Draining;
                engine.drain_deadline_ns = Some(deadline_ns);
                Applied::Draining { instance: instance.clone(), model: engine.model.clone(), deadline_ns }
            }
            // Simulated instances have weights of their own: there is nothing to keep for others.
            ActionKind::Prefetch { .. } | ActionKind::Forget { .. } => Applied::Nothing,
        }
    }

    /// The engine has loaded.
    pub fn ready(&mut self, instance: &str, now_ns: Nanos) {
        let Some(engine) = self.engines.get_mut(instance) else { return };
        if engine.state != InstanceState::Starting {
            return;
        }
        engine.state = InstanceState::Ready;
        engine.ready_at_ns = Some(now_ns);
        if let Some(model) = self.models.get_mut(&engine.model) {
            model.cold_start_ms.push((now_ns - engine.spawned_at_ns) as f64 / NS_PER_MS as f64);
            let surplus = model.cold_start_ms.len().saturating_sub(COLD_STARTS_KEPT);
            model.cold_start_ms.drain(..surplus);
        }
    }

    /// Least-loaded ready engine of a model that can take one more.
    pub fn route(&mut self, model: &str) -> Option<(String, &mut Engine)> {
        self.engines
            .iter_mut()
            .filter(|(_, engine)| engine.model == model && engine.state == InstanceState::Ready)
            .filter(|(_, engine)| engine.load() < engine.speed.max_batch * 4)
            .min_by_key(|(_, engine)| engine.load())
            .map(|(id, engine)| (id.clone(), engine))
    }

    /// The snapshot that the controller would get.
    pub fn snapshot(&self, gateway: &Gateway, now_ns: Nanos) -> Snapshot {
        let models = self.models.iter().map(|(name, model)| {
            let queue = gateway.queues.get(name).cloned().unwrap_or_default();
            let at_engines: usize =
                self.engines.values().filter(|engine| engine.model == *name).map(Engine::load).sum();
            let demand = Demand {
                observed_at_ns: now_ns,
                fidelity: Fidelity::Gateway,
                arrivals_total: queue.arrivals_total,
                unidentified: 0.0,
                unnamed_total: 0.0,
                held: queue.held.len() as u32,
                in_flight: at_engines as u32,
                prompt_tokens_total: queue.prompt_tokens_total,
                output_tokens_total: queue.output_tokens_total,
                ..Demand::default()
            };
            let view = ModelView {
                revision: model.revision.clone(),
                instance_bytes: model.instance_bytes,
                demand,
                cold_start_ms: model.cold_start_ms.clone(),
                weights: None,
            };
            (name.clone(), view)
        });
        Snapshot {
            now_ns,
            epoch: self.epoch,
            node: NodeView {
                observed_at_ns: now_ns,
                cores: self.cores.clone(),
                cores_per_instance: self.cores_per_instance,
                memory_budget_bytes: self.memory_budget_bytes,
                weights: Default::default(),
            },
            models: models.collect(),
            instances: self.engines.iter().map(|(id, engine)| (id.clone(), engine.view(now_ns))).collect(),
        }
    }

    /// Cores once, memory within the budget.
    pub fn check(&self, now_ns: Nanos) -> Result<(), Violation> {
        let mut holders: BTreeMap<u32, &str> = BTreeMap::new();
        for (id, engine) in &self.engines {
            for core in engine.placement.cores() {
                let other = holders.insert(core, id);
                let fine = other.is_none() && self.cores.contains(&core);
                ensure(fine, Invariant::CoresGivenOnce, now_ns, || format!("core {core}: {id} beside {other:?}"))?;
            }
        }
        let bytes: u64 = self.engines.values().map(|engine| engine.placement.bytes()).sum();
        ensure(bytes <= self.memory_budget_bytes, Invariant::MemoryWithinBudget, now_ns, || {
            format!("{bytes} of {} bytes", self.memory_budget_bytes)
        })
    }
}
