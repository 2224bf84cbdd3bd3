//! A checkpoint is taken into the store once: read, laid out, cut, hashed and written, so that loading it is nothing but
//! reading. Content addresses make it resumable and let fine-tunes share: an object that is there is not written
//! again, whichever ingestion brought it, and one half written goes on after its last good chunk.
//!
//! Order makes it atomic. An object is synced before it gets its name, names are synced before the manifest is written,
//! and the manifest gets its own name last, so a kill or a loss of power leaves a whole model or none.

mod group;
mod tune;
mod writer;

use crate::{
    Checkpoint, Checksum, Manifest, Object, PackedTensor, Packer, Store, StoreError, disk::Sink, object::CHUNK_BYTES,
    store::locked,
};
use group::{Group, groups};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};
use writer::ObjectWriter;

/// How far an ingestion is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of all tensors, as they are before they are laid out.
    pub total_bytes: u64,
    /// Of these, done.
    pub done_bytes: u64,
    /// Bytes written to the store.
    pub written_bytes: u64,
    /// Bytes of objects that were there already, verified.
    pub shared_bytes: u64,
    /// Bytes of new objects that differences from a base did not need.
    pub saved_bytes: u64,
}

impl Store {
    /// Takes a checkpoint in. `revision` is what [`crate::revision`] says of it. Does nothing when the model is there already.
    ///
    /// # Errors
    /// Whatever happens, the model is there as a whole or not at all, and the same call goes on where this one stopped.
    pub fn ingest(
        &self,
        checkpoint: &Checkpoint,
        revision: &str,
        packer: &dyn Packer,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Manifest, StoreError> {
        self.ingest_tune(checkpoint, revision, packer, None, progress)
    }

    /// The same for a fine-tune of a model in the store, such as [`Store::base_of`] finds: what it has changed is kept as
    /// differences from `base`, where that takes less room. Loading it then costs reading the base too, where that is not
    /// in memory.
    ///
    /// # Errors
    /// As [`Store::ingest`].
    pub fn ingest_tune(
        &self,
        checkpoint: &Checkpoint,
        revision: &str,
        packer: &dyn Packer,
        base: Option<&Manifest>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Manifest, StoreError> {
        let path = self.manifest_path(revision, packer.layout())?;
        let _adding = self.adding()?;
        let part = self.staging().join(path.file_name().unwrap_or_default());
        let _mine = locked(&part.with_added_extension("lock"), File::try_lock)?;
        // One that cannot be read is written anew.
        let there = self.manifest(revision, packer.layout()).ok().flatten();
        if let Some(manifest) = there.filter(|manifest| manifest.objects.iter().all(|object| self.seems_whole(object)))
        {
            return Ok(manifest);
        }
        let total_bytes = checkpoint.tensors().map(|tensor| tensor.bytes()).sum();
        let mut progress = Told { now: Progress { total_bytes, ..Progress::default() }, tell: progress };
        let mut manifest = Manifest {
            revision: revision.to_owned(),
            layout: packer.layout().to_owned(),
            objects: Vec::new(),
            tensors: Vec::new(),
        };
        let mut places: BTreeMap<Checksum, usize> = BTreeMap::new();
        for group in groups(checkpoint) {
            let (object, tensors) = self.take_in(checkpoint, &group, packer, (base, &part), &mut progress)?;
            let index = *places.entry(object.name()).or_insert(manifest.objects.len());
            if index == manifest.objects.len() {
                manifest.objects.push(object);
            }
            manifest.tensors.extend(tensors.into_iter().map(|tensor| PackedTensor { object: index, ..tensor }));
            progress.add(|now| now.done_bytes += group.bytes());
        }
        self.publish(&manifest, &path, &part)?;
        Ok(manifest)
    }

    /// Brings one object in, unless it is there.
    fn take_in(
        &self,
        checkpoint: &Checkpoint,
        group: &Group<'_>,
        packer: &dyn Packer,
        (base, part): (Option<&Manifest>, &Path),
        progress: &mut Told<'_>,
    ) -> Result<(Object, Vec<PackedTensor>), StoreError> {
        // Hashed before anything is written: most of a fine-tune is there, and what a killed process wrote can be told
        // from what it did not finish.
        let (object, tensors) = group.pack(checkpoint, packer, ObjectWriter::new(Box::new(Nowhere), 0), self.root())?;
        let path = self.object_path(object.name());
        if self.verify_object(&object).is_ok() {
            progress.add(|now| now.shared_bytes += object.bytes());
            return Ok((object, tensors));
        }
        let part = part.with_added_extension(object.name().to_string());
        if let Some(base) = base {
            let (what, part) = ((group, &object), part.with_added_extension("diff"));
            if let Some(bytes) = self.take_in_difference(checkpoint, what, packer, base, &part)? {
                let saved = object.bytes().saturating_sub(bytes);
                progress.add(|now| {
                    (now.written_bytes, now.saved_bytes) = (now.written_bytes + bytes, now.saved_bytes + saved)
                });
                return Ok((object, tensors));
            }
        }
        let keep_bytes = keep_bytes(&part, &object);
        let sink = self.disk.write_after(&part, keep_bytes).map_err(|source| StoreError::io("write", &part, source))?;
        let (written, _) = group.pack(checkpoint, packer, ObjectWriter::new(sink, keep_bytes), &part)?;
        if written != object {
            return Err(StoreError::Changed { tensor: group.name().to_owned() });
        }
        let folder = path.parent().unwrap_or(&path);
        self.disk.make_folder(folder).map_err(|source| StoreError::io("make the folder", folder, source))?;
        self.disk.rename(&part, &path).map_err(|source| StoreError::io("name", &path, source))?;
        progress.add(|now| now.written_bytes += object.bytes() - keep_bytes);
        Ok((object, tensors))
    }

    /// Makes the model visible, once all that it needs will last.
    fn publish(&self, manifest: &Manifest, path: &Path, part: &Path) -> Result<(), StoreError> {
        let parent = |path: PathBuf| path.parent().map(Path::to_owned).unwrap_or_default();
        let paths = manifest.objects.iter().map(|object| parent(self.object_path(object.name())));
        // An interrupted ingestion may have named objects whose names were never synced, so all folders are.
        let folders: BTreeSet<PathBuf> = paths.chain([self.objects()]).collect();
        for folder in &folders {
            self.disk.sync_folder(folder).map_err(|source| StoreError::io("sync", folder, source))?;
        }
        let text = manifest.to_text();
        // What nobody could read must not become visible.
        Manifest::parse(text.as_bytes()).map_err(|source| StoreError::Manifest { path: path.to_owned(), source })?;
        let write = || -> io::Result<()> {
            let mut sink = self.disk.write_after(part, 0)?;
            sink.write_all(text.as_bytes())?;
            sink.sync()
        };
        write().map_err(|source| StoreError::io("write", part, source))?;
        self.disk.rename(part, path).map_err(|source| StoreError::io("name", path, source))?;
        self.disk.sync_folder(&self.models()).map_err(|source| StoreError::io("sync", &self.models(), source))
    }
}

/// Bytes at the beginning of a file half written that are the object's.
fn keep_bytes(part: &Path, object: &Object) -> u64 {
    let whole = crate::store::whole_chunks(part, object).map_or(0, |whole| whole.chunks as u64);
    (whole * CHUNK_BYTES).min(object.bytes())
}

/// Progress, and who hears of it.
struct Told<'a> {
    now: Progress,
    tell: &'a mut dyn FnMut(Progress),
}

impl Told<'_> {
    fn add(&mut self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.now);
        (self.tell)(self.now);
    }
}

/// Where bytes go that are only hashed.
struct Nowhere;

impl Write for Nowhere {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink for Nowhere {
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}
