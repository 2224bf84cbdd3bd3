//! Tensors that a fine-tune has changed, kept as differences from its base's where that takes less room.

use super::{Group, ObjectWriter};
use crate::{
    Checkpoint, Checksum, Manifest, Object, PackedTensor, Packer, Store, StoreError,
    difference::{Differ, Unit},
    disk::Sink,
    object::CHUNK_BYTES,
};
use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

/// A difference of more of an object than this is not worth that its base must be read, too.
const WORTH: f64 = 0.9;

impl Store {
    /// The model in the store that a checkpoint seems to be a fine-tune of: one whose tensors are of the same names, types
    /// and shapes, kept without differences; of several, the one that came first. None when there is none.
    pub fn base_of(&self, checkpoint: &Checkpoint, layout: &str) -> Result<Option<Manifest>, StoreError> {
        let shapes: BTreeSet<_> = checkpoint.tensors().map(|tensor| (tensor.name, tensor.kind, tensor.dims)).collect();
        let is_alike = |manifest: &Manifest| {
            manifest.layout == layout
                && manifest.tensors.len() == shapes.len()
                && manifest.tensors.iter().all(|t| shapes.contains(&(t.name.as_str(), t.kind, t.dims.as_slice())))
                && manifest.objects.iter().all(|object| self.object_path(object.name()).exists())
        };
        let alike = self.manifests()?.into_iter().filter(is_alike);
        let came = |manifest: &Manifest| {
            let path = self.manifest_path(&manifest.revision, layout).ok();
            path.and_then(|path| std::fs::metadata(path).ok()?.modified().ok())
        };
        Ok(alike.min_by_key(|manifest| (came(manifest).is_none(), came(manifest))))
    }

    /// Writes an object as its difference from the base's object of the same tensors. None when there is no such object, or too
    /// little is gained; nothing is left then.
    pub(super) fn take_in_difference(
        &self,
        checkpoint: &Checkpoint,
        (group, object): (&Group<'_>, &Object),
        packer: &dyn Packer,
        base: &Manifest,
        part: &Path,
    ) -> Result<Option<u64>, StoreError> {
        let found = group.matrices().and_then(|(tensors, kind)| Some((kind, base_object(base, tensors)?)));
        let Some((kind, base)) = found else { return Ok(None) };
        let path = self.object_path(base.name());
        // Kept as a difference itself, or gone: then this one is kept as it is.
        let Ok(file) = File::open(&path) else { return Ok(None) };
        let write = |source| StoreError::io("write", part, source);
        let limit_bytes = (object.bytes() as f64 * WORTH) as u64;
        let differ = Differ::new(Unit::of(kind)).map_err(write)?;
        let state = Arc::new(Mutex::new(State { differ, is_worth: base.bytes() == object.bytes() }));
        let sink = self.disk.write_after(part, 0).map_err(write)?;
        let sink = DifferenceSink { sink, file, base: base.clone(), limit_bytes, state: Arc::clone(&state) };
        let (written, _) = group.pack(checkpoint, packer, ObjectWriter::new(Box::new(sink), 0), part)?;
        if written != *object {
            return Err(StoreError::Changed { tensor: group.name().to_owned() });
        }
        // The sink is gone, and with it the other share.
        let state = Arc::try_unwrap(state).map_err(|_| write(io::ErrorKind::Other.into()))?;
        let State { differ, is_worth } = state.into_inner().unwrap_or_else(PoisonError::into_inner);
        if !is_worth {
            return self.disk.remove(part).map(|()| None).map_err(|source| StoreError::io("remove", part, source));
        }
        let frames = differ.bytes();
        let trailer = differ.trailer(object.name(), base.name());
        let append = || -> io::Result<()> {
            let mut sink = self.disk.write_after(part, frames)?;
            sink.write_all(&trailer)?;
            sink.sync()
        };
        append().map_err(write)?;
        let path = self.difference_path(object);
        let folder = path.parent().unwrap_or(&path);
        self.disk.make_folder(folder).map_err(|source| StoreError::io("make the folder", folder, source))?;
        self.disk.rename(part, &path).map_err(|source| StoreError::io("name", &path, source))?;
        Ok(Some(frames + trailer.len() as u64))
    }
}

/// The object that holds the base's tensors of those names, and nothing else: where one holds more, it is longer.
fn base_object<'a>(base: &'a Manifest, tensors: &[crate::TensorShape<'_>]) -> Option<&'a Object> {
    let find = |tensor: &crate::TensorShape<'_>| {
        let is_same = |t: &&PackedTensor| t.name == tensor.name && t.kind == tensor.kind && t.dims == tensor.dims;
        base.tensors.iter().find(is_same).map(|found| found.object)
    };
    let object = find(tensors.first()?)?;
    let is_one = tensors.iter().all(|tensor| find(tensor) == Some(object));
    is_one.then(|| base.objects.get(object)).flatten()
}

struct State {
    differ: Differ,
    is_worth: bool,
}

/// Takes an object's chunks, one a call, and writes frames until they are not worth it.
struct DifferenceSink {
    sink: Box<dyn Sink>,
    file: File,
    base: Object,
    limit_bytes: u64,
    state: Arc<Mutex<State>>,
}

impl DifferenceSink {
    fn frame(&self, tuned: &[u8], state: &mut State) -> io::Result<Option<Vec<u8>>> {
        let index = state.differ.chunks();
        let range = self.base.chunk_range(index);
        let mut base = vec![0; tuned.len()];
        let is_there = range.end.saturating_sub(range.start) == tuned.len() as u64
            && self.file.read_exact_at(&mut base, range.start).is_ok();
        // A difference from a damaged base would be damaged when that is mended.
        if !is_there || self.base.chunks().get(index) != Some(&Checksum::of(&base)) {
            return Ok(None);
        }
        let frame = state.differ.frame(&base, tuned)?;
        Ok((state.differ.bytes() <= self.limit_bytes).then_some(frame))
    }
}

impl Write for DifferenceSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        debug_assert!(bytes.len() as u64 <= CHUNK_BYTES);
        let state = Arc::clone(&self.state);
        // A thread that panicked leaves the rest as it was.
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_worth {
            match self.frame(bytes, &mut state)? {
                Some(frame) => self.sink.write_all(&frame)?,
                None => state.is_worth = false,
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

impl Sink for DifferenceSink {
    fn sync(&mut self) -> io::Result<()> {
        // Synced with its trailer.
        Ok(())
    }
}
