//! The bytes of a checkpoint: a shared read-only map of the file, or bytes given by a test.

use crate::GgufError;
use memmap2::{Advice, Mmap, MmapOptions};
use std::{fs::File, path::Path, sync::Arc};

/// Bytes that live as long as anyone holds a clone.
#[derive(Clone)]
pub(crate) enum Mapping {
    File(Arc<Mmap>),
    Memory(Arc<Vec<u8>>),
}

impl Mapping {
    pub(crate) fn open(path: &Path) -> Result<Self, GgufError> {
        let io = |source| GgufError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        if !meta.is_file() {
            return Err(io(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")));
        }
        if meta.len() == 0 {
            return Err(GgufError::Truncated { field: "magic".into(), offset: 0, needed: 4, available: 0 });
        }
        // SAFETY: the map is private and read-only, and all reads are of plain bytes, for which every bit
        // pattern is valid. A checkpoint that is truncated in place while mapped raises SIGBUS, as in every
        // engine that maps weights; registered checkpoints are replaced by rename, never rewritten.
        let map = unsafe { MmapOptions::new().map(&file) }.map_err(io)?;
        Ok(Self::File(Arc::new(map)))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::File(map) => map,
            Self::Memory(bytes) => bytes,
        }
    }

    /// Asks the kernel to start reading the whole file now. Only a hint: failure costs speed alone.
    pub(crate) fn will_need(&self) {
        if let Self::File(map) = self {
            let _ = map.advise(Advice::WillNeed);
        }
    }

    /// Reads the whole file and maps its pages, on a thread of its own. Failure costs speed alone.
    pub(crate) fn populate(&self) {
        let Self::File(map) = self else { return };
        let map = map.clone();
        let _ = std::thread::Builder::new().name("populate".into()).spawn(move || {
            // Linux before 5.14 does not know it; then reading ahead has to do.
            map.advise(Advice::PopulateRead).or_else(|_| map.advise(Advice::WillNeed))
        });
    }
}
