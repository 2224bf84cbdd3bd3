//! What can be wrong with an encoder's folder.

use crate::SafetensorsError;
use std::path::PathBuf;
use thiserror::Error;

/// Why a folder was refused.
#[derive(Debug, Error)]
pub enum EncoderError {
    #[error("cannot read {path}: {message}", path = path.display())]
    File { path: PathBuf, message: String },
    #[error("{path}: field {field:?}: {message}", path = path.display())]
    Field { path: PathBuf, field: &'static str, message: String },
    #[error("tensor {name:?}: {message}")]
    Tensor { name: String, message: String },
    #[error("{path} is an encoder, which is computed as it is stored: leave quantisation out", path = path.display())]
    Quantised { path: PathBuf },
    #[error(transparent)]
    Weights(#[from] SafetensorsError),
}
