//! A checkpoint's weights on the device: packed by this process, copied on the upload stream, one arena for all.

use crate::{
    arena::Arena,
    device::{Device, Ptr},
    error::CudaError,
    format::Format,
    kernels::Matrix,
    pack::{Stored, pack},
};
use engine_store::{Architecture, Biases, Checkpoint, GgmlType, ModelConfig, Rotation, TensorData};

/// Bytes that may wait in host memory for their copy.
const PENDING_BYTES: usize = 256 << 20;

/// Matrices that read the same input and write side by side: rows of all one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// With the row of the output at which each begins.
    pub(crate) parts: Vec<(usize, Matrix)>,
    pub(crate) rows: usize,
    /// Of all rows, or null.
    pub(crate) bias: Ptr,
}

/// One layer.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) attention_norm: Ptr,
    pub(crate) qkv: Linear,
    /// Of each head of queries and of keys, or null.
    pub(crate) q_norm: Ptr,
    pub(crate) k_norm: Ptr,
    pub(crate) attention_out: Linear,
    /// Of what attention adds to the residual stream, or null.
    pub(crate) attention_post_norm: Ptr,
    pub(crate) ffn_norm: Ptr,
    pub(crate) gate_up: Linear,
    pub(crate) down: Linear,
    pub(crate) ffn_post_norm: Ptr,
    pub(crate) window: Option<usize>,
    /// Which of [`Weights::frequencies`].
    pub(crate) rotary: usize,
}

/// Rotary frequencies of some layers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frequencies {
    pub(crate) at: Ptr,
    /// Positions are divided by it.
    pub(crate) position_scale: f32,
}

/// All of a model.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) config: ModelConfig,
    pub(crate) embedding: Matrix,
    pub(crate) embedding_scale: f32,
    pub(crate) layers: Vec<Layer>,
    pub(crate) output_norm: Ptr,
    pub(crate) output: Linear,
    pub(crate) frequencies: Vec<Frequencies>,
    pub(crate) gelu: bool,
    pub(crate) halves: bool,
    /// Holds all of it.
    pub(crate) arena: Arena,
}

impl Weights {
    /// Packs and copies all weights.
    ///
    /// # Errors
    /// When the checkpoint is not one that kernels can run, or the device has no room.
    pub(crate) fn load(device: &Device, checkpoint: &Checkpoint) -> Result<Self, CudaError> {
        let config = checkpoint.validate()?;
        check(&config)?;
        let mut loader = Loader::new(device, checkpoint)?;
        let embedding_data = checkpoint.tensor_data("token_embd.weight")?;
        let embedding = loader.matrices(std::slice::from_ref(&embedding_data))?;
        let layers = (0..config.layers).map(|index| loader.layer(&config, index)).collect::<Result<_, _>>()?;
        let output = match config.tied {
            true => embedding.clone(),
            false => loader.linear(&["output.weight".to_owned()], None)?,
        };
        let gemma = config.architecture == Architecture::Gemma3;
        let out = Self {
            embedding: embedding.parts[0].1,
            embedding_scale: if gemma { (config.width as f32).sqrt() } else { 1.0 },
            layers,
            output_norm: loader.vector("output_norm.weight")?,
            output,
            frequencies: loader.frequencies(&config)?,
            gelu: gemma,
            halves: config.rotation == Rotation::Halves,
            config,
            arena: loader.finish()?,
        };
        Ok(out)
    }
}

/// What these kernels cannot run, and others can.
fn check(config: &ModelConfig) -> Result<(), CudaError> {
    if ![32, 64, 96, 128, 256].contains(&config.head_dim) {
        let message = format!("heads of {} numbers: kernels know 32, 64, 96, 128 and 256", config.head_dim);
        return Err(CudaError::Model { message });
    }
    Ok(())
}

struct Loader<'a> {
    device: &'a Device,
    checkpoint: &'a Checkpoint,
    arena: Arena,
    /// Copies on their way, and their bytes.
    pending: Vec<Vec<u8>>,
    pending_bytes: usize,
}

impl<'a> Loader<'a> {
    fn new(device: &'a Device, checkpoint: &'a Checkpoint) -> Result<Self, CudaError> {
        // Vectors and paddings are small beside matrices; addresses cost nothing.
        let packed = |dims: &[u64], kind| match (dims, Format::of(kind)) {
            ([cols, rows], Some(format)) => format.bytes(*rows as usize, *cols as usize) as u64,
            _ => dims.iter().product::<u64>() * 4,
        };
        let bytes: u64 = checkpoint.tensors().map(|tensor| packed(tensor.dims, tensor.kind) + 4096).sum();
        let arena = Arena::new(&device.context, "weights", 2 * bytes)?;
        Ok(Self { device, checkpoint, arena, pending: Vec::new(), pending_bytes: 0 })
    }

    fn upload(&mut self, bytes: Vec<u8>) -> Result<Ptr, CudaError> {
        let at = self.arena.take(bytes.len() as u64)?;
        // SAFETY: the arena has just given as many bytes; they are kept until the stream has been waited for.
        unsafe { self.device.to_device(&self.device.upload, at, &bytes) }?;
        self.pending_bytes += bytes.len();
        self.pending.push(bytes);
        if self.pending_bytes > PENDING_BYTES {
            self.settle()?;
        }
        Ok(at)
    }

    fn settle(&mut self) -> Result<(), CudaError> {
        self.device.wait(&self.device.upload)?;
        self.pending.clear();
        self.pending_bytes = 0;
        Ok(())
    }

    fn finish(mut self) -> Result<Arena, CudaError> {
        self.settle()?;
        Ok(self.arena)
    }

    fn numbers(&mut self, numbers: &[f32]) -> Result<Ptr, CudaError> {
        self.upload(numbers.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// f32, as `validate` has checked.
    fn vector(&mut self, name: &str) -> Result<Ptr, CudaError> {
        let data = self.checkpoint.tensor_data(name)?;
        self.upload(data[..4 * data.dims()[0] as usize].to_vec())
    }

    fn vector_if(&mut self, wanted: bool, name: &str) -> Result<Ptr, CudaError> {
        if wanted { self.vector(name) } else { Ok(Ptr::NULL) }
    }

    /// Neighbours of one type become one matrix.
    fn matrices(&mut self, tensors: &[TensorData]) -> Result<Linear, CudaError> {
        let mut parts: Vec<(usize, Matrix)> = Vec::new();
        let mut rows = 0;
        for data in tensors {
            let kind = data.kind();
            let (cols, more) = (data.dims()[0] as usize, data.dims()[1] as usize);
            let packed = pack(Stored { kind, rows: more, cols, bytes: data })
                .zip(Format::of(kind))
                .ok_or_else(|| CudaError::Model { message: format!("no kernel knows weights of type {kind}") })?;
            let (bytes, format) = packed;
            let at = self.upload(bytes)?;
            match parts.last_mut() {
                Some((_, last)) if last.format == format && last.rows % 16 == 0 && ends_at(last, at) => {
                    last.rows += more;
                }
                _ => parts.push((rows, Matrix { format, at, rows: more, cols })),
            }
            rows += more;
        }
        Ok(Linear { parts, rows, bias: Ptr::NULL })
    }

    fn linear(&mut self, weights: &[String], biases: Option<&[String]>) -> Result<Linear, CudaError> {
        let data = |name: &String| self.checkpoint.tensor_data(name);
        let tensors = weights.iter().map(data).collect::<Result<Vec<_>, _>>()?;
        let bias = biases.map(|names| names.iter().map(data).collect::<Result<Vec<_>, _>>()).transpose()?;
        let linear = self.matrices(&tensors)?;
        let bias = match bias {
            Some(parts) => self.upload(parts.iter().flat_map(|part| part.iter().copied()).collect())?,
            None => Ptr::NULL,
        };
        Ok(Linear { bias, ..linear })
    }

    fn layer(&mut self, config: &ModelConfig, index: usize) -> Result<Layer, CudaError> {
        let name = |part: &str| format!("blk.{index}.{part}");
        let names = |parts: &[&str], end: &str| -> Vec<String> {
            parts.iter().map(|part| format!("blk.{index}.{part}.{end}")).collect()
        };
        let gemma = config.architecture == Architecture::Gemma3;
        let head_norms = gemma || config.architecture == Architecture::Qwen3;
        let qkv = ["attn_q", "attn_k", "attn_v"];
        let qkv_bias = (config.biases != Biases::None).then(|| names(&qkv, "bias"));
        let out_bias = (config.biases == Biases::Attention).then(|| names(&["attn_output"], "bias"));
        let window = config.window(index);
        Ok(Layer {
            attention_norm: self.vector(&name("attn_norm.weight"))?,
            qkv: self.linear(&names(&qkv, "weight"), qkv_bias.as_deref())?,
            q_norm: self.vector_if(head_norms, &name("attn_q_norm.weight"))?,
            k_norm: self.vector_if(head_norms, &name("attn_k_norm.weight"))?,
            attention_out: self.linear(&names(&["attn_output"], "weight"), out_bias.as_deref())?,
            attention_post_norm: self.vector_if(gemma, &name("post_attention_norm.weight"))?,
            ffn_norm: self.vector(&name("ffn_norm.weight"))?,
            gate_up: self.linear(&names(&["ffn_gate", "ffn_up"], "weight"), None)?,
            down: self.linear(&names(&["ffn_down"], "weight"), None)?,
            ffn_post_norm: self.vector_if(gemma, &name("post_ffw_norm.weight"))?,
            window,
            rotary: usize::from(gemma && window.is_some()),
        })
    }

    /// Of the layers that see everything (and of all, where there is but one kind), then of those that slide.
    fn frequencies(&mut self, config: &ModelConfig) -> Result<Vec<Frequencies>, CudaError> {
        let mut global = frequencies(config.head_dim, config.rope_base);
        let factors = "rope_freqs.weight";
        if self.checkpoint.has_tensor(factors) && config.architecture != Architecture::Gemma3 {
            let data = self.checkpoint.tensor_data(factors)?;
            debug_assert_eq!(data.kind(), GgmlType::F32);
            let factors = data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
            global.iter_mut().zip(factors).for_each(|(frequency, factor)| *frequency /= factor);
        }
        let local_base = config.sliding.and_then(|sliding| sliding.rope_base).unwrap_or(config.rope_base);
        let local = frequencies(config.head_dim, local_base);
        Ok(vec![
            Frequencies { at: self.numbers(&global)?, position_scale: config.rope_scale },
            Frequencies { at: self.numbers(&local)?, position_scale: 1.0 },
        ])
    }
}

fn ends_at(matrix: &Matrix, at: Ptr) -> bool {
    matrix.at.offset(matrix.format.bytes(matrix.rows, matrix.cols) as u64) == at
}

/// Of each pair of a head, rounded as the reference implementation rounds: an f32 exponent, an f32 result.
fn frequencies(head_dim: usize, base: f32) -> Vec<f32> {
    let base = f64::from(base);
    let frequency = |pair: usize| (1.0 / base.powf(f64::from(2.0 * pair as f32 / head_dim as f32))) as f32;
    (0..head_dim / 2).map(frequency).collect()
}
