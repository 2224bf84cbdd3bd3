//! What a checkpoint says beside its weights: hyperparameters, tokenizer, template. Kept so that a model outlives the
//! file or folder that it came from.
//!
//! ```text
//! heads/REVISION/checkpoint   a GGUF file, or a folder, with holes in place of its weights
//! heads/REVISION/sums         of what is no hole; written last, so that its being there says that all is
//! ```
//!
//! Holes keep every length and offset as it was, so the very readers and checks that opened the source open this; they
//! take no room on a disk. Weights are never read from here: whoever opens a head gives it those that the store has loaded.

use super::{Store, StoreError};
use crate::{Checksum, Gguf, folder::files, manifest};
use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

const HEADS: &str = "heads";
const CHECKPOINT: &str = "checkpoint";
const SUMS: &str = "sums";
/// Bytes before the JSON in a safetensors file.
const LENGTH_BYTES: u64 = 8;
/// Longest part of a file that is kept: vocabularies have tens of megabytes.
const KEPT_BYTES_MAX: u64 = 1 << 30;

/// One file of a head.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    /// Within the folder; empty when the checkpoint is one file.
    name: String,
    /// Bytes of the whole file, holes included.
    bytes: u64,
    /// Bytes at its beginning that are no hole, and their checksum.
    kept_bytes: u64,
    checksum: Checksum,
}

impl Store {
    /// Where a revision's head lies when it is there.
    ///
    /// # Errors
    /// When the revision is no name.
    pub fn head_path(&self, revision: &str) -> Result<PathBuf, StoreError> {
        Ok(self.head_folder(revision)?.join(CHECKPOINT))
    }

    /// The same for a store that need not be there.
    pub fn head_in(root: &Path, revision: &str) -> PathBuf {
        root.join(HEADS).join(revision).join(CHECKPOINT)
    }

    fn head_folder(&self, revision: &str) -> Result<PathBuf, StoreError> {
        let named = |source| StoreError::Manifest { path: self.root().join(HEADS), source };
        manifest::check_name("revision", revision).map_err(named)?;
        Ok(self.root().join(HEADS).join(revision))
    }

    /// Keeps the head of a checkpoint, GGUF file or folder. Does nothing when it is there and whole. A kill leaves one
    /// without its sums, which counts as none.
    ///
    /// # Errors
    /// When the source cannot be read or the store not written.
    pub fn keep_head(&self, source: &Path, revision: &str) -> Result<(), StoreError> {
        if self.verify_head(revision).is_ok() {
            return Ok(());
        }
        let folder = self.head_folder(revision)?;
        let whole = folder.join(CHECKPOINT);
        let make =
            |path: &Path| self.disk.make_folder(path).map_err(|error| StoreError::io("make the folder", path, error));
        make(if source.is_dir() { &whole } else { &folder })?;
        let mut sums = String::new();
        for path in files(source).map_err(|error| StoreError::Checkpoint(error.into()))? {
            let name = path.strip_prefix(source).unwrap_or(Path::new("")).to_string_lossy().into_owned();
            let to = if name.is_empty() { whole.clone() } else { whole.join(&name) };
            let (head, bytes) = head_of(&path)?;
            self.write_whole(&to, &head, bytes)?;
            sums.push_str(&format!("{} {} {bytes} {name}\n", Checksum::of(&head), head.len()));
        }
        self.write_whole(&folder.join(SUMS), sums.as_bytes(), sums.len() as u64)?;
        let heads = self.root().join(HEADS);
        for folder in [&folder, &heads, &self.root().to_owned()] {
            self.disk.sync_folder(folder).map_err(|error| StoreError::io("sync", folder, error))?;
        }
        Ok(())
    }

    /// Writes a file of so many bytes, the first of which are given, beside its place, and then puts it there: who has
    /// the one before mapped keeps it.
    fn write_whole(&self, path: &Path, head: &[u8], bytes: u64) -> Result<(), StoreError> {
        let part = path.with_added_extension("part");
        let write = || -> io::Result<()> {
            let mut sink = self.disk.write_after(&part, 0)?;
            sink.write_all(head)?;
            sink.sync()?;
            if bytes > head.len() as u64 {
                let file = File::options().write(true).open(&part)?;
                file.set_len(bytes)?;
                file.sync_all()?;
            }
            Ok(())
        };
        write().map_err(|error| StoreError::io("write", &part, error))?;
        self.disk.rename(&part, path).map_err(|error| StoreError::io("name", path, error))?;
        let folder = path.parent().unwrap_or(path);
        self.disk.sync_folder(folder).map_err(|error| StoreError::io("sync", folder, error))
    }

    /// A revision's head, when every byte of it is as it was written.
    ///
    /// # Errors
    /// Names the file that is missing or damaged.
    pub fn verify_head(&self, revision: &str) -> Result<PathBuf, StoreError> {
        let folder = self.head_folder(revision)?;
        let (sums, whole) = (folder.join(SUMS), folder.join(CHECKPOINT));
        let text = match fs::read_to_string(&sums) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(StoreError::Missing { path: sums }),
            Err(error) => return Err(StoreError::io("read", &sums, error)),
        };
        let mut named = 0;
        for line in text.lines() {
            let kept = Kept::parse(line).ok_or_else(|| StoreError::Head { path: sums.clone() })?;
            kept.verify(&whole)?;
            named += 1;
        }
        if named == 0 {
            return Err(StoreError::Head { path: sums });
        }
        Ok(whole)
    }

    /// Revisions of which there is something of a head.
    pub(crate) fn heads(&self) -> Result<Vec<String>, StoreError> {
        let heads = self.root().join(HEADS);
        if !heads.exists() {
            return Ok(Vec::new());
        }
        let name = |path: &PathBuf| path.file_name().and_then(OsStr::to_str).map(str::to_owned);
        Ok(super::files(&heads)?.iter().filter_map(name).collect())
    }

    /// Removes a head. Its sums go first, so that what a kill leaves counts as none.
    pub(crate) fn remove_head(&self, revision: &str) -> Result<(), StoreError> {
        let folder = self.head_folder(revision)?;
        let gone = |outcome: io::Result<()>, path: &Path| match outcome {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path, error)),
            _ => Ok(()),
        };
        let sums = folder.join(SUMS);
        gone(self.disk.remove(&sums), &sums)?;
        gone(fs::remove_dir_all(&folder), &folder)
    }

    /// Whether a path is that of a head, whose weights are holes.
    pub fn is_head(path: &Path) -> bool {
        path.file_name() == Some(OsStr::new(CHECKPOINT)) && path.with_file_name(SUMS).is_file()
    }
}

impl Kept {
    /// `CHECKSUM KEPT BYTES NAME`, and names may hold blanks. A name that would lead out of the folder is none.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(4, ' ');
        let checksum = Checksum::parse(words.next()?)?;
        let kept_bytes = words.next()?.parse().ok().filter(|bytes| *bytes <= KEPT_BYTES_MAX)?;
        let bytes = words.next()?.parse().ok()?;
        let name = words.next()?.to_owned();
        let plain = |part: &str| !part.is_empty() && part != "..";
        (name.is_empty() || name.split('/').all(plain)).then_some(Self { name, bytes, kept_bytes, checksum })
    }

    fn verify(&self, whole: &Path) -> Result<(), StoreError> {
        let path = if self.name.is_empty() { whole.to_owned() } else { whole.join(&self.name) };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(StoreError::Missing { path }),
            Err(error) => return Err(StoreError::io("open", &path, error)),
        };
        let io = |error| StoreError::io("read", &path, error);
        let found = file.metadata().map_err(io)?.len();
        if found != self.bytes {
            return Err(StoreError::Length { path, expected: self.bytes, found });
        }
        let mut bytes = Vec::with_capacity(self.kept_bytes as usize);
        file.take(self.kept_bytes).read_to_end(&mut bytes).map_err(io)?;
        let found = Checksum::of(&bytes);
        match found == self.checksum {
            true => Ok(()),
            false => Err(StoreError::Damaged { path, offset: 0, expected: self.checksum, found }),
        }
    }
}

/// What a file of a checkpoint says before its weights, and how long the whole of it is.
fn head_of(path: &Path) -> Result<(Vec<u8>, u64), StoreError> {
    let io = |error| StoreError::io("read", path, error);
    let mut file = File::open(path).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    let kept = match path.extension().and_then(OsStr::to_str) {
        Some("safetensors") => {
            let mut length = [0; LENGTH_BYTES as usize];
            file.read_exact(&mut length).map_err(io)?;
            u64::from_le_bytes(length).saturating_add(LENGTH_BYTES)
        }
        Some("json" | "jinja") => bytes,
        _ => Gguf::open(path).map_err(|error| StoreError::Checkpoint(error.into()))?.head_bytes(),
    };
    let kept = kept.min(bytes);
    if kept > KEPT_BYTES_MAX {
        let message = format!("{kept} bytes come before its weights; at most {KEPT_BYTES_MAX} are kept");
        return Err(io(io::Error::new(io::ErrorKind::InvalidData, message)));
    }
    let mut head = Vec::with_capacity(kept as usize);
    File::open(path).map_err(io)?.take(kept).read_to_end(&mut head).map_err(io)?;
    Ok((head, bytes))
}
