//! From options to a device: the one place that knows checkpoints and the CPU runtime.

use crate::clock;
use crate::ends;
use crate::error::EngineError;
use crate::options::{Compute, EngineOptions, KvType};
use engine_core::{Forward, TokenId};
use engine_runtime::{KvFormat, LoadOptions};
use engine_store::Checkpoint;

/// A device that is ready to compute.
pub struct LoadedModel {
    pub forward: Box<dyn Forward>,
    /// Tokens that end a sequence.
    pub eos_token_ids: Vec<TokenId>,
    /// CLOCK_MONOTONIC when the checkpoint was mapped and checked, ns.
    pub mapped_at_ns: u64,
}

/// Makes the device on the step thread, which then owns it. `cores` are those that the process has.
pub type Loader = Box<dyn FnOnce(&EngineOptions, &[u32]) -> Result<LoadedModel, EngineError> + Send>;

/// Loads the checkpoint that the options name.
pub fn load_checkpoint(options: &EngineOptions, cores: &[u32]) -> Result<LoadedModel, EngineError> {
    let failed = |message: String| EngineError::Model { path: options.model.clone(), message };
    let checkpoint = Checkpoint::open(&options.model, options.quantise).map_err(|error| failed(error.to_string()))?;
    checkpoint.will_need();
    let mapped_at_ns = clock::monotonic_ns();
    let eos_token_ids = ends::of_checkpoint(&checkpoint, &options.model).map_err(failed)?;
    let load_options = LoadOptions {
        compute: match options.compute {
            Compute::F32 => engine_runtime::Compute::F32,
            Compute::Fast => engine_runtime::Compute::Fast,
        },
        // Pinned only when the cores were given: a process that was told nothing shares its cores with others.
        cores: options.cores.clone(),
        threads: cores.len().max(1),
        kv_format: options.kv_type.map(|kv_type| match kv_type {
            KvType::F16 => KvFormat::F16,
            KvType::Q8 => KvFormat::Q8,
        }),
        kv_bytes: options.kv_bytes_or_default(),
        ..LoadOptions::default()
    };
    let forward = engine_runtime::load(&checkpoint, load_options).map_err(|error| failed(error.to_string()))?;
    Ok(LoadedModel { forward, eos_token_ids, mapped_at_ns })
}
