//! From an opened encoder to a device that makes vectors, and what that will cost in memory.

use crate::{
    kernels::cpu::simd::Isa,
    load::{LoadError, LoadOptions, SCRATCH_BYTES, device},
    models::bert::{Bert, Weights},
};
use engine_core::Encode;
use engine_store::EncoderCheckpoint;

/// Makes a device. Maps weights as they lie in the files. Of the options, those of the KV pool mean nothing here, and
/// both ways to compute are f32: weights of these models are small, and retrieval compares vectors closely.
pub fn load_encoder(checkpoint: &EncoderCheckpoint, options: &LoadOptions) -> Result<Box<dyn Encode>, LoadError> {
    load_encoder_on(checkpoint, options, Isa::detect())
}

/// `load_encoder` on a chosen instruction set, for tests that compare them.
#[doc(hidden)]
pub fn load_encoder_on(
    checkpoint: &EncoderCheckpoint,
    options: &LoadOptions,
    isa: Isa,
) -> Result<Box<dyn Encode>, LoadError> {
    let weights = Weights::new(checkpoint)?;
    let mut device = device(options, isa)?;
    device.integer = false;
    Ok(Box::new(Bert::new(checkpoint.config().clone(), weights, device)))
}

/// Memory of a loaded encoder, bytes: weights and scratch.
pub fn estimate_encoder_bytes(checkpoint: &EncoderCheckpoint) -> u64 {
    checkpoint.weight_bytes() + SCRATCH_BYTES
}
