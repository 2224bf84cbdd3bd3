//! Why the store could not do what it was asked. Every message says what is wrong, where, and what helps.

use crate::{CheckpointError, Checksum, ManifestError};
use std::{
    io,
    path::{Path, PathBuf},
};
use thiserror::Error;

#[derive(Debug, Error)]
pub enum StoreError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "no space is left for {}: free some (`foreshock models gc` removes what no model needs) and run the same command \
         again, which goes on where it stopped",
        path.display()
    )]
    Full { path: PathBuf },
    #[error("{}: {source}; remove the file and add the model again, which writes only what is missing", path.display())]
    Manifest { path: PathBuf, source: ManifestError },
    #[error("another process works on {}: try again when it is done", path.display())]
    Busy { path: PathBuf },
    #[error("tensor {tensor:?} cannot be laid out for {layout}: {message}")]
    Pack { tensor: String, layout: String, message: String },
    #[error("tensor {tensor:?} changed while it was ingested: leave the checkpoint alone and add it again")]
    Changed { tensor: String },
    #[error("{} is missing; add the model again, which writes only what is missing", path.display())]
    Missing { path: PathBuf },
    #[error(
        "{} has {found} bytes instead of {expected}: remove the file and add the model again, which writes only what is missing",
        path.display()
    )]
    Length { path: PathBuf, expected: u64, found: u64 },
    #[error(
        "{}: the bytes from {offset} on are not those that were written (checksum {found} instead of {expected}): remove \
         the file and add the model again, which writes only what is missing",
        path.display()
    )]
    Damaged { path: PathBuf, offset: u64, expected: Checksum, found: Checksum },
    #[error(
        "{} and {}, which it differs from, do not make the bytes from {offset} on that were written (checksum {found} instead \
         of {expected}): verify the base's model; if that is whole, remove the first file and add the model again",
        path.display(), base.display()
    )]
    DamagedDifference { path: PathBuf, base: PathBuf, offset: u64, expected: Checksum, found: Checksum },
    #[error("{} is not a list of checksums; remove the folder that it is in and add the model again", path.display())]
    Head { path: PathBuf },
    #[error("no memory is left in {} for {bytes} more bytes of weights: remove segments that no engine uses", folder.display())]
    Memory { folder: PathBuf, bytes: u64 },
    #[error(
        "{} is not a folder of this user's alone, and what others may write is not served: make it anew with mode 700",
        folder.display()
    )]
    Shared { folder: PathBuf },
    #[error("cannot set up a thread to load with: {source}")]
    Thread { source: io::Error },
}

impl StoreError {
    /// An error of the file system; a full disk is told apart.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path },
            _ => Self::Io { action, path, source },
        }
    }
}
