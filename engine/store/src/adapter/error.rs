//! What can be wrong with an adapter. Every message names the field or tensor.

use crate::safetensors::SafetensorsError;
use std::path::PathBuf;
use thiserror::Error;

/// Why an adapter was refused.
#[derive(Debug, Error)]
pub enum AdapterError {
    #[error("cannot read {path}: {source}", path = path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path} is no folder: an adapter in PEFT's format is one, with {} and {}", super::CONFIG_FILE, super::WEIGHTS_FILE, path = path.display())]
    NoFolder { path: PathBuf },
    #[error("{path} is not valid JSON: {message}", path = path.display())]
    Json { path: PathBuf, message: String },
    #[error("{}: field {field:?} {message}", super::CONFIG_FILE)]
    Field { field: String, message: String },
    #[error(transparent)]
    Weights(#[from] SafetensorsError),
    #[error("tensor {name:?} {message}")]
    Tensor { name: String, message: String },
    #[error("tensor {name:?} is missing, though {} asks for it", super::CONFIG_FILE)]
    MissingTensor { name: String },
    #[error("its files have changed: their digest is {found}, expected {expected}; register the adapter again")]
    Changed { found: String, expected: String },
}

impl AdapterError {
    pub(super) fn field(field: &str, message: impl Into<String>) -> Self {
        Self::Field { field: field.to_owned(), message: message.into() }
    }
}
