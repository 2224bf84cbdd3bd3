//! Why a checkpoint could not be fetched. Every message names the address, what is wrong, and what helps. Addresses are shown
//! without passwords and queries, which may be secrets.

use std::{
    io,
    path::{Path, PathBuf},
};
use thiserror::Error;

#[derive(Debug, Error)]
pub enum FetchError {
    #[error("{text:?} names no checkpoint: {message}")]
    Source { text: String, message: String },
    #[error("{url} is not there: check the address")]
    NotFound { url: String },
    #[error("{url}: access is refused ({message}): give credentials that may read it")]
    Refused { url: String, message: String },
    #[error("{url} is no longer what it was ({what}: {was}, now {now}): run the same command again, which begins anew")]
    Changed { url: String, what: &'static str, was: String, now: String },
    #[error("{url} has {found} bytes, and {expected} are said to be there: the remote is wrong or damaged")]
    Length { url: String, expected: u64, found: u64 },
    #[error("{url} has SHA-256 {found}, and {expected} was asked for: it is not that file")]
    Digest { url: String, expected: String, found: String },
    #[error("{url}: {message}")]
    Answer { url: String, message: String },
    /// Asking again may help.
    #[error("{url}: {message}")]
    Passing { url: String, message: String },
    #[error(
        "{last}; given up after {failures} failures: what has come is kept, and the same command goes on from there"
    )]
    GivenUp { failures: u32, last: Box<FetchError> },
    #[error("{url} is not served: {message}")]
    Invalid { url: String, message: String },
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "no space is left for {}: {needed_bytes} bytes more are needed; free them and run the same command again, which goes \
         on where it stopped",
        path.display()
    )]
    Full { path: PathBuf, needed_bytes: u64 },
    #[error("another process fetches into {}: try again when it is done", path.display())]
    Busy { path: PathBuf },
    #[error("stopped; the same command goes on from here")]
    Stopped,
}

impl FetchError {
    /// An error of the file system; a full disk is told apart.
    pub(crate) fn io(action: &'static str, path: &Path, needed_bytes: u64, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path, needed_bytes },
            _ => Self::Io { action, path, source },
        }
    }

    /// Of a request to `url`. What came over the wire and what the kernel says of it stands deepest in the chain; above it
    /// stand whole addresses.
    pub(crate) fn of(url: &str, error: &object_store::Error) -> Self {
        let mut deepest: &dyn std::error::Error = error;
        while let Some(source) = deepest.source() {
            deepest = source;
        }
        let (url, message) = (url.to_owned(), short(&deepest.to_string()));
        match error {
            object_store::Error::NotFound { .. } => Self::NotFound { url },
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                Self::Refused { url, message }
            }
            object_store::Error::Precondition { .. } => Self::Changed {
                url,
                what: "its version",
                was: "the one that was begun with".into(),
                now: "another".into(),
            },
            _ if is_final(&message) => Self::Answer { url, message },
            _ => Self::Passing { url, message },
        }
    }
}

/// Whether a message is of a status that stays: a client's error, but for those that ask to come again.
fn is_final(message: &str) -> bool {
    let status = message.split_once("status code: ").and_then(|(_, rest)| rest.get(..3)?.parse::<u16>().ok());
    status.is_some_and(|status| (400..500).contains(&status) && ![408, 425, 429].contains(&status))
}

/// The first line of a message, which may be a whole page.
fn short(message: &str) -> String {
    let line: String = message.lines().next().unwrap_or_default().chars().take(200).collect();
    line.trim_end_matches([':', ' ']).to_owned()
}
