//! What is free on the node. Cores are given out whole and once; memory by the expected bytes of an
//! instance, or what it was measured at if that is more, and by the weights, once for all that map them.

use crate::fleet::{Fleet, Lot, Member, on_cores};
use crate::snapshot::{NodeView, Placement};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// What one more instance takes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claim {
    /// For itself.
    pub(crate) bytes: u64,
    /// For all that map the same.
    pub(crate) weights: Option<Lot>,
}

impl Claim {
    /// What it takes where nobody maps its weights.
    pub(crate) fn all_bytes(&self) -> u64 {
        self.bytes.saturating_add(self.weights.as_ref().map_or(0, |lot| lot.bytes))
    }
}

/// Free cores and bytes.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    /// Shared, since rooms as they would be are made by the dozen.
    all_cores: Rc<BTreeSet<u32>>,
    pub(crate) cores: BTreeSet<u32>,
    /// Instances' own. Wide enough that sums of whatever was reported are exact.
    used_bytes: u128,
    /// Weights in use, and by how many.
    lots: BTreeMap<Lot, u32>,
    pub(crate) budget_bytes: u64,
    pub(crate) cores_per_instance: usize,
}

impl Room {
    /// What the fleet leaves free.
    pub(crate) fn of(node: &NodeView, fleet: &Fleet) -> Self {
        let all_cores: BTreeSet<u32> = node.cores.iter().copied().collect();
        let taken: BTreeSet<u32> = fleet.everyone().flat_map(|member| member.cores.iter().copied()).collect();
        let mut room = Self {
            cores: all_cores.difference(&taken).copied().collect(),
            all_cores: Rc::new(all_cores),
            used_bytes: bytes_of(fleet.everyone()),
            lots: BTreeMap::new(),
            budget_bytes: node.memory_budget_bytes,
            cores_per_instance: node.cores_per_instance.max(1) as usize,
        };
        fleet.everyone().filter_map(|member| member.weights.as_ref()).for_each(|lot| room.share(lot));
        room
    }

    fn share(&mut self, lot: &Lot) {
        *self.lots.entry(lot.clone()).or_insert(0) += 1;
    }

    fn unshare(&mut self, lot: &Lot) {
        let Some(users) = self.lots.get_mut(lot) else { return };
        *users = users.saturating_sub(1);
        if *users == 0 {
            self.lots.remove(lot);
        }
    }

    /// Bytes in use, of instances and of weights.
    fn all_used_bytes(&self) -> u128 {
        self.used_bytes + self.lots.keys().map(|lot| u128::from(lot.bytes)).sum::<u128>()
    }

    /// What a claim adds to what is in use.
    fn added_bytes(&self, claim: &Claim) -> u128 {
        let weights = claim.weights.as_ref().filter(|lot| !self.lots.contains_key(lot));
        u128::from(claim.bytes) + weights.map_or(0, |lot| u128::from(lot.bytes))
    }

    /// Whether such an instance fits now.
    pub(crate) fn fits(&self, claim: &Claim) -> bool {
        self.cores.len() >= self.cores_per_instance
            && self.all_used_bytes() + self.added_bytes(claim) <= u128::from(self.budget_bytes)
    }

    /// Whether one would fit on the empty node.
    pub(crate) fn could_ever_fit(&self, claim: &Claim) -> bool {
        self.all_cores.len() >= self.cores_per_instance && self.budget_bytes >= claim.all_bytes()
    }

    /// Takes the lowest free cores for an instance, or nothing.
    pub(crate) fn take(&mut self, claim: &Claim) -> Option<Placement> {
        if !self.fits(claim) {
            return None;
        }
        let cores: Vec<u32> = self.cores.iter().copied().take(self.cores_per_instance).collect();
        for core in &cores {
            self.cores.remove(core);
        }
        self.used_bytes += u128::from(claim.bytes);
        if let Some(lot) = &claim.weights {
            self.share(lot);
        }
        Some(on_cores(cores, claim.bytes))
    }

    /// Bytes that are free; 0 where more is used than there is.
    pub(crate) fn free_bytes(&self) -> u64 {
        u64::try_from(u128::from(self.budget_bytes).saturating_sub(self.all_used_bytes())).unwrap_or(0)
    }

    /// The room as it would be with these members gone. Only cores that no other member also holds come free.
    pub(crate) fn without(&self, members: &[&Member], fleet: &Fleet) -> Self {
        if members.is_empty() {
            return self.clone();
        }
        let going: BTreeSet<&str> = members.iter().map(|member| member.id.as_str()).collect();
        let staying = fleet.everyone().filter(|member| !going.contains(member.id.as_str()));
        let kept: BTreeSet<u32> = staying.flat_map(|member| member.cores.iter().copied()).collect();
        let mut room = self.clone();
        for member in members {
            let free = member.cores.iter().filter(|core| self.all_cores.contains(core) && !kept.contains(core));
            room.cores.extend(free);
            member.weights.iter().for_each(|lot| room.unshare(lot));
        }
        room.used_bytes = room.used_bytes.saturating_sub(bytes_of(members.iter().copied()));
        room
    }
}

fn bytes_of<'a>(members: impl Iterator<Item = &'a Member>) -> u128 {
    members.map(|member| u128::from(member.bytes)).sum()
}
