//! The instances as they will be once everything asked for has happened: the snapshot, with pending
//! starts added and asked-for drains counted as draining.

use crate::snapshot::{
    DeviceSlice, InstanceId, InstanceState, ModelName, ModelView, Placement, Revision, Shard, Snapshot,
};
use crate::state::State;
use crate::{NS_PER_MS, Nanos};
use std::collections::BTreeMap;

/// All instances, grouped by model.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fleet {
    pub(crate) groups: BTreeMap<ModelName, Group>,
    /// Serving a model that is not registered, or an old revision of one, and not draining yet.
    pub(crate) strays: Vec<Member>,
    /// Never became ready within the time for it.
    pub(crate) stuck: Vec<Member>,
    /// On their way out, of whatever model; what they hold comes free.
    pub(crate) leaving: Vec<Member>,
}

/// The instances of one model.
#[derive(Clone, Debug, Default)]
pub(crate) struct Group {
    pub(crate) ready: Vec<Member>,
    /// Starting as seen, or asked for.
    pub(crate) starting: Vec<Member>,
    pub(crate) draining: Vec<Member>,
}

/// One instance.
#[derive(Clone, Debug, Default)]
pub(crate) struct Member {
    pub(crate) id: InstanceId,
    pub(crate) model: ModelName,
    pub(crate) cores: Vec<u32>,
    /// Its own.
    pub(crate) bytes: u64,
    /// The weights that it shares with others.
    pub(crate) weights: Option<Lot>,
    /// Requests at it.
    pub(crate) load: u64,
    pub(crate) ready_at_ns: Nanos,
    pub(crate) last_used_at_ns: Nanos,
}

/// Weights that lie on a node once, however many map them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Lot {
    pub(crate) revision: Revision,
    pub(crate) bytes: u64,
}

impl Lot {
    /// Those of a model, where its instances share any.
    pub(crate) fn of(view: &ModelView) -> Option<Self> {
        view.weights.as_ref().map(|weights| Self { revision: view.revision.clone(), bytes: weights.bytes })
    }
}

impl Group {
    /// Instances that serve or are about to.
    pub(crate) fn have(&self) -> u32 {
        (self.ready.len() + self.starting.len()) as u32
    }
}

impl Fleet {
    /// Reads the fleet from the snapshot and the memory of what was asked for.
    pub(crate) fn of(state: &State, snapshot: &Snapshot) -> Self {
        let mut fleet = Self::default();
        for name in snapshot.models.keys() {
            fleet.groups.insert(name.clone(), Group::default());
        }
        for (id, view) in &snapshot.instances {
            let model = snapshot.models.get(&view.model).filter(|model| model.revision == view.revision);
            let weights = model.and_then(Lot::of);
            // What a process has mapped counts as resident there, and is counted once for all.
            let own_bytes = view.resident_bytes.saturating_sub(weights.as_ref().map_or(0, |lot| lot.bytes));
            let member = Member {
                id: id.clone(),
                model: view.model.clone(),
                cores: view.placement.cores(),
                bytes: placed_bytes(&view.placement).max(own_bytes),
                weights,
                load: u64::from(view.running) + u64::from(view.waiting),
                ready_at_ns: view.ready_at_ns.unwrap_or(view.spawned_at_ns),
                last_used_at_ns: view.last_used_at_ns,
            };
            let leaving = view.state == InstanceState::Draining || state.drains.contains_key(id);
            let registered = model.is_some();
            let timeout_ns = state.policy.start_timeout_ms.saturating_mul(NS_PER_MS);
            let stuck = view.state == InstanceState::Starting
                && snapshot.now_ns.saturating_sub(view.spawned_at_ns) > timeout_ns;
            match fleet.groups.get_mut(&view.model) {
                _ if leaving => fleet.leave(member),
                // What this tick will drain counts as draining already, so that the next tick judges alike.
                Some(group) if !registered || stuck => {
                    group.draining.push(member.clone());
                    if registered { fleet.stuck.push(member) } else { fleet.strays.push(member) }
                }
                Some(group) => match view.state {
                    InstanceState::Ready => group.ready.push(member),
                    InstanceState::Starting | InstanceState::Draining => group.starting.push(member),
                },
                None => fleet.strays.push(member),
            }
        }
        for (id, pending) in &state.pending {
            let member = Member {
                id: id.clone(),
                model: pending.model.clone(),
                cores: pending.placement.cores(),
                bytes: placed_bytes(&pending.placement),
                weights: snapshot.models.get(&pending.model).and_then(Lot::of),
                ..Member::default()
            };
            match fleet.groups.get_mut(&pending.model) {
                Some(group) => group.starting.push(member),
                None => fleet.leaving.push(member),
            }
        }
        fleet
    }

    /// Counts a member as on its way out.
    pub(crate) fn leave(&mut self, member: Member) {
        if let Some(group) = self.groups.get_mut(&member.model) {
            group.draining.push(member.clone());
        }
        self.leaving.push(member);
    }

    /// Everything that holds cores or memory.
    pub(crate) fn everyone(&self) -> impl Iterator<Item = &Member> {
        let groups = self.groups.values().flat_map(|group| group.ready.iter().chain(&group.starting));
        groups.chain(&self.strays).chain(&self.stuck).chain(&self.leaving)
    }
}

/// Bytes of a placement, without overflow.
fn placed_bytes(placement: &Placement) -> u64 {
    placement.shards.iter().fold(0u64, |sum, shard| sum.saturating_add(shard.bytes))
}

/// A placement on these cores.
pub(crate) fn on_cores(cores: Vec<u32>, bytes: u64) -> Placement {
    Placement { shards: vec![Shard { device: DeviceSlice::Cores(cores), bytes }] }
}
