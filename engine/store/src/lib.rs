//! Checkpoint readers. A checkpoint is opened by memory map, checked completely before anything else
//! sees it, and then handed out as borrowed views: opening costs the header, not the weights.

mod adapter;
mod checkpoint;
mod config;
mod cursor;
mod digest;
mod encoder;
mod error;
mod folder;
mod gguf;
mod inspect;
mod mapping;
mod quantise;
pub mod safetensors;
mod tensor;
mod validate;
mod value;

pub use adapter::{Adapter, AdapterError, Linear, LowRank, RANK_MAX, adapter_digest};
pub use checkpoint::{Checkpoint, CheckpointError, TensorShape};
pub use config::{Architecture, Biases, ModelConfig, Rotation, SlidingWindow};
pub use digest::digest;
pub use encoder::{EncoderCheckpoint, EncoderConfig, EncoderError, Pooling, ShorterVectors};
pub use error::GgufError;
pub use folder::{Folder, Stamp, TOKENIZER_FILE, TextFiles, revision, stamp};
pub use gguf::Gguf;
pub use inspect::Summary;
pub use quantise::{Quantisation, UnknownQuantisation};
pub use safetensors::{Safetensors, SafetensorsError};
pub use tensor::{GgmlType, TensorData, TensorView};
pub use validate::RUNNABLE_TYPES;
pub use value::{Array, Strings, Value};
