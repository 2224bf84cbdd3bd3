//! Looking after a store: whether its bytes are still those that were written, and removing what no model needs.

use super::{Store, StoreError, files};
use crate::{
    Checksum, Manifest, Object,
    object::{BLOCK_BYTES, CHUNK_BYTES},
};
use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// An object that is not as it was written.
#[derive(Debug)]
pub struct Damage {
    /// Of the manifest's objects.
    pub object: usize,
    /// Tensors that lie in it.
    pub tensors: Vec<String>,
    pub error: StoreError,
}

/// What [`Store::gc`] has removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    pub files: u64,
    pub bytes: u64,
}

impl Store {
    /// Reads every byte of a model and tells what is not as it was written. `checked` is told of bytes as they
    /// are read.
    pub fn verify(&self, manifest: &Manifest, mut checked: impl FnMut(u64)) -> Vec<Damage> {
        let mut damages = Vec::new();
        for (index, object) in manifest.objects.iter().enumerate() {
            let Err(error) = self.verify_object(object) else {
                checked(object.bytes());
                continue;
            };
            let inside = manifest.tensors.iter().filter(|tensor| tensor.object == index);
            damages.push(Damage { object: index, tensors: inside.map(|tensor| tensor.name.clone()).collect(), error });
        }
        damages
    }

    /// Removes an object's file, and its difference, for instance a damaged one: adding the model again writes it anew.
    pub fn discard(&self, object: &Object) -> Result<(), StoreError> {
        let _lock = self.taking_away()?;
        for path in [self.object_path(object.name()), self.difference_path(object)] {
            match self.disk.remove(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io("remove", &path, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(crate) fn verify_object(&self, object: &Object) -> Result<(), StoreError> {
        if let Some(tuned) = self.tuned(object)? {
            return tuned.chunks(object, None, |_, _| Ok(()));
        }
        let path = self.object_path(object.name());
        let found = match std::fs::metadata(&path) {
            Ok(meta) => meta.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(StoreError::Missing { path }),
            Err(source) => return Err(StoreError::io("read", &path, source)),
        };
        if found != object.bytes() {
            return Err(StoreError::Length { path, expected: object.bytes(), found });
        }
        let whole = whole_chunks(&path, object)?;
        match object.chunks().get(whole.chunks) {
            None => Ok(()),
            Some(expected) => {
                let offset = object.chunk_range(whole.chunks).start;
                Err(StoreError::Damaged { path, offset, expected: *expected, found: whole.next })
            }
        }
    }

    /// Removes objects that no model needs and what interrupted ingestions left. Nothing is removed while a model is
    /// being added, nor when a manifest cannot be read, since it may need anything.
    pub fn gc(&self) -> Result<Freed, StoreError> {
        let _lock = self.taking_away()?;
        let manifests = self.manifests()?;
        let objects = manifests.iter().flat_map(|manifest| &manifest.objects);
        let needed: BTreeSet<PathBuf> = objects.flat_map(|object| self.object_files(object)).collect();
        let mut freed = Freed::default();
        for folder in files(&self.objects())? {
            for path in files(&folder)?.into_iter().filter(|path| !needed.contains(path)) {
                self.free(&path, &mut freed)?;
            }
        }
        for path in files(&self.staging())? {
            self.free(&path, &mut freed)?;
        }
        Ok(freed)
    }

    fn free(&self, path: &Path, freed: &mut Freed) -> Result<(), StoreError> {
        let bytes = std::fs::metadata(path).map_or(0, |meta| meta.len());
        self.disk.remove(path).map_err(|source| StoreError::io("remove", path, source))?;
        freed.files += 1;
        freed.bytes += bytes;
        Ok(())
    }
}

/// How much of an object's beginning a file holds.
pub(crate) struct Whole {
    /// Chunks that are as they should be.
    pub(crate) chunks: usize,
    /// Checksum of what follows them.
    next: Checksum,
}

/// Reads a file as far as it is the object.
pub(crate) fn whole_chunks(path: &Path, object: &Object) -> Result<Whole, StoreError> {
    let io = |source| StoreError::io("read", path, source);
    let mut file = File::open(path).map_err(io)?;
    // A hint only: without it the kernel reads ahead less.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Sequential);
    let mut buffer = Vec::with_capacity((CHUNK_BYTES + BLOCK_BYTES) as usize);
    for (index, expected) in object.chunks().iter().enumerate() {
        let range = object.chunk_range(index);
        buffer.clear();
        Read::by_ref(&mut file).take(range.end - range.start).read_to_end(&mut buffer).map_err(io)?;
        let next = Checksum::of(&buffer);
        if next != *expected {
            return Ok(Whole { chunks: index, next });
        }
    }
    Ok(Whole { chunks: object.chunks().len(), next: Checksum::of(&[]) })
}
