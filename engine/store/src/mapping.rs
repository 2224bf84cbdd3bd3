//! The bytes of a checkpoint: a shared read-only map of the file, a segment of shared memory, or bytes that were made.

use crate::huge::FileMap;
use memmap2::{Advice, Mmap, MmapOptions, UncheckedAdvice};
use std::{fs::File, io, ops::Range, path::Path, sync::Arc};

/// Bytes that live as long as anyone holds a clone.
#[derive(Clone)]
pub(crate) enum Mapping {
    File(Arc<Mmap>),
    Memory(Arc<Vec<u8>>),
    /// An object of the store: in memory that other processes share and that outlives this one, where there is room.
    Segment(Arc<FileMap>),
}

impl Mapping {
    /// Maps a regular file; an empty one, which cannot be mapped, is no bytes.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        if meta.len() == 0 {
            return Ok(Self::Memory(Arc::new(Vec::new())));
        }
        // SAFETY: the map is private and read-only, and all reads are of plain bytes, for which every bit
        // pattern is valid. A checkpoint that is truncated in place while mapped raises SIGBUS, as in every
        // engine that maps weights; registered checkpoints are replaced by rename, never rewritten.
        let map = unsafe { MmapOptions::new().map(&file) }?;
        Ok(Self::File(Arc::new(map)))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::File(map) => map,
            Self::Segment(map) => map,
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

    /// Takes whole pages within `range` out of the process's memory. Failure costs memory alone.
    pub(crate) fn release(&self, range: Range<usize>) {
        // Larger pages only release less.
        const PAGE_BYTES: usize = 4096;
        let map = match self {
            Self::File(map) => map,
            Self::Segment(map) => match &**map {
                FileMap::Small(map) => map,
                FileMap::Large(_) | FileMap::Own(_) => return,
            },
            Self::Memory(_) => return,
        };
        let (start, end) = (range.start.next_multiple_of(PAGE_BYTES), range.end / PAGE_BYTES * PAGE_BYTES);
        if start < end {
            // SAFETY: the map is read-only and of a file, so pages that are dropped are read again with the same bytes.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start) };
        }
    }
}
