//! A decoder on a GPU.

use crate::options::{Compute, EngineOptions, KvType};
use engine_core::Forward;
use engine_cuda::{CudaForward, CudaOptions, KvFormat};
use engine_store::Checkpoint;

/// Loads a checkpoint onto the GPU of this number. The error is for people.
pub(super) fn load(
    checkpoint: &Checkpoint,
    options: &EngineOptions,
    ordinal: usize,
) -> Result<Box<dyn Forward>, String> {
    let wanted = CudaOptions {
        ordinal,
        kv_bytes: options.kv_bytes_or_default(),
        kv_format: match options.kv_type {
            Some(KvType::Q8) => KvFormat::Fp8,
            Some(KvType::F16) | None => KvFormat::Bf16,
        },
        planes: match options.compute {
            Compute::F32 => 2,
            Compute::Fast => 1,
        },
        ..CudaOptions::default()
    };
    let forward = CudaForward::load(checkpoint, wanted).map_err(|error| error.to_string())?;
    let (shape, weights_bytes) = (forward.shape(), forward.weight_bytes());
    let kv_tokens = shape.kv_blocks * shape.kv_block_tokens;
    tracing::info!(device = forward.device_name(), ordinal, weights_bytes, kv_tokens, "computing on a GPU");
    Ok(Box::new(forward))
}
