//! What can be wrong with a checkpoint. Every message names the field or tensor, so that a user can
//! tell a half-finished download from a file of another kind.

use std::path::PathBuf;
use thiserror::Error;

/// Why a GGUF file was refused.
#[derive(Debug, Error)]
pub enum GgufError {
    #[error("cannot read {path}: {source}", path = path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("not a GGUF file: the first four bytes are {found:?}, expected \"GGUF\"")]
    Magic { found: String },
    #[error("GGUF version {version} is not supported (2 and 3 are); big-endian files are not supported either")]
    Version { version: u32 },
    #[error("truncated at byte {offset}: {field} needs {needed} bytes, {available} are left; download the file again")]
    Truncated { field: String, offset: usize, needed: u64, available: usize },
    #[error("{field} is {count}, more than the file has room for ({limit})")]
    Count { field: String, count: u64, limit: u64 },
    #[error("{field} is not valid UTF-8")]
    Utf8 { field: String },
    #[error("{field} has unknown value type {value}")]
    ValueType { field: String, value: u32 },
    #[error("{field} is nested more than {limit} arrays deep")]
    Nesting { field: String, limit: u32 },
    #[error("metadata key {key:?} appears twice")]
    DuplicateKey { key: String },
    #[error("metadata key {key:?} is missing")]
    MissingKey { key: String },
    #[error("metadata key {key:?} is {found}, expected {expected}")]
    KeyType { key: String, found: &'static str, expected: &'static str },
    #[error("metadata key {key:?}: {message}")]
    KeyValue { key: String, message: String },
    #[error("tensor {name:?} appears twice")]
    DuplicateTensor { name: String },
    #[error("tensor {name:?} is missing")]
    MissingTensor { name: String },
    #[error("tensor {name:?} has unknown type number {value}")]
    TensorType { name: String, value: u32 },
    #[error("tensor {name:?}: {message}")]
    Tensor { name: String, message: String },
    #[error("tensor {name:?} ends at byte {end}, but the file has {file} bytes: truncated? download it again")]
    TensorTruncated { name: String, end: u64, file: u64 },
    #[error("tensors {first:?} and {second:?} overlap in the file")]
    Overlap { first: String, second: String },
    #[error("architecture {architecture:?} is not supported; supported: {supported}")]
    Architecture { architecture: String, supported: String },
}
