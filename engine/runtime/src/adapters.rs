//! The adapters of a device. They come and go beside the step thread: whoever loads one holds it by a
//! [`LoadedAdapter`], and it stays in the table until the last holder is gone, so that no step meets one that is not
//! there.

use crate::{Compute, kernels::cpu::low_rank::Pair};
use engine_core::AdapterId;
use engine_store::{Adapter, Linear, ModelConfig};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// An adapter's matrices by layer and place.
pub(crate) struct AdapterWeights(Vec<[Option<Pair>; Linear::ALL.len()]>);

impl AdapterWeights {
    fn new(adapter: &Adapter, config: &ModelConfig, compute: Compute) -> Self {
        let pair = |layer: usize, linear: Linear| {
            let found = adapter.low_rank(layer, linear)?;
            Some(Pair::new(&found.a, &found.b, found.rank, found.scale, compute == Compute::Fast))
        };
        let layer = |layer: usize| Linear::ALL.map(|linear| pair(layer, linear));
        Self((0..config.layers).map(layer).collect())
    }

    pub(crate) fn pair(&self, layer: usize, linear: Linear) -> Option<&Pair> {
        self.0.get(layer)?[linear as usize].as_ref()
    }

    fn bytes(&self) -> usize {
        self.0.iter().flatten().flatten().map(Pair::bytes).sum()
    }
}

#[derive(Default)]
struct Table {
    next_id: AdapterId,
    loaded: BTreeMap<AdapterId, Arc<AdapterWeights>>,
}

/// The table of adapters that a device looks into. Clones are the same table.
#[derive(Clone, Default)]
pub struct Adapters {
    table: Arc<Mutex<Table>>,
}

impl Adapters {
    /// Takes an adapter that was opened against the device's model, in the form in which `compute` reads it. Costs as
    /// much as copying it; steps go on meanwhile.
    pub fn load(&self, adapter: &Adapter, config: &ModelConfig, compute: Compute) -> LoadedAdapter {
        let weights = Arc::new(AdapterWeights::new(adapter, config, compute));
        let bytes = weights.bytes();
        let mut table = self.table();
        let id = table.next_id;
        table.next_id += 1;
        table.loaded.insert(id, weights);
        drop(table);
        LoadedAdapter { id, bytes, adapters: self.clone() }
    }

    pub(crate) fn get(&self, id: AdapterId) -> Option<Arc<AdapterWeights>> {
        self.table().loaded.get(&id).cloned()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Adapters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Adapters({:?})", self.table().loaded.keys())
    }
}

/// The same table, not the same content.
impl PartialEq for Adapters {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.table, &other.table)
    }
}

impl Eq for Adapters {}

/// An adapter in a device's table, until this is dropped.
#[derive(Debug)]
pub struct LoadedAdapter {
    id: AdapterId,
    bytes: usize,
    adapters: Adapters,
}

impl LoadedAdapter {
    /// What sequences name it by.
    pub fn id(&self) -> AdapterId {
        self.id
    }

    /// Memory that it takes, bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for LoadedAdapter {
    fn drop(&mut self) {
        self.adapters.table().loaded.remove(&self.id);
    }
}
