//! The CPU device: models, kernels and sampling behind the `Forward` seam, and encoders behind `Encode`.
//!
//! Two ways of computing: `Compute::F32` is the reference (dequantised weights, f32 everywhere) and
//! `Compute::Fast` is what serves (int8 activations, KV in f16 or int8). In both, every sum that belongs to one
//! token is taken in one fixed order, so logits do not depend on the batch, the chunking or the threads.

mod adapters;
mod batch;
mod cores;
#[doc(hidden)]
pub mod kernels;
mod load;
mod load_encoder;
mod models;
mod packer;
pub mod sampling;

pub use adapters::{Adapters, LoadedAdapter};
pub use kernels::cpu::kv_format::KvFormat;
#[doc(hidden)]
pub use load::load_on;
pub use load::{Compute, KV_BLOCK_TOKENS, LoadError, LoadOptions, estimate_instance_bytes, kv_bytes_per_token, load};
#[doc(hidden)]
pub use load_encoder::load_encoder_on;
pub use load_encoder::{estimate_encoder_bytes, load_encoder};
pub use packer::CpuBands;
pub use sampling::{History, SampleError, adjust, all_finite, logprobs, sample};
