//! Turns a plan into actions: identities and idempotency keys for starts, keys for drains, and the memory
//! of both, so that the next tick asks for nothing twice.

use crate::NS_PER_MS;
use crate::action::{Action, ActionKind};
use crate::plan::Plan;
use crate::snapshot::{ModelName, Snapshot};
use crate::state::{Drain, Pending, State};
use std::collections::BTreeMap;

/// The actions of the plan by model, in the order of the plan: drains first, since starts may wait for them.
pub(crate) fn actions(state: &mut State, snapshot: &Snapshot, plan: &Plan) -> BTreeMap<ModelName, Vec<Action>> {
    let mut by_model: BTreeMap<ModelName, Vec<Action>> = BTreeMap::new();
    let expiry_ns = state.policy.pending_expiry_ms.saturating_mul(NS_PER_MS);
    // A drain that never showed is asked for again under a new key.
    let again: Vec<_> = state
        .drains
        .iter()
        .filter(|(_, drain)| snapshot.now_ns.saturating_sub(drain.at_ns) >= expiry_ns)
        .filter_map(|(id, _)| snapshot.instances.get(id).map(|view| (id.clone(), view.model.clone())))
        .collect();
    let planned = plan.drains.iter().map(|drain| (drain.instance.clone(), drain.model.clone()));
    for (instance, model) in again.into_iter().chain(planned) {
        let drain = state.drains.entry(instance.clone()).or_insert(Drain { at_ns: 0, tries: 0 });
        drain.at_ns = snapshot.now_ns;
        drain.tries = drain.tries.saturating_add(1);
        let key = format!("drain/{instance}/{}/{}", snapshot.epoch, drain.tries);
        let kind = ActionKind::Drain { instance, deadline_ms: state.policy.drain_deadline_ms };
        by_model.entry(model).or_default().push(Action { epoch: snapshot.epoch, key, kind });
    }
    for start in &plan.starts {
        let Some(view) = snapshot.models.get(&start.model) else { continue };
        let instance = state.name_instance(&start.model, snapshot);
        let pending =
            Pending { model: start.model.clone(), placement: start.placement.clone(), at_ns: snapshot.now_ns };
        state.pending.insert(instance.clone(), pending);
        let kind = ActionKind::Start {
            instance: instance.clone(),
            model: start.model.clone(),
            revision: view.revision.clone(),
            placement: start.placement.clone(),
        };
        let action = Action { epoch: snapshot.epoch, key: format!("start/{instance}"), kind };
        by_model.entry(start.model.clone()).or_default().push(action);
    }
    by_model
}
