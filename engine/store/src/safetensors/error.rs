//! What can be wrong with safetensors files. Every message names the file, the tensor where there is one, and
//! what to do where that is not plain.

use std::path::PathBuf;
use thiserror::Error;

/// Why weights were refused.
#[derive(Debug, Error)]
pub enum SafetensorsError {
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{} has {bytes} bytes, more than the limit of {limit}", path.display())]
    TooLarge { path: PathBuf, bytes: u64, limit: u64 },
    #[error("{} is no safetensors file: {message}", path.display())]
    Header { path: PathBuf, message: String },
    #[error("{} ends at byte {found}, but its tensors end at {expected}: truncated? download it again", path.display())]
    Truncated { path: PathBuf, expected: u64, found: u64 },
    #[error("{}: tensor {name:?}: {message}", path.display())]
    Tensor { path: PathBuf, name: String, message: String },
    #[error("{} has no tensor {name:?}", path.display())]
    MissingTensor { path: PathBuf, name: String },
    #[error("tensor {name:?} is in both {} and {}: remove the file that does not belong here", first.display(), second.display())]
    DuplicateTensor { name: String, first: PathBuf, second: PathBuf },
    #[error("{}: {message}", path.display())]
    Index { path: PathBuf, message: String },
    #[error("shard {shard:?}, which {} lists, is missing: download it, too", index.display())]
    MissingShard { index: PathBuf, shard: String },
    #[error(
        "{} has neither model.safetensors nor model.safetensors.index.json (pickled weights, *.bin and *.pt, are not read: convert them)",
        folder.display()
    )]
    NoWeights { folder: PathBuf },
}
