//! Where fetched checkpoints lie. One that is being fetched lies under a name of its own, which is its address's; a whole
//! one under a name that is its version's, so that nothing which engines have open is ever replaced.
//!
//! ```text
//! model-0123456789ab/model.gguf            whole: one file, or the files of a folder
//! model-ab0123456789.part/files/...        being fetched
//! model-ab0123456789.part/pieces/...       which pieces of each file have come
//! model-ab0123456789.lock                  held by who fetches
//! ```

use crate::{FetchError, Source, plan::Plan};
use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

pub(crate) struct Place {
    folder: PathBuf,
    /// What people know it by.
    title: String,
    shown: String,
    part: PathBuf,
    _lock: File,
}

impl Place {
    /// Takes the place of a source, which is nobody else's until this is dropped.
    pub(crate) fn take(folder: &Path, source: &Source) -> Result<Self, FetchError> {
        fs::create_dir_all(folder).map_err(|error| FetchError::io("make the folder", folder, 0, error))?;
        let title = title(&source.shown);
        let base = folder.join(format!("{title}-{}", short_hash(&[&source.shown])));
        let (part, path) = (base.with_added_extension("part"), base.with_added_extension("lock"));
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(|error| FetchError::io("open", &path, 0, error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(FetchError::Busy { path: folder.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(FetchError::io("lock", &path, 0, error)),
        }
        Ok(Self { folder: folder.to_owned(), title, shown: source.shown.clone(), part, _lock: lock })
    }

    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    /// Where the files are put together.
    pub(crate) fn files(&self) -> PathBuf {
        self.part.join("files")
    }

    pub(crate) fn part(&self, local: &str) -> PathBuf {
        self.files().join(local)
    }

    pub(crate) fn journal(&self, local: &str) -> PathBuf {
        self.part.join("pieces").join(local.replace('/', "+"))
    }

    /// Where it lies when it is whole, and the folder that is all its own.
    pub(crate) fn whole(&self, plan: &Plan) -> (PathBuf, PathBuf) {
        let folder = self.whole_folder(plan);
        match &plan.files[..] {
            [file] if !plan.folder => (folder.join(&file.local), folder),
            _ => (folder.clone(), folder),
        }
    }

    fn whole_folder(&self, plan: &Plan) -> PathBuf {
        let mut told = vec![self.shown.clone()];
        for file in &plan.files {
            let version = &file.look.version;
            told.extend([file.local.clone(), version.bytes.to_string()]);
            told.extend([&version.etag, &version.modified, &file.sha256].map(|told| told.clone().unwrap_or_default()));
        }
        let told: Vec<&str> = told.iter().map(String::as_str).collect();
        self.folder.join(format!("{}-{}", self.title, short_hash(&told)))
    }

    /// An error when the disk has no room for so much.
    pub(crate) fn check_room(&self, needed_bytes: u64) -> Result<(), FetchError> {
        let room = rustix::fs::statvfs(&self.folder);
        let room = room.map_err(|error| FetchError::io("look at", &self.folder, 0, error.into()))?;
        match room.f_bavail.saturating_mul(room.f_frsize) < needed_bytes {
            true => Err(FetchError::Full { path: self.folder.clone(), needed_bytes }),
            false => Ok(()),
        }
    }

    /// Gives the files their name, by one rename, and says where they are.
    pub(crate) fn publish(&self, plan: &Plan) -> Result<(PathBuf, PathBuf), FetchError> {
        let whole = self.whole_folder(plan);
        fs::rename(self.files(), &whole).map_err(|error| FetchError::io("name", &whole, 0, error))?;
        let synced = File::open(&self.folder).and_then(|folder| folder.sync_all());
        synced.map_err(|error| FetchError::io("sync", &self.folder, 0, error))?;
        // Names alone are left; the next fetch would do without them, too.
        let _ = fs::remove_dir_all(&self.part);
        Ok(self.whole(plan))
    }

    /// Removes files that an earlier version had, and this one has not, and sees to it that names last.
    pub(crate) fn sweep(&self, plan: &Plan) -> Result<(), FetchError> {
        let mut folders = vec![self.files()];
        while let Some(folder) = folders.pop() {
            let io = |error| FetchError::io("list", &folder, 0, error);
            for entry in fs::read_dir(&folder).map_err(io)? {
                let path = entry.map_err(io)?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if !plan.files.iter().any(|file| self.part(&file.local) == path) {
                    fs::remove_file(&path).map_err(|error| FetchError::io("remove", &path, 0, error))?;
                }
            }
            File::open(&folder).and_then(|folder| folder.sync_all()).map_err(io)?;
        }
        Ok(())
    }
}

/// What people know an address by, as part of a file's name.
fn title(shown: &str) -> String {
    let last = shown.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let last = last.split('@').next().unwrap_or_default().trim_end_matches(".gguf");
    let plain = last.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' });
    plain.take(60).collect::<String>().trim_start_matches('.').to_owned()
}

fn short_hash(texts: &[&str]) -> String {
    let mut hash = blake3::Hasher::new();
    for text in texts {
        // The length first, so that no two lists are the same bytes.
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    hash.finalize().to_hex()[..12].to_owned()
}
