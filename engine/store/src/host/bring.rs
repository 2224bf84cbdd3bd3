//! A model's weights to where an engine can compute with them, by the quickest way that there is room for.

use super::{available_bytes, is_of_memory};
use crate::{
    Checksum, LoadFacts, LoadOptions, Loaded, Manifest, Object, Segments, Store, StoreError,
    huge::FileMap,
    load,
    load::{find, loaded},
};
use rustix::fs::statvfs;
use std::{
    collections::BTreeSet,
    fs::File,
    num::NonZeroUsize,
    path::Path,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// Where weights were when they were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// In shared segments, all of them: nothing was read.
    Memory,
    /// On disk, some of them at least: they were read into shared segments.
    Disk,
    /// There was no room for segments: the store's own files are mapped.
    File,
}

/// A model that can be computed with.
#[derive(Clone, Debug)]
pub struct Brought {
    pub loaded: Loaded,
    pub tier: Tier,
    /// Why the weights are not in shared segments, where they are not.
    pub fallback: Option<String>,
}

/// Adopts what is in memory, reads the rest where there is room, leaving `reserve_bytes` of memory free, and maps
/// the store's files where there is none. Nothing comes back that was not verified.
///
/// # Errors
/// When an object is missing or damaged.
pub fn bring(
    store: &Store,
    manifest: &Manifest,
    folder: &Path,
    options: LoadOptions,
    reserve_bytes: u64,
) -> Result<Brought, StoreError> {
    let in_memory = Segments::open(folder).and_then(|segments| {
        if let Some(loaded) = find(store, manifest, &segments)? {
            return Ok(loaded);
        }
        make_room(&segments, manifest, reserve_bytes)?;
        load(store, manifest, &segments, options)
    });
    match in_memory {
        Ok(loaded) => {
            let tier = if loaded.facts.read_bytes == 0 { Tier::Memory } else { Tier::Disk };
            Ok(Brought { loaded, tier, fallback: None })
        }
        Err(error) if is_of_memory(&error, folder) => {
            let loaded = map(store, manifest)?;
            Ok(Brought { loaded, tier: Tier::File, fallback: Some(error.to_string()) })
        }
        Err(error) => Err(error),
    }
}

/// Sees to it that what is missing of a model fits.
fn make_room(segments: &Segments, manifest: &Manifest, reserve_bytes: u64) -> Result<(), StoreError> {
    let missing = manifest.objects.iter().filter(|object| !segments.folder().join(object.name().to_string()).exists());
    let missing_bytes: u64 = missing.map(|object| object.bytes()).sum();
    if missing_bytes == 0 {
        return Ok(());
    }
    let short = short_of(segments.folder(), missing_bytes, reserve_bytes);
    if short == 0 {
        return Ok(());
    }
    let own: BTreeSet<Checksum> = manifest.objects.iter().map(|object| object.name()).collect();
    segments.sweep()?;
    segments.discard_idle(short, &own)?;
    match short_of(segments.folder(), missing_bytes, reserve_bytes) {
        0 => Ok(()),
        _ => Err(StoreError::Memory { folder: segments.folder().to_owned(), bytes: missing_bytes }),
    }
}

/// Bytes that are missing for so many more. Where the system does not say, the attempt will.
pub(super) fn short_of(folder: &Path, bytes: u64, reserve_bytes: u64) -> u64 {
    let free = statvfs(folder).map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    let available = available_bytes().unwrap_or(u64::MAX);
    let memory = bytes.saturating_add(reserve_bytes).saturating_sub(available);
    bytes.saturating_sub(free).max(memory)
}

/// Verifies the store's own files of a model and maps them. They lie in the page cache, which shares them between
/// processes too, and drops them when memory is short.
///
/// # Errors
/// When an object is missing or damaged.
pub fn map(store: &Store, manifest: &Manifest) -> Result<Loaded, StoreError> {
    let maps = map_all(store, manifest)?;
    loaded(store, manifest, &maps, LoadFacts { read_bytes: manifest.bytes(), ..LoadFacts::default() })
}

/// An object, verified. One that is kept as a difference lies in no file, so it is put together in this process's own
/// memory: what it takes is the price of a start that found no room to share.
fn map_one(store: &Store, object: &Object) -> Result<FileMap, StoreError> {
    if let Some(map) = store.rebuilt(object)? {
        return Ok(FileMap::Own(map));
    }
    store.verify_object(object)?;
    let path = store.object_path(object.name());
    let file = File::open(&path).map_err(|error| StoreError::io("open", &path, error))?;
    // SAFETY: an object of the store, whole as was just seen; those are put in place whole and never changed.
    let map = unsafe { FileMap::new(&file, object.bytes() as usize) };
    map.map_err(|error| StoreError::io("map", &path, error))
}

/// On as many threads as loading has, since hashing is what takes time when the page cache has the files.
fn map_all(store: &Store, manifest: &Manifest) -> Result<Vec<Option<Arc<FileMap>>>, StoreError> {
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(4);
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    let maps: Vec<OnceLock<Arc<FileMap>>> = manifest.objects.iter().map(|_| OnceLock::new()).collect();
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let (Some(object), Some(place)) = (manifest.objects.get(index), maps.get(index)) else { return };
            match map_one(store, object) {
                Ok(map) => drop(place.set(Arc::new(map))),
                Err(error) => {
                    next.store(manifest.objects.len(), Ordering::Relaxed);
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        }
    };
    thread::scope(|scope| {
        (1..threads).for_each(|_| drop(thread::Builder::new().name("verify".into()).spawn_scoped(scope, work)));
        work();
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(maps.into_iter().map(OnceLock::into_inner).collect()),
    }
}
