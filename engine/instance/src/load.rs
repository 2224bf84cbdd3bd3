//! From options to a device: the one place that knows checkpoints and the CPU runtime.

mod cuda;
mod stored;

use crate::clock;
use crate::ends;
use crate::error::EngineError;
use crate::options::{Compute, Device, EngineOptions, KvType};
use crate::shelf::AdapterHost;
use engine_core::{Encode, Forward, TokenId};
use engine_runtime::{Adapters, KvFormat, LoadOptions};
use engine_store::{Checkpoint, EncoderCheckpoint, EncoderError, Store};
use engine_wire::control::Tier;

/// A device that is ready to compute.
pub struct LoadedModel {
    pub forward: Box<dyn Forward>,
    /// Tokens that end a sequence.
    pub eos_token_ids: Vec<TokenId>,
    /// How adapters come to the device; none when it takes none.
    pub adapters: Option<AdapterHost>,
    pub came: Came,
}

/// How the weights came.
#[derive(Clone, Copy, Debug, Default)]
pub struct Came {
    /// CLOCK_MONOTONIC when they could be read where they are, checked, ns.
    pub at_ns: u64,
    /// Where they were.
    pub tier: Option<Tier>,
    /// Bytes that came from disk.
    pub read_bytes: u64,
}

impl Came {
    /// From files that are mapped as they lie.
    fn mapped() -> Self {
        Self { at_ns: clock::monotonic_ns(), tier: Some(Tier::File), read_bytes: 0 }
    }
}

/// An encoder that is ready to compute.
pub struct LoadedEncoder {
    pub device: Box<dyn Encode>,
    pub came: Came,
}

/// Either kind of model.
pub enum Loaded {
    Decoder(LoadedModel),
    Encoder(LoadedEncoder),
}

impl From<LoadedModel> for Loaded {
    fn from(model: LoadedModel) -> Self {
        Self::Decoder(model)
    }
}

impl From<LoadedEncoder> for Loaded {
    fn from(encoder: LoadedEncoder) -> Self {
        Self::Encoder(encoder)
    }
}

/// Makes the device on the step thread, which then owns it. `cores` are those that the process has.
pub type Loader = Box<dyn FnOnce(&EngineOptions, &[u32]) -> Result<Loaded, EngineError> + Send>;

/// Loads the checkpoint that the options name.
pub fn load_checkpoint(options: &EngineOptions, cores: &[u32]) -> Result<Loaded, EngineError> {
    if EncoderCheckpoint::is_one(&options.model) {
        return load_encoder(options, cores).map(Loaded::Encoder);
    }
    load_decoder(options, cores).map(Loaded::Decoder)
}

fn load_decoder(options: &EngineOptions, cores: &[u32]) -> Result<LoadedModel, EngineError> {
    let failed = |message: String| EngineError::Model { path: options.model.clone(), message };
    // A checkpoint that is rounded at load is another than the head by itself.
    let head = options.head.as_deref().filter(|_| options.quantise.is_none());
    let (checkpoint, came) = match &options.store {
        Some(store) => stored::open(options, store, head).map_err(failed)?,
        None if Store::is_head(&options.model) => {
            return Err(failed("it is a head of the store, which holds no weights".into()));
        }
        None => {
            let opened = Checkpoint::open(&options.model, options.quantise);
            (opened.map_err(|error| failed(error.to_string()))?, Came::mapped())
        }
    };
    checkpoint.will_need();
    let eos_token_ids = match head {
        Some(head) => head.eos_token_ids.clone(),
        None => ends::of_checkpoint(&checkpoint, &options.model).map_err(failed)?,
    };
    if let Device::Cuda(ordinal) = options.device {
        let forward = cuda::load(&checkpoint, options, ordinal).map_err(failed)?;
        return Ok(LoadedModel { forward, eos_token_ids, adapters: None, came });
    }
    let table = Adapters::default();
    let load_options = LoadOptions { adapters: table.clone(), ..load_options(options, cores) };
    let compute = load_options.compute;
    let forward = engine_runtime::load(&checkpoint, load_options).map_err(|error| failed(error.to_string()))?;
    let config = checkpoint.validate().map_err(|error| failed(error.to_string()))?;
    let adapters = Some(AdapterHost { table, config, compute });
    Ok(LoadedModel { forward, eos_token_ids, adapters, came })
}

fn load_encoder(options: &EngineOptions, cores: &[u32]) -> Result<LoadedEncoder, EngineError> {
    let failed = |message: String| EngineError::Model { path: options.model.clone(), message };
    if options.device != Device::Cpu {
        return Err(failed("embedding models run on the CPU alone: leave --device out".into()));
    }
    if options.quantise.is_some() {
        return Err(failed(EncoderError::Quantised { path: options.model.clone() }.to_string()));
    }
    let checkpoint = EncoderCheckpoint::open(&options.model).map_err(|error| failed(error.to_string()))?;
    checkpoint.will_need();
    let came = Came::mapped();
    let device = engine_runtime::load_encoder(&checkpoint, &load_options(options, cores))
        .map_err(|error| failed(error.to_string()))?;
    Ok(LoadedEncoder { device, came })
}

fn load_options(options: &EngineOptions, cores: &[u32]) -> LoadOptions {
    LoadOptions {
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
    }
}
