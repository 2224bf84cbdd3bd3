//! What can be wrong with a manifest. Whoever meets one of these knows which file it is, and says so.

use crate::Checksum;
use thiserror::Error;

/// Why a manifest was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ManifestError {
    #[error("it has {bytes} bytes, more than the limit of {limit}")]
    TooLarge { bytes: usize, limit: usize },
    #[error("it ends early: its {bytes} bytes do not close with a checksum")]
    Truncated { bytes: usize },
    #[error("its bytes are not those that were written: the checksum differs")]
    Checksum,
    #[error("it is not as it should be: {message}")]
    Json { message: String },
    #[error("it has format {found}, and this version reads format {known}")]
    Format { found: u32, known: u32 },
    #[error("{what} {name:?} is no plain name of at most 100 of a-z, 0-9, - + _")]
    Name { what: &'static str, name: String },
    #[error("object {index}: its name, length and checksums do not belong together")]
    Object { index: usize },
    #[error("object {name} is listed twice")]
    ObjectTwice { name: Checksum },
    #[error("object {name} holds no tensor")]
    Unused { name: Checksum },
    #[error("tensor {name:?} is listed twice")]
    TensorTwice { name: String },
    #[error("tensor {name:?}: {message}")]
    Tensor { name: String, message: String },
    #[error("tensors {first:?} and {second:?} overlap")]
    Overlap { first: String, second: String },
}
