//! What is free on the node. Cores are given out whole and once; memory by the expected bytes of an
//! instance, or what it was measured at if that is more.

use crate::fleet::{Fleet, Member, on_cores};
use crate::snapshot::{NodeView, Placement};
use std::collections::BTreeSet;
use std::rc::Rc;

/// Free cores and bytes.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    /// Shared, since rooms as they would be are made by the dozen.
    all_cores: Rc<BTreeSet<u32>>,
    pub(crate) cores: BTreeSet<u32>,
    /// Wide enough that sums of whatever was reported are exact.
    used_bytes: u128,
    pub(crate) budget_bytes: u64,
    pub(crate) cores_per_instance: usize,
}

impl Room {
    /// What the fleet leaves free.
    pub(crate) fn of(node: &NodeView, fleet: &Fleet) -> Self {
        let all_cores: BTreeSet<u32> = node.cores.iter().copied().collect();
        let taken: BTreeSet<u32> = fleet.everyone().flat_map(|member| member.cores.iter().copied()).collect();
        Self {
            cores: all_cores.difference(&taken).copied().collect(),
            all_cores: Rc::new(all_cores),
            used_bytes: bytes_of(fleet.everyone()),
            budget_bytes: node.memory_budget_bytes,
            cores_per_instance: node.cores_per_instance.max(1) as usize,
        }
    }

    /// Whether an instance of so many bytes fits now.
    pub(crate) fn fits(&self, bytes: u64) -> bool {
        self.cores.len() >= self.cores_per_instance
            && self.used_bytes + u128::from(bytes) <= u128::from(self.budget_bytes)
    }

    /// Whether one would fit on the empty node.
    pub(crate) fn could_ever_fit(&self, bytes: u64) -> bool {
        self.all_cores.len() >= self.cores_per_instance && self.budget_bytes >= bytes
    }

    /// Takes the lowest free cores for an instance, or nothing.
    pub(crate) fn take(&mut self, bytes: u64) -> Option<Placement> {
        if !self.fits(bytes) {
            return None;
        }
        let cores: Vec<u32> = self.cores.iter().copied().take(self.cores_per_instance).collect();
        for core in &cores {
            self.cores.remove(core);
        }
        self.used_bytes += u128::from(bytes);
        Some(on_cores(cores, bytes))
    }

    /// Bytes that are free; 0 where more is used than there is.
    pub(crate) fn free_bytes(&self) -> u64 {
        u64::try_from(u128::from(self.budget_bytes).saturating_sub(self.used_bytes)).unwrap_or(0)
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
        }
        room.used_bytes = room.used_bytes.saturating_sub(bytes_of(members.iter().copied()));
        room
    }
}

fn bytes_of<'a>(members: impl Iterator<Item = &'a Member>) -> u128 {
    members.map(|member| u128::from(member.bytes)).sum()
}
