//! What can go wrong with the state database, each as one line that says what to do.

use rusqlite::ErrorCode;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// A failure of the state database.
#[derive(Debug, Error)]
pub enum RegistryError {
    #[error("the state folder {} cannot be used: {source}; choose another with --state", path.display())]
    StateFolder { path: PathBuf, source: std::io::Error },
    #[error("the state database {} cannot be opened or written ({message}); make its folder writable, make room on its disk, or choose another with --state", path.display())]
    NotWritable { path: PathBuf, message: String },
    #[error("the disk that holds {} is full; free some space and start again", path.display())]
    DiskFull { path: PathBuf },
    #[error("the state database {} is damaged ({message}); restore it, or move it away and register the models again", path.display())]
    Damaged { path: PathBuf, message: String },
    #[error("the state database {} is locked by another process; try again when that one is done", path.display())]
    Locked { path: PathBuf },
    #[error("the state database {} has schema version {found}, but this foreshock knows only up to {known}; use the newer foreshock that wrote it, or another folder with --state", path.display())]
    NewerSchema { path: PathBuf, found: i64, known: i64 },
    #[error("the base model `{base}` is not registered; `foreshock models ls` lists those that are")]
    NoBase { base: String },
    #[error("the model `{base}` has {limit} adapters already, which is the most that one engine serves")]
    TooManyAdapters { base: String, limit: usize },
    #[error("the name `{name}` is {kind}'s already; remove that one first or choose another name")]
    NameTaken { name: String, kind: &'static str },
    #[error("the model `{name}` is the base of {}; remove {} first", adapters.join(", "), if adapters.len() == 1 { "it" } else { "them" })]
    HasAdapters { name: String, adapters: Vec<String> },
    #[error("the state database {}: {source}", path.display())]
    Sqlite { path: PathBuf, source: rusqlite::Error },
}

impl RegistryError {
    /// Sorts an SQLite error by what its reader can do about it.
    pub(super) fn from_sqlite(path: &Path, error: rusqlite::Error) -> Self {
        let path = path.to_path_buf();
        // SQLite's findings come one a line; ours is one line.
        let message = error.to_string().replace("*** in database main ***\n", "").replace('\n', "; ");
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged { path, message },
            Some(ErrorCode::DiskFull) => Self::DiskFull { path },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Locked { path },
            Some(
                ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::SystemIoFailure,
            ) => Self::NotWritable { path, message },
            _ => Self::Sqlite { path, source: error },
        }
    }
}
