//! A folder of ingested models: objects by their content, and one manifest for each model and layout.
//!
//! ```text
//! objects/ab/abcd...      named by content, never changed
//! models/REVISION.LAYOUT  a manifest; its coming and going is a model's
//! heads/REVISION/         what a checkpoint says beside its weights, see head.rs
//! staging/                what is being written
//! lock                    shared by those who add, exclusive to who takes away
//! ```

mod error;
mod head;
mod keep;
mod kept;
mod upkeep;

pub use error::StoreError;
pub(crate) use kept::Tuned;
pub(crate) use upkeep::whole_chunks;
pub use upkeep::{Damage, Freed};

use crate::{
    Checksum, Manifest, ManifestError, Object,
    disk::{Disk, Files},
    manifest,
};
use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// From the start of a process to its exec, at most, and how often a lock is tried meanwhile.
const EXEC_LIMIT: Duration = Duration::from_millis(500);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// An opened store. Cloning shares it.
#[derive(Clone)]
pub struct Store {
    root: PathBuf,
    pub(crate) disk: Arc<dyn Disk>,
}

impl Store {
    /// Opens a store, making its folders where they are not there yet.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        Self::open_on(root, Arc::new(Files))
    }

    /// A store whose changes go through `disk`.
    pub fn open_on(root: impl Into<PathBuf>, disk: Arc<dyn Disk>) -> Result<Self, StoreError> {
        let store = Self { root: root.into(), disk };
        for folder in [store.objects(), store.models(), store.staging()] {
            store.disk.make_folder(&folder).map_err(|source| StoreError::io("make the folder", &folder, source))?;
        }
        Ok(store)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn objects(&self) -> PathBuf {
        self.root.join("objects")
    }

    pub(crate) fn models(&self) -> PathBuf {
        self.root.join("models")
    }

    pub(crate) fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }

    /// Where an object lies when it is there.
    pub fn object_path(&self, name: Checksum) -> PathBuf {
        let name = name.to_string();
        self.objects().join(&name[..2]).join(name)
    }

    /// Where a model's manifest lies when it is there. Refuses names that are none.
    pub(crate) fn manifest_path(&self, revision: &str, layout: &str) -> Result<PathBuf, StoreError> {
        let named = |source| StoreError::Manifest { path: self.models(), source };
        manifest::check_name("revision", revision).map_err(named)?;
        manifest::check_name("layout", layout).map_err(named)?;
        Ok(self.models().join(format!("{revision}.{layout}")))
    }

    /// A model, if it has been ingested for that layout. Reads the manifest alone.
    pub fn manifest(&self, revision: &str, layout: &str) -> Result<Option<Manifest>, StoreError> {
        let path = self.manifest_path(revision, layout)?;
        let manifest = self.read_manifest(&path)?;
        let wrong = |manifest: &Manifest| manifest.revision != revision || manifest.layout != layout;
        match manifest {
            Some(manifest) if wrong(&manifest) => {
                let source = ManifestError::Name { what: "revision and layout are those of", name: manifest.revision };
                Err(StoreError::Manifest { path, source })
            }
            manifest => Ok(manifest),
        }
    }

    fn read_manifest(&self, path: &Path) -> Result<Option<Manifest>, StoreError> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::io("read", path, source)),
        };
        match Manifest::parse(&text) {
            Ok(manifest) => Ok(Some(manifest)),
            Err(source) => Err(StoreError::Manifest { path: path.to_owned(), source }),
        }
    }

    /// All models, by the names of their manifests. One that cannot be read is an error.
    pub fn manifests(&self) -> Result<Vec<Manifest>, StoreError> {
        let models = self.models();
        let mut paths = files(&models)?;
        paths.sort();
        let read = |path: &PathBuf| self.read_manifest(path).transpose();
        paths.iter().filter_map(read).collect()
    }

    /// Forgets a model; false when there was none. Its objects stay until [`Store::gc`].
    pub fn remove(&self, revision: &str, layout: &str) -> Result<bool, StoreError> {
        let path = self.manifest_path(revision, layout)?;
        match self.disk.remove(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(StoreError::io("remove", &path, source)),
        }
        self.disk.sync_folder(&self.models()).map_err(|source| StoreError::io("sync", &self.models(), source))?;
        Ok(true)
    }

    /// Whether an object's file is there, as long as it should be, or its difference is and its base. Reads none of them.
    pub(crate) fn seems_whole(&self, object: &Object) -> bool {
        kept::is_long(&self.object_path(object.name()), object.bytes()) || matches!(self.tuned(object), Ok(Some(_)))
    }

    /// The right to add objects, until it is dropped.
    pub(crate) fn adding(&self) -> Result<File, StoreError> {
        let path = self.root.join("lock");
        locked(&path, File::try_lock_shared)
    }

    /// The right to take objects away, until it is dropped.
    pub(crate) fn taking_away(&self) -> Result<File, StoreError> {
        let path = self.root.join("lock");
        locked(&path, File::try_lock)
    }
}

/// A lock that ends with the file, and so with the process. Nobody waits for who holds it, since that may take minutes; but
/// a process that is being started has the files of its parent until its exec, and so a lock that was given back already.
///
/// # Errors
/// [`StoreError::Busy`] when somebody else has it.
pub fn locked(path: &Path, lock: fn(&File) -> Result<(), TryLockError>) -> Result<File, StoreError> {
    let file = File::options().create(true).truncate(false).write(true).open(path);
    let file = file.map_err(|source| StoreError::io("open", path, source))?;
    let deadline = Instant::now() + EXEC_LIMIT;
    loop {
        match lock(&file) {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOOK_EVERY),
            Err(TryLockError::WouldBlock) => return Err(StoreError::Busy { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(StoreError::io("lock", path, source)),
        }
    }
}

/// What lies in a folder.
pub(crate) fn files(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let io = |source| StoreError::io("list", folder, source);
    let entries = fs::read_dir(folder).map_err(io)?;
    entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<_>>().map_err(io)
}
