//! The registry's models in the store of the state folder: taken in when they are added, let go when no name stands for
//! them any more, verified and cleaned up when asked.
//!
//! What a registered model needs is in the store before the registry names it, and leaves only under a lock that
//! whoever adds shares, so that a kill between the two leaves bytes that `gc` finds, never a name without its bytes.

use crate::catalog::CatalogError;
use crate::registry::{ModelRecord, Registry};
use engine_store::{Checkpoint, Damage, Freed, Packer, Progress, Segments, Store, StoreError};
use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Name of the store in the state folder.
const STORE_FOLDER: &str = "store";
const LOCK_FILE: &str = "models.lock";
/// Longest wait for another process that adds the same model.
const WAIT: Duration = Duration::from_secs(1800);
const PAUSE: Duration = Duration::from_millis(100);

/// The store's folder of a state folder.
pub fn store_root(state_dir: &Path) -> PathBuf {
    state_dir.join(STORE_FOLDER)
}

/// How far taking a model in has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taking {
    /// The source is being read to know what it is.
    Reading,
    /// Another process adds the same model.
    Waiting,
    Storing(Progress),
}

/// A state folder's store. Cloning shares it.
#[derive(Clone)]
pub struct ModelStore {
    root: PathBuf,
    segments: PathBuf,
    packer: Arc<dyn Packer + Send + Sync>,
}

impl ModelStore {
    /// Nothing is made before it is needed. `segments` is where engines share weights in memory.
    pub fn new(state_dir: &Path, segments: PathBuf, packer: Arc<dyn Packer + Send + Sync>) -> Self {
        Self { root: store_root(state_dir), segments, packer }
    }

    /// The store's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether a model can be in the store: other engines read files of their own formats, and encoders are mapped as
    /// they lie.
    pub fn takes(&self, record: &ModelRecord) -> bool {
        record.engine.is_none() && !record.is_encoder()
    }

    /// The right to name models of the store in the registry, until it is dropped.
    pub(crate) fn adding(&self) -> Result<File, StoreError> {
        self.lock(File::try_lock_shared)
    }

    fn lock(&self, lock: fn(&File) -> Result<(), TryLockError>) -> Result<File, StoreError> {
        let store = Store::open(&self.root)?;
        engine_store::locked(&store.root().join(LOCK_FILE), lock)
    }

    /// Takes an examined model in, unless it is there. Call it under [`Self::adding`].
    ///
    /// # Errors
    /// When the source changes meanwhile, or the store cannot be written: then nothing is visible of it, and the same
    /// call goes on where this one stopped.
    pub(crate) fn take_in(&self, record: &ModelRecord, told: &mut dyn FnMut(Taking)) -> Result<(), CatalogError> {
        let store = Store::open(&self.root)?;
        store.keep_head(&record.path, &record.revision)?;
        let checkpoint = Checkpoint::open(&record.path, record.quantise)
            .map_err(|source| CatalogError::Checkpoint { path: record.path.clone(), source })?;
        waiting(told, |told| {
            let mut progress = |progress| told(Taking::Storing(progress));
            store.ingest(&checkpoint, &record.revision, &*self.packer, &mut progress)
        })?;
        let describe = |source| CatalogError::File { path: record.path.clone(), source };
        let stamp = engine_store::stamp(&record.path).map_err(describe)?;
        if (stamp.bytes, stamp.modified_unix_ns) != (record.file_bytes, record.modified_unix_ns) {
            return Err(describe(io::Error::other("it changed while it was added; add it again")));
        }
        Ok(())
    }

    /// Lets a revision go that no registered model stands for any more: its manifest, and its memory once the last
    /// engine has unmapped it. What it has on disk stays until [`Self::gc`]. While somebody adds a model nothing is
    /// done, and `gc` does it later.
    ///
    /// # Errors
    /// When the registry or the store cannot be read or written.
    pub fn let_go(&self, registry: &Registry, revision: &str) -> Result<(), CatalogError> {
        if !self.root.exists() {
            return Ok(());
        }
        let _taking_away = match self.lock(File::try_lock) {
            Err(StoreError::Busy { .. }) => return Ok(()),
            lock => lock?,
        };
        if registry.models()?.iter().any(|model| model.head.is_some() && model.revision == revision) {
            return Ok(());
        }
        let gone = Store::open(&self.root)?.forget(revision, self.packer.layout())?;
        if let (false, Ok(segments)) = (gone.is_empty() || !self.segments.exists(), Segments::open(&self.segments)) {
            for name in gone {
                segments.discard(name);
            }
        }
        Ok(())
    }

    /// Reads every byte of a model and answers what is wrong, a line each. `checked` is told of bytes as they are
    /// read.
    ///
    /// # Errors
    /// When the store cannot be read at all.
    pub fn verify(&self, record: &ModelRecord, checked: impl FnMut(u64)) -> Result<Vec<String>, StoreError> {
        let store = Store::open(&self.root)?;
        let mut wrong: Vec<String> =
            store.verify_head(&record.revision).err().iter().map(ToString::to_string).collect();
        match store.manifest(&record.revision, self.packer.layout()) {
            Ok(Some(manifest)) => wrong.extend(store.verify(&manifest, checked).iter().map(describe)),
            Ok(None) => wrong.push("its manifest is missing; add the model again".to_owned()),
            Err(error) => wrong.push(error.to_string()),
        }
        Ok(wrong)
    }

    /// Removes from the store what no registered model needs.
    ///
    /// # Errors
    /// [`StoreError::Busy`] while a model is being added; and when something cannot be read, since it may need anything.
    pub fn gc(&self, registry: &Registry) -> Result<Freed, CatalogError> {
        if !self.root.exists() {
            return Ok(Freed::default());
        }
        let _taking_away = self.lock(File::try_lock)?;
        let models = registry.models()?;
        let kept: BTreeSet<String> =
            models.into_iter().filter(|model| model.head.is_some()).map(|model| model.revision).collect();
        Ok(Store::open(&self.root)?.keep_only(&kept)?)
    }
}

fn describe(damage: &Damage) -> String {
    let tensors = damage.tensors.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = if damage.tensors.len() > 3 { ", ..." } else { "" };
    format!("{} (it holds {tensors}{more})", damage.error)
}

/// Does the work again as long as another process is at it.
fn waiting<T>(
    told: &mut dyn FnMut(Taking),
    mut work: impl FnMut(&mut dyn FnMut(Taking)) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let begun = Instant::now();
    loop {
        match work(told) {
            Err(StoreError::Busy { .. }) if begun.elapsed() < WAIT => {
                told(Taking::Waiting);
                std::thread::sleep(PAUSE);
            }
            outcome => return outcome,
        }
    }
}
