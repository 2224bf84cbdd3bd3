//! From an opened checkpoint to a device that runs batch steps, and what that will cost in memory.

use crate::{
    adapters::Adapters,
    cores::{self, Caller},
    kernels::cpu::{
        kv::{self, KvPool, KvShape},
        kv_format::{KvElement, KvFormat},
        pool::Pool,
        settle::Settling,
        simd::Isa,
    },
    models::{
        gemma3::{self, Gemma3},
        layers::Device,
        llama::{self, Llama},
    },
};
use engine_core::Forward;
use engine_store::{Architecture, Checkpoint, CheckpointError, EncoderError, ModelConfig};
use thiserror::Error;

/// Tokens per KV block unless told otherwise.
pub const KV_BLOCK_TOKENS: usize = 16;

/// How to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compute {
    /// f32 activations times dequantised weights, f32 KV: reproduces the reference tokens.
    F32,
    /// int8 activations times the quantised weights as they are, f16 KV.
    #[default]
    Fast,
}

/// What a device is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    pub compute: Compute,
    /// Cores to pin the threads to, one thread each; empty leaves them unpinned.
    pub cores: Vec<u32>,
    /// Threads when `cores` is empty; ignored otherwise. The calling thread counts as one.
    pub threads: usize,
    /// Size of the KV pool, bytes. Reserved at load, resident only as far as it is used.
    pub kv_bytes: u64,
    /// How keys and values are stored; none for f32 beside f32 arithmetic, and f16 otherwise.
    pub kv_format: Option<KvFormat>,
    /// Tokens per KV block, a multiple of 16.
    pub kv_block_tokens: usize,
    /// Where the adapters are found that batches name.
    pub adapters: Adapters,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            compute: Compute::Fast,
            cores: Vec::new(),
            threads: 1,
            kv_bytes: 256 << 20,
            kv_format: None,
            kv_block_tokens: KV_BLOCK_TOKENS,
            adapters: Adapters::default(),
        }
    }
}

/// Why a device could not be made.
#[derive(Debug, Error)]
pub enum LoadError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    #[error("option {option}: {message}")]
    Option { option: &'static str, message: String },
    #[error("cannot reserve {bytes} bytes for {purpose}: {source}")]
    Memory { purpose: &'static str, bytes: u64, source: std::io::Error },
    #[error("cannot start a compute thread: {source}")]
    Thread { source: std::io::Error },
}

/// Makes a device from a GGUF file or any checkpoint. Maps weights as they lie in the file, so it costs a few
/// milliseconds and no copy, unless the checkpoint was opened to be quantised.
pub fn load(checkpoint: impl Into<Checkpoint>, options: LoadOptions) -> Result<Box<dyn Forward>, LoadError> {
    load_on(checkpoint, options, Isa::detect())
}

/// `load` on a chosen instruction set, for tests that compare them.
#[doc(hidden)]
pub fn load_on(
    checkpoint: impl Into<Checkpoint>,
    options: LoadOptions,
    isa: Isa,
) -> Result<Box<dyn Forward>, LoadError> {
    let checkpoint = &checkpoint.into();
    let config = checkpoint.validate()?;
    let kv_shape = kv_shape(&config, &options)?;
    let device = device(&options, isa)?;
    let memory = |source| LoadError::Memory { purpose: "the KV pool", bytes: options.kv_bytes, source };
    Ok(match kv_format(options.compute, options.kv_format) {
        KvFormat::F32 => decoder::<f32>(checkpoint, config, KvPool::new(kv_shape).map_err(memory)?, device)?,
        KvFormat::F16 => decoder::<u16>(checkpoint, config, KvPool::new(kv_shape).map_err(memory)?, device)?,
        KvFormat::Q8 => decoder::<i8>(checkpoint, config, KvPool::new(kv_shape).map_err(memory)?, device)?,
    })
}

fn decoder<E: KvElement>(
    checkpoint: &Checkpoint,
    config: ModelConfig,
    kv: KvPool<E>,
    device: Device,
) -> Result<Box<dyn Forward>, LoadError> {
    Ok(match config.architecture {
        Architecture::Llama | Architecture::Qwen2 | Architecture::Qwen3 => {
            let weights = llama::Weights::new(checkpoint, &config)?;
            Box::new(Llama::new(config, weights, kv, device))
        }
        Architecture::Gemma3 => {
            let weights = gemma3::Weights::new(checkpoint, &config)?;
            Box::new(Gemma3::new(config, weights, kv, device))
        }
    })
}

pub(crate) fn device(options: &LoadOptions, isa: Isa) -> Result<Device, LoadError> {
    let threads = if options.cores.is_empty() { options.threads } else { options.cores.len() };
    if !(1..=THREADS_MAX).contains(&threads) {
        return Err(LoadError::Option {
            option: "threads",
            message: format!("{threads} is outside 1..={THREADS_MAX}"),
        });
    }
    if let Some(core) = cores::first_forbidden(&options.cores) {
        return Err(LoadError::Option {
            option: "cores",
            message: format!("core {core} is not available to this process"),
        });
    }
    let pinned = options.cores.clone();
    let start = move |worker: usize| {
        if let Some(core) = pinned.get(worker) {
            cores::pin(*core);
        }
    };
    let pool = Pool::new(threads, start).map_err(|source| LoadError::Thread { source })?;
    let caller = Caller::new(options.cores.first().copied());
    let (adapters, integer) = (options.adapters.clone(), options.compute == Compute::Fast);
    Ok(Device { isa, pool, integer, caller, settling: Settling::default(), adapters, hidden: Vec::new() })
}

fn kv_shape(config: &ModelConfig, options: &LoadOptions) -> Result<KvShape, LoadError> {
    let block_tokens = options.kv_block_tokens;
    if block_tokens == 0 || !block_tokens.is_multiple_of(kv::TILE) || block_tokens > 1024 {
        let message = format!("{block_tokens} is no multiple of {} up to 1024", kv::TILE);
        return Err(LoadError::Option { option: "kv_block_tokens", message });
    }
    let format = kv_format(options.compute, options.kv_format);
    let block_bytes = kv_token_bytes(config, format) * block_tokens as u64;
    let blocks = (options.kv_bytes / block_bytes).min(u64::from(u32::MAX));
    if blocks == 0 {
        let message = format!("{} bytes hold no block of {block_bytes} bytes", options.kv_bytes);
        return Err(LoadError::Option { option: "kv_bytes", message });
    }
    Ok(KvShape {
        layers: config.layers,
        heads: config.kv_heads,
        head_dim: config.head_dim,
        block_tokens,
        blocks: blocks as usize,
    })
}

/// More threads than any one node has cores are a mistake.
const THREADS_MAX: usize = 1024;

/// The format that is meant by an option.
fn kv_format(compute: Compute, asked: Option<KvFormat>) -> KvFormat {
    asked.unwrap_or(match compute {
        Compute::F32 => KvFormat::F32,
        Compute::Fast => KvFormat::F16,
    })
}

/// KV bytes of one token over all layers, in the format that is meant without an option.
pub fn kv_bytes_per_token(checkpoint: &Checkpoint, compute: Compute) -> Result<u64, CheckpointError> {
    let config = checkpoint.validate()?;
    Ok(kv_token_bytes(&config, kv_format(compute, None)))
}

fn kv_token_bytes(config: &ModelConfig, format: KvFormat) -> u64 {
    (2 * config.layers * config.kv_heads * format.head_bytes(config.head_dim)) as u64
}

/// Memory of a loaded instance at full KV use, bytes: resident weights, KV pool and scratch.
pub fn estimate_instance_bytes(checkpoint: &Checkpoint, kv_bytes: u64) -> u64 {
    checkpoint.weight_bytes() + kv_bytes + SCRATCH_BYTES
}

/// Activations of the largest step, stacks and the process itself, rounded up from measurement.
pub(crate) const SCRATCH_BYTES: u64 = 48 << 20;
