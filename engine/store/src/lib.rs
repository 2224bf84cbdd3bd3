//! Checkpoints. Readers open one by memory map, check it completely before anything else sees it, and hand it out as
//! borrowed views: opening costs the header, not the weights. The store takes one in once, laid out as kernels read it,
//! and loads it from then on at the speed of the disk, or finds it in memory.

mod adapter;
mod checkpoint;
mod config;
mod cursor;
mod difference;
mod digest;
pub mod disk;
mod encoder;
mod error;
mod folder;
mod gguf;
pub mod host;
mod huge;
mod ingest;
mod inspect;
mod load;
mod manifest;
mod mapping;
mod object;
mod packer;
mod quantise;
pub mod safetensors;
mod segment;
mod store;
mod tensor;
mod validate;
mod value;

pub use adapter::{Adapter, AdapterError, Linear, LowRank, RANK_MAX, adapter_digest};
pub use checkpoint::{Checkpoint, CheckpointError, TensorShape};
pub use config::{Architecture, Biases, ModelConfig, Rotation, SlidingWindow};
pub use digest::digest;
pub use encoder::{EncoderCheckpoint, EncoderConfig, EncoderError, Pooling, ShorterVectors};
pub use error::GgufError;
pub use folder::{FOLDER_FILES, Folder, Stamp, TOKENIZER_FILE, TextFiles, revision, stamp};
pub use gguf::Gguf;
pub use ingest::Progress;
pub use inspect::Summary;
pub use load::{LoadFacts, LoadOptions, Loaded, load};
pub use manifest::{Manifest, ManifestError, PackedTensor};
pub use object::{BLOCK_BYTES, CHUNK_BYTES, Checksum, Object};
pub use packer::{AsStored, Packer};
pub use quantise::{Quantisation, UnknownQuantisation};
pub use safetensors::{Safetensors, SafetensorsError, shard_names};
pub use segment::Segments;
pub use store::{Damage, Freed, Store, StoreError, locked};
pub use tensor::{GgmlType, TensorData, TensorView};
pub use validate::RUNNABLE_TYPES;
pub use value::{Array, Strings, Value};
