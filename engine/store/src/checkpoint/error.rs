//! Why a checkpoint of either form was refused.

use crate::{GgufError, Quantisation, SafetensorsError};
use std::path::PathBuf;
use thiserror::Error;

/// Every message names the file and the field or tensor.
#[derive(Debug, Error)]
pub enum CheckpointError {
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error(transparent)]
    Safetensors(#[from] SafetensorsError),
    #[error("{} is not as it should be: {message}", path.display())]
    Json { path: PathBuf, message: String },
    #[error("{}: {field}: {message}", path.display())]
    Field { path: PathBuf, field: String, message: String },
    #[error("{}: tensor {name:?} {message}", folder.display())]
    Tensor { folder: PathBuf, name: String, message: String },
    #[error("tensor {name:?} in the store is not this checkpoint's: add the model again")]
    Stored { name: String },
    #[error(
        "{} has no tokenizer.json (tokenizer.model and vocab.json are not read): save the tokenizer anew with \
         transformers' AutoTokenizer, which writes it",
        folder.display()
    )]
    NoTokenizer { folder: PathBuf },
    #[error(
        "{} is no Hugging Face folder and cannot be quantised to {quantisation} at load: \
         leave the option out, or give the folder that the file was made from",
        path.display()
    )]
    Quantised { path: PathBuf, quantisation: Quantisation },
}
