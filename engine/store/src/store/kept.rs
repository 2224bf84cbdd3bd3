//! How an object lies on the disk: as it is, or as what it differs in from another.

use super::{Store, StoreError};
use crate::{
    Checksum, Object,
    difference::{Difference, Scratch},
    object::CHUNK_BYTES,
};
use memmap2::{Mmap, MmapMut};
use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// Ends the names of differences.
const DIFFERENCE: &str = "diff";

/// An object's difference and its base, both open.
pub(crate) struct Tuned {
    pub(crate) path: PathBuf,
    difference: Difference,
    /// The base's file; where its memory is, that is read instead.
    base: File,
    base_path: PathBuf,
}

impl Store {
    /// Where an object's difference lies when it is there.
    pub(crate) fn difference_path(&self, object: &Object) -> PathBuf {
        self.object_path(object.name()).with_added_extension(DIFFERENCE)
    }

    /// The difference that an object is kept as; none when it is kept as it is, or not at all.
    pub(crate) fn tuned(&self, object: &Object) -> Result<Option<Tuned>, StoreError> {
        if self.object_path(object.name()).exists() {
            return Ok(None);
        }
        let path = self.difference_path(object);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::io("open", &path, source)),
        };
        let read = |source| StoreError::io("read", &path, source);
        let difference = Difference::open(file, object).map_err(read)?;
        let base_path = self.object_path(difference.base);
        let base = match File::open(&base_path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Missing { path: base_path });
            }
            Err(source) => return Err(StoreError::io("open", &base_path, source)),
        };
        let found = base.metadata().map_err(|source| StoreError::io("read", &base_path, source))?.len();
        if found != object.bytes() {
            return Err(StoreError::Length { path: base_path, expected: object.bytes(), found });
        }
        Ok(Some(Tuned { path, difference, base, base_path }))
    }

    /// An object that is kept as a difference, put together in memory of this process's own; none when it is kept as it is.
    ///
    /// # Errors
    /// When it or its base is missing or damaged.
    pub fn rebuilt(&self, object: &Object) -> Result<Option<Mmap>, StoreError> {
        let Some(tuned) = self.tuned(object)? else { return Ok(None) };
        let memory = |source| StoreError::Thread { source };
        let mut map = MmapMut::map_anon(object.bytes() as usize).map_err(memory)?;
        tuned.chunks(object, None, |index, bytes| {
            let start = object.chunk_range(index).start as usize;
            map[start..start + bytes.len()].copy_from_slice(bytes);
            Ok(())
        })?;
        map.make_read_only().map(Some).map_err(memory)
    }

    /// What an object's files are: its own, or its difference's and its base's.
    pub(crate) fn object_files(&self, object: &Object) -> Vec<PathBuf> {
        match self.tuned(object) {
            Ok(Some(tuned)) => vec![tuned.path, tuned.base_path],
            Ok(None) => vec![self.object_path(object.name())],
            // Its base is not known, or gone.
            Err(_) => vec![self.object_path(object.name()), self.difference_path(object)],
        }
    }
}

impl Tuned {
    /// Which object's memory may be read in place of its file.
    pub(crate) fn base(&self) -> Checksum {
        self.difference.base
    }

    /// Gives each chunk, verified. `base` is the base's memory, where it is there.
    pub(crate) fn chunks(
        &self,
        object: &Object,
        base: Option<&[u8]>,
        mut give: impl FnMut(usize, &[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let (mut buffer, mut out) = (vec![0; CHUNK_BYTES as usize], vec![0; CHUNK_BYTES as usize]);
        let mut scratch = Scratch::new().map_err(|source| StoreError::Thread { source })?;
        for (index, expected) in object.chunks().iter().enumerate() {
            let range = object.chunk_range(index);
            let bytes = (range.end - range.start) as usize;
            let base = match base.and_then(|base| base.get(range.start as usize..range.end as usize)) {
                Some(base) => base,
                None => {
                    let read = self.base.read_exact_at(&mut buffer[..bytes], range.start);
                    read.map_err(|source| StoreError::io("read", &self.base_path, source))?;
                    &buffer[..bytes]
                }
            };
            let out = &mut out[..bytes];
            let made = self.difference.chunk(index, base, out, &mut scratch);
            made.map_err(|source| StoreError::io("read", &self.path, source))?;
            let found = Checksum::of(out);
            if found != *expected {
                return Err(self.damaged(range.start, *expected, found));
            }
            give(index, out)?;
        }
        Ok(())
    }

    fn damaged(&self, offset: u64, expected: Checksum, found: Checksum) -> StoreError {
        let (path, base) = (self.path.clone(), self.base_path.clone());
        StoreError::DamagedDifference { path, base, offset, expected, found }
    }
}

/// Whether a file is there, as long as it should be.
pub(crate) fn is_long(path: &Path, bytes: u64) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == bytes)
}
