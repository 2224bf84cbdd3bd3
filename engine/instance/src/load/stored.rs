//! A model of the store: its head says what it is, and its weights are adopted from shared memory, or read into it.

use super::Came;
use crate::clock;
use crate::heads::Head;
use crate::options::{EngineOptions, StoreOptions};
use engine_runtime::CpuBands;
use engine_store::host::{self, Brought, bring};
use engine_store::{Checkpoint, LoadOptions, Manifest, Store, StoreError};
use engine_wire::control::Tier;

/// Memory that loading leaves free beside the KV cache, bytes: the process itself, activations, and what others need
/// meanwhile.
const RESERVE_BYTES: u64 = 256 << 20;

/// Opens the head that the options name, unless it was read before, and gives it the weights. The error is for people.
pub(super) fn open(
    options: &EngineOptions,
    place: &StoreOptions,
    head: Option<&Head>,
) -> Result<(Checkpoint, Came), String> {
    let store = Store::open(&place.root).map_err(|error| error.to_string())?;
    let reserve_bytes = RESERVE_BYTES.saturating_add(options.kv_bytes_or_default());
    let (checkpoint, brought) = match head {
        Some(head) => (head.checkpoint.clone(), weights_of(&store, place, &head.manifest, reserve_bytes)?),
        None => read(options, place, &store, reserve_bytes)?,
    };
    let Brought { loaded, tier, fallback } = brought;
    if let Some(why) = fallback {
        tracing::warn!("the weights are mapped from the store's files, not in shared memory: {why}");
    }
    let tier = match tier {
        host::Tier::Memory => Tier::Memory,
        host::Tier::Disk => Tier::Disk,
        host::Tier::File => Tier::File,
    };
    let read_bytes = loaded.facts.read_bytes;
    // Mapped as long as the process lives, also what the device has copied out: whoever discards segments sees by that
    // which are in use.
    std::mem::forget(loaded.clone());
    let checkpoint = checkpoint.with_loaded(loaded).map_err(|error| error.to_string())?;
    Ok((checkpoint, Came { at_ns: clock::monotonic_ns(), tier: Some(tier), read_bytes }))
}

/// Both take milliseconds of a start, and neither needs the other.
fn read(
    options: &EngineOptions,
    place: &StoreOptions,
    store: &Store,
    reserve_bytes: u64,
) -> Result<(Checkpoint, Brought), String> {
    std::thread::scope(|scope| {
        let head = || -> Result<Checkpoint, String> {
            let path = store.verify_head(&place.revision).map_err(|error| error.to_string())?;
            Checkpoint::open(path, options.quantise).map_err(|error| error.to_string())
        };
        let head = std::thread::Builder::new().name("head".into()).spawn_scoped(scope, head);
        let brought = weights(store, place, reserve_bytes).map_err(|error| error.to_string());
        let head = match head {
            Ok(head) => head.join().unwrap_or_else(|_| Err("reading its head panicked".into())),
            Err(error) => Err(format!("cannot start a thread: {error}")),
        };
        Ok((head?, brought?))
    })
}

/// Weights by a manifest that was read before. The model may have been taken in anew since, in other objects.
fn weights_of(store: &Store, place: &StoreOptions, manifest: &Manifest, reserve_bytes: u64) -> Result<Brought, String> {
    bring(store, manifest, &place.segments, LoadOptions::default(), reserve_bytes)
        .or_else(|_| weights(store, place, reserve_bytes))
        .map_err(|error| error.to_string())
}

fn weights(store: &Store, place: &StoreOptions, reserve_bytes: u64) -> Result<Brought, StoreError> {
    let path = || store.root().join("models").join(format!("{}.{}", place.revision, CpuBands::LAYOUT));
    let manifest = store.manifest(&place.revision, CpuBands::LAYOUT)?;
    let manifest = manifest.ok_or_else(|| StoreError::Missing { path: path() })?;
    bring(store, &manifest, &place.segments, LoadOptions::default(), reserve_bytes)
}
