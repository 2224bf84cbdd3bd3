//! Hands chunks out to the threads that read them, in the order of a forward pass, and takes them back verified.

use crate::{Checksum, Object, Segments, Store, StoreError, segment::Part};
use rustix::{fs::OFlags, io::Errno};
use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// What is to be read.
pub(super) struct Feed<'a> {
    store: &'a Store,
    segments: &'a Segments,
    left: Mutex<std::vec::IntoIter<&'a Object>>,
    direct: AtomicBool,
    stopped: AtomicBool,
}

/// The object that a thread is at, and its next chunk. Each has its own: a file takes one write at a time.
pub(super) type Place<'a> = Option<(Arc<Job<'a>>, usize)>;

/// An object on its way.
pub(super) struct Job<'a> {
    object: &'a Object,
    path: PathBuf,
    file: File,
    part: Part,
}

/// A chunk on its way. Dropped before it is finished, its object never can be found.
pub(super) struct Chunk<'a> {
    job: Arc<Job<'a>>,
    index: usize,
}

impl<'a> Feed<'a> {
    pub(super) fn new(store: &'a Store, segments: &'a Segments, objects: Vec<&'a Object>, direct: bool) -> Self {
        let left = Mutex::new(objects.into_iter());
        Self { store, segments, left, direct: direct.into(), stopped: false.into() }
    }

    /// The chunk after `place`. None when there is no more, or somebody has failed.
    pub(super) fn next(&self, place: &mut Place<'a>) -> Result<Option<Chunk<'a>>, StoreError> {
        if self.stopped.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let (job, index) = match place.take() {
            Some(place) => place,
            None => {
                // A thread that panicked leaves the rest as it was.
                let object = self.left.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(object) = object else { return Ok(None) };
                (Arc::new(self.open(object)?), 0)
            }
        };
        if index + 1 < job.object.chunks().len() {
            *place = Some((job.clone(), index + 1));
        }
        Ok(Some(Chunk { job, index }))
    }

    fn open(&self, object: &'a Object) -> Result<Job<'a>, StoreError> {
        let path = self.store.object_path(object.name());
        let mut file = Err(Errno::INVAL.into());
        if self.is_direct() {
            let flags = OFlags::DIRECT.bits() as i32;
            file = File::options().read(true).custom_flags(flags).open(&path);
        }
        if file.as_ref().is_err_and(is_refusal) {
            self.direct.store(false, Ordering::Relaxed);
            file = File::open(&path);
        }
        let file = match file {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(StoreError::Missing { path }),
            Err(source) => return Err(StoreError::io("open", &path, source)),
        };
        let found = file.metadata().map_err(|source| StoreError::io("read", &path, source))?.len();
        if found != object.bytes() {
            return Err(StoreError::Length { path, expected: object.bytes(), found });
        }
        let part = self.segments.begin(object)?;
        Ok(Job { object, path, file, part })
    }

    /// Whether files are read past the page cache.
    pub(super) fn is_direct(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
    }

    /// Nothing is handed out from now on.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Stops the others when `work` fails.
    pub(super) fn stopping(&self, work: impl FnOnce() -> Result<(), StoreError>) -> Result<(), StoreError> {
        work().inspect_err(|_| self.stop())
    }
}

/// Whether a file system has said that it does not do direct I/O, or not like this.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::OPNOTSUPP))
}

impl Chunk<'_> {
    pub(super) fn file(&self) -> &File {
        &self.job.file
    }

    pub(super) fn offset(&self) -> u64 {
        self.job.object.chunk_range(self.index).start
    }

    /// Bytes of it.
    pub(super) fn len(&self) -> usize {
        let range = self.job.object.chunk_range(self.index);
        (range.end - range.start) as usize
    }

    /// Reads it here and now.
    pub(super) fn fill(&self, bytes: &mut [u8]) -> Result<(), StoreError> {
        match self.job.file.read_exact_at(bytes, self.offset()) {
            Err(error) if is_refusal(&error) => self.fill_through_cache(bytes),
            read => read.map_err(|error| self.failed(error)),
        }
    }

    /// The same through the page cache, which no file system refuses.
    pub(super) fn fill_through_cache(&self, bytes: &mut [u8]) -> Result<(), StoreError> {
        let read = File::open(&self.job.path).and_then(|file| file.read_exact_at(bytes, self.offset()));
        read.map_err(|error| self.failed(error))
    }

    pub(super) fn failed(&self, source: io::Error) -> StoreError {
        StoreError::io("read", &self.job.path, source)
    }

    /// Where it may be read to in its segment, which lives as long as the chunk; none where it is to be read elsewhere.
    pub(super) fn place(&self) -> Option<*mut u8> {
        self.job.part.place(self.job.object, self.index)
    }

    /// Verifies what was read of it elsewhere, and puts it into its segment.
    pub(super) fn finish(&self, bytes: &[u8]) -> Result<(), StoreError> {
        self.verify(bytes)?;
        self.job.part.write(self.job.object, self.index, bytes)
    }

    /// What was read of it at its place has been verified.
    pub(super) fn finish_in_place(&self) -> Result<(), StoreError> {
        self.job.part.filled(self.job.object)
    }

    /// Compares what was read of it with its checksum.
    ///
    /// # Errors
    /// When it is damaged.
    pub(super) fn verify(&self, bytes: &[u8]) -> Result<(), StoreError> {
        let Job { object, path, .. } = &*self.job;
        let (expected, found) = (object.chunks()[self.index], Checksum::of(bytes));
        match found == expected {
            true => Ok(()),
            false => Err(StoreError::Damaged { path: path.clone(), offset: self.offset(), expected, found }),
        }
    }
}
