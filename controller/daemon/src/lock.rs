//! One `serve` per state folder. The lock is the kernel's (flock), so it goes with the process that holds
//! it however that ends; the pid inside the file is only for the message.

use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Name of the lock file in the state folder.
pub const LOCK_FILE: &str = "serve.lock";

/// Why the lock is not ours.
#[derive(Debug, Error)]
pub enum LockError {
    #[error("another `foreshock serve` (pid {holder}) uses the state folder {}; stop it, or choose another folder with --state", state_dir.display())]
    Held { state_dir: PathBuf, holder: String },
    #[error("the lock file {} cannot be used: {source}; make the state folder writable or choose another with --state", path.display())]
    File { path: PathBuf, source: std::io::Error },
}

/// The lock, held until dropped. Its descriptor is close-on-exec, so no engine inherits it.
#[derive(Debug)]
pub struct ServeLock {
    _file: File,
}

impl ServeLock {
    /// Takes the lock of a state folder, without waiting.
    ///
    /// # Errors
    /// [`LockError::Held`] with the holder's pid when another serve runs.
    pub fn acquire(state_dir: &Path) -> Result<Self, LockError> {
        let path = state_dir.join(LOCK_FILE);
        let describe = |source| LockError::File { path: path.clone(), source };
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(describe)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                let read = file.read_to_string(&mut holder);
                let holder = holder.trim();
                let known = read.is_ok() && !holder.is_empty();
                let holder = if known { holder.to_owned() } else { "unknown".to_owned() };
                return Err(LockError::Held { state_dir: state_dir.to_path_buf(), holder });
            }
            Err(errno) => return Err(describe(errno.into())),
        }
        file.set_len(0).map_err(describe)?;
        file.rewind().map_err(describe)?;
        writeln!(file, "{}", std::process::id()).map_err(describe)?;
        Ok(Self { _file: file })
    }

    /// Whether a serve runs on this state folder.
    pub fn is_held(state_dir: &Path) -> bool {
        let Ok(file) = File::open(state_dir.join(LOCK_FILE)) else { return false };
        // A shared lock that is not granted means an exclusive one is held; ours goes with `file`.
        flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
    }
}
