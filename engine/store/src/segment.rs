//! Weights in memory that outlive whoever read them: one file per object in a memory file system, found again by the
//! object's name, and mapped read-only by any number of engines. Models that share an object share its memory.
//!
//! A segment gets its name when every byte of it is verified, and can no longer be written from then on. So whoever
//! finds one need not read it, and adopting a model costs no more for being large.

use crate::{
    Checksum, Object, StoreError,
    huge::{FileMap, Filling},
    store::files,
};
use rustix::{
    fs::{CWD, Mode, RenameFlags, Timespec, Timestamps, UTIME_NOW, fchmod, futimens, renameat_with},
    io::Errno,
    process::geteuid,
};
use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

/// Of files that are being filled.
const PART: &str = "part";

/// A folder of segments.
#[derive(Clone, Debug)]
pub struct Segments {
    folder: PathBuf,
}

impl Segments {
    /// Where segments lie unless told otherwise: in memory, apart for each user.
    pub fn default_folder() -> PathBuf {
        PathBuf::from(format!("/dev/shm/foreshock-{}", geteuid().as_raw()))
    }

    /// Opens a folder, making it where it is not there yet. It must be this user's alone: what lies in it is believed.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let folder = folder.into();
        match DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(StoreError::io("make the folder", &folder, error));
            }
            _ => {}
        }
        let meta = fs::symlink_metadata(&folder).map_err(|source| StoreError::io("read", &folder, source))?;
        if !meta.is_dir() || meta.uid() != geteuid().as_raw() || meta.mode() & 0o077 != 0 {
            return Err(StoreError::Shared { folder });
        }
        Ok(Self { folder })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn path(&self, name: Checksum) -> PathBuf {
        self.folder.join(name.to_string())
    }

    /// An object's memory, if somebody has read it.
    pub(crate) fn find(&self, object: &Object) -> Result<Option<Arc<FileMap>>, StoreError> {
        self.find_named(object.name(), object.bytes())
    }

    /// The memory of the object of that name, which has so many bytes.
    pub(crate) fn find_named(&self, name: Checksum, bytes: u64) -> Result<Option<Arc<FileMap>>, StoreError> {
        let path = self.path(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::io("open", &path, source)),
        };
        let found = file.metadata().map_err(|source| StoreError::io("read", &path, source))?.len();
        if found != bytes {
            return Err(StoreError::Length { path, expected: bytes, found });
        }
        // A hint for who discards segments: this one is in use.
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let _ = futimens(&file, &Timestamps { last_access: now, last_modification: now });
        // SAFETY: the file is in a folder of this user's alone, whole, and of mode 400 since it has its name: nobody
        // writes or cuts it. Removing it leaves the memory to those who have it mapped.
        let map = unsafe { FileMap::new(&file, bytes as usize) };
        map.map(|map| Some(Arc::new(map))).map_err(|source| StoreError::io("map", &path, source))
    }

    /// Memory for an object, to be filled.
    pub(crate) fn begin(&self, object: &Object) -> Result<Part, StoreError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(format!("{}.{}-{number}.{PART}", object.name(), process::id()));
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(|source| StoreError::io("make", &path, source))?;
        let missing = AtomicUsize::new(object.chunks().len());
        let mut part = Part { file, path, missing, segments: self.clone(), filling: None };
        // Held until the file is closed: a part that can be locked is one whose process is gone.
        part.file.lock().map_err(|source| StoreError::io("lock", &part.path, source))?;
        part.file.set_len(object.bytes()).map_err(|source| StoreError::io("lengthen", &part.path, source))?;
        // Where there are none, pages of 4 KiB do.
        part.filling = Filling::new(&part.file, object.bytes() as usize).ok();
        Ok(part)
    }

    /// Removes what processes left that died while filling.
    pub fn sweep(&self) -> Result<(), StoreError> {
        for path in files(&self.folder)? {
            // A living one may have made its part and not locked it yet; one in another container has another number.
            let is_left = path.extension() == Some(OsStr::new(PART)) && !maker_lives(&path);
            if is_left && File::open(&path).is_ok_and(|file| file.try_lock().is_ok()) {
                // Another who sweeps may have been faster.
                let _ = fs::remove_file(&path);
            }
        }
        Ok(())
    }

    /// Takes an object's name away; its memory goes when the last engine has unmapped it. False when there was none.
    pub fn remove(&self, object: &Object) -> Result<bool, StoreError> {
        let path = self.path(object.name());
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(StoreError::io("remove", &path, source)),
        }
    }
}

/// Whether the process that a part's name holds is there.
fn maker_lives(part: &Path) -> bool {
    let name = part.file_name().unwrap_or_default().to_string_lossy();
    let pid = name.split('.').nth(1).and_then(|maker| maker.split('-').next()?.parse::<u32>().ok());
    pid.is_some_and(|pid| Path::new("/proc").join(pid.to_string()).exists())
}

/// A segment that is being filled. Dropped before it is whole, it leaves nothing.
pub(crate) struct Part {
    file: File,
    path: PathBuf,
    /// Chunks that have not come yet.
    missing: AtomicUsize,
    segments: Segments,
    /// Its memory in huge pages, as far as there are any.
    filling: Option<Filling>,
}

impl Part {
    /// Where a chunk may be read to, and verified; none where it is to be copied in.
    pub(crate) fn place(&self, object: &Object, chunk: usize) -> Option<*mut u8> {
        self.filling.as_ref()?.place(object.chunk_range(chunk))
    }

    /// A chunk is verified at its [`Part::place`]. Each chunk comes once; with the last one the segment can be found.
    pub(crate) fn filled(&self, object: &Object) -> Result<(), StoreError> {
        self.written(object)
    }

    /// Copies a chunk in that has been verified, as an alternative to [`Part::filled`].
    ///
    /// A copy, because it is the cheapest way into pages of 4 KiB that nobody has yet: reading straight into them has
    /// each of them cleared, mapped, pinned and unmapped. Measured on two cores, 7.2 GB took 9 s so, and 3 s by copies.
    pub(crate) fn write(&self, object: &Object, chunk: usize, bytes: &[u8]) -> Result<(), StoreError> {
        match self.file.write_all_at(bytes, object.chunk_range(chunk).start) {
            Ok(()) => self.written(object),
            Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::OutOfMemory) => {
                Err(StoreError::Memory { folder: self.segments.folder.clone(), bytes: bytes.len() as u64 })
            }
            Err(source) => Err(StoreError::io("write", &self.path, source)),
        }
    }

    fn written(&self, object: &Object) -> Result<(), StoreError> {
        // The one who sees the last chunk go must see what others have written before.
        if self.missing.fetch_sub(1, Ordering::AcqRel) > 1 {
            return Ok(());
        }
        let path = self.segments.path(object.name());
        fchmod(&self.file, Mode::RUSR).map_err(|error| StoreError::io("seal", &self.path, error.into()))?;
        match renameat_with(CWD, &self.path, CWD, &path, RenameFlags::NOREPLACE) {
            // Another has read the same meanwhile: his is mapped perhaps, so his stays.
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(StoreError::io("name", &path, error.into())),
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Gone already when it was given its name.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::BLOCK_BYTES;

    fn object(bytes: &[u8]) -> Object {
        Object::new(bytes.len() as u64, vec![Checksum::of(bytes)]).expect("one chunk")
    }

    #[test]
    fn a_segment_is_found_when_it_is_whole_and_never_before() {
        let folder = tempfile::tempdir().expect("a folder");
        let segments = Segments::open(folder.path().join("segments")).expect("a folder");
        let bytes = vec![7; BLOCK_BYTES as usize];
        let object = object(&bytes);
        drop(segments.begin(&object).expect("memory"));
        let part = segments.begin(&object).expect("memory");
        assert!(segments.find(&object).expect("readable").is_none());
        segments.sweep().expect("swept");
        part.write(&object, 0, &bytes).expect("written");
        drop(part);
        let map = segments.find(&object).expect("readable").expect("there");
        assert_eq!(map[..], bytes);
        assert_eq!(files(segments.folder()).expect("a folder").len(), 1);
        // Its memory stays with those who have it.
        assert!(segments.remove(&object).expect("removed") && !segments.remove(&object).expect("removed"));
        assert_eq!(map[..], bytes);
    }

    #[test]
    fn what_a_dead_process_left_is_swept_and_strangers_are_not_believed() {
        let folder = tempfile::tempdir().expect("a folder");
        let segments = Segments::open(folder.path().join("segments")).expect("a folder");
        // No process has so high a number, and this one is there.
        let names = ["abc.4294967295-0.part".to_owned(), format!("abc.{}-0.part", process::id())];
        names.iter().for_each(|name| fs::write(segments.folder().join(name), b"left").expect("written"));
        segments.sweep().expect("swept");
        assert_eq!(files(segments.folder()).expect("a folder"), [segments.folder().join(&names[1])]);
        let open = folder.path().join("open");
        DirBuilder::new().mode(0o755).create(&open).expect("made");
        assert!(matches!(Segments::open(&open), Err(StoreError::Shared { .. })));
        std::os::unix::fs::symlink(segments.folder(), folder.path().join("link")).expect("linked");
        assert!(matches!(Segments::open(folder.path().join("link")), Err(StoreError::Shared { .. })));
    }
}
