//! A checkpoint's weights on the device: copied as they are stored, on the upload stream, and packed there for the kernels;
//! one arena for all.

use crate::{
    arena::Arena,
    device::{Device, Ptr},
    error::CudaError,
    format::Format,
    kernels::Matrix,
};
use engine_store::{Architecture, Biases, Checkpoint, GgmlType, ModelConfig, Rotation, TensorData};
use std::ops::Deref;

/// Stored rows that are on the device before they are packed, bytes. Copies and packing take turns on one stream.
const STAGING_BYTES: usize = 32 << 20;

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

/// All of a model: where its weights are, and what else defines it.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) config: ModelConfig,
    pub(crate) embedding: Matrix,
    pub(crate) embedding_scale: f32,
    pub(crate) layers: Vec<Layer>,
    pub(crate) output_norm: Ptr,
    pub(crate) output: Linear,
    pub(crate) frequencies: Vec<Frequencies>,
    pub(crate) gelu: bool,
    pub(crate) halves: bool,
}

/// A model and the memory that holds it.
#[derive(Debug)]
pub(crate) struct Weights {
    model: Model,
    arena: Arena,
}

impl Weights {
    /// Packs and copies all weights.
    ///
    /// # Errors
    /// When the checkpoint is not one that kernels can run, or the device has no room.
    pub(crate) fn load(device: &mut Device, checkpoint: &Checkpoint) -> Result<Self, CudaError> {
        let config = checkpoint.validate()?;
        check(&config)?;
        let mut loader = Loader::new(device, checkpoint)?;
        let model = loader.model(config);
        // Copies read this process's memory until then, whether or not all was well.
        loader.device.wait(&loader.device.upload)?;
        Ok(Self { model: model?, arena: loader.arena })
    }

    /// Bytes of all of it.
    pub(crate) fn bytes(&self) -> u64 {
        self.arena.used()
    }
}

impl Deref for Weights {
    type Target = Model;

    fn deref(&self) -> &Model {
        &self.model
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
    device: &'a mut Device,
    checkpoint: &'a Checkpoint,
    arena: Arena,
    /// Where stored rows wait for being packed.
    staging: Ptr,
    staging_bytes: usize,
    _staging_arena: Arena,
    /// What copies read that are on their way.
    vectors: Vec<Vec<u8>>,
    tensors: Vec<TensorData>,
}

impl<'a> Loader<'a> {
    fn new(device: &'a mut Device, checkpoint: &'a Checkpoint) -> Result<Self, CudaError> {
        // Vectors and paddings are small beside matrices; addresses cost nothing.
        let packed = |dims: &[u64], kind| match (dims, Format::of(kind)) {
            ([cols, rows], Some(format)) => format.bytes(*rows as usize, *cols as usize) as u64,
            _ => dims.iter().product::<u64>() * 4,
        };
        let bytes: u64 = checkpoint.tensors().map(|tensor| packed(tensor.dims, tensor.kind) + 4096).sum();
        let arena = Arena::new(&device.context, "weights", 2 * bytes)?;
        let row_bytes = |dims: &[u64], kind: GgmlType| kind.bytes(dims[0]).unwrap_or(0) as usize;
        let widest = checkpoint.tensors().map(|tensor| row_bytes(tensor.dims, tensor.kind)).max().unwrap_or(0);
        let largest = checkpoint.tensors().map(|tensor| tensor.bytes() as usize).max().unwrap_or(0);
        let staging_bytes = STAGING_BYTES.min(largest).max(16 * widest);
        let mut staging_arena = Arena::new(&device.context, "weights on their way", staging_bytes as u64 + 256)?;
        let staging = staging_arena.take(staging_bytes as u64)?;
        let (vectors, tensors) = (Vec::new(), Vec::new());
        Ok(Self { device, checkpoint, arena, staging, staging_bytes, _staging_arena: staging_arena, vectors, tensors })
    }

    fn upload(&mut self, bytes: Vec<u8>) -> Result<Ptr, CudaError> {
        let at = self.arena.take(bytes.len() as u64)?;
        // SAFETY: the arena has just given as many bytes; they are kept until the stream has been waited for.
        unsafe { self.device.to_device(&self.device.upload, at, &bytes) }?;
        self.vectors.push(bytes);
        Ok(at)
    }

    fn model(&mut self, config: ModelConfig) -> Result<Model, CudaError> {
        let embedding = self.linear(&["token_embd.weight".to_owned()], None)?;
        let layers = (0..config.layers).map(|index| self.layer(&config, index)).collect::<Result<_, _>>()?;
        let output = match config.tied {
            true => embedding.clone(),
            false => self.linear(&["output.weight".to_owned()], None)?,
        };
        let gemma = config.architecture == Architecture::Gemma3;
        Ok(Model {
            embedding: embedding.parts[0].1,
            embedding_scale: if gemma { (config.width as f32).sqrt() } else { 1.0 },
            layers,
            output_norm: self.vector("output_norm.weight")?,
            output,
            frequencies: self.frequencies(&config)?,
            gelu: gemma,
            halves: config.rotation == Rotation::Halves,
            config,
        })
    }

    /// Copies a matrix in pieces of whole bands, each packed when it has come.
    fn matrix(&mut self, data: &TensorData) -> Result<Matrix, CudaError> {
        let (kind, cols, rows) = (data.kind(), data.dims()[0] as usize, data.dims()[1] as usize);
        let known = Format::of(kind).zip(kind.bytes(cols as u64));
        let Some((format, row_bytes)) = known.filter(|(_, row_bytes)| data.len() >= *row_bytes as usize * rows) else {
            return Err(CudaError::Model { message: format!("no kernel knows weights of type {kind}") });
        };
        let row_bytes = row_bytes as usize;
        let at = self.arena.take(format.bytes(rows, cols) as u64)?;
        let matrix = Matrix { format, at, rows, cols };
        self.tensors.push(data.clone());
        // Of a launch, which has a block for each 16 rows in the second dimension of its grid.
        let step = (self.staging_bytes / row_bytes).min(16 * 65_535) / 16 * 16;
        for first in (0..rows).step_by(step) {
            let count = step.min(rows - first);
            let bytes = &data[first * row_bytes..][..count * row_bytes];
            // SAFETY: staging holds `step` rows, and is read before the next copy on the same stream; the tensor is kept
            // until the stream has been waited for; the matrix has room for all bands.
            unsafe {
                self.device.to_device(&self.device.upload, self.staging, bytes)?;
                self.device.pack(matrix, first, count, self.staging)?;
            }
        }
        Ok(matrix)
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
            let matrix = self.matrix(data)?;
            match parts.last_mut() {
                Some((_, last)) if goes_on(last, &matrix) => last.rows += matrix.rows,
                _ => parts.push((rows, matrix)),
            }
            rows += matrix.rows;
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

/// Whether a matrix lies right behind another of its kind, so that both are one.
fn goes_on(matrix: &Matrix, next: &Matrix) -> bool {
    let end = matrix.at.offset(matrix.format.bytes(matrix.rows, matrix.cols) as u64);
    matrix.format == next.format && matrix.rows.is_multiple_of(16) && end == next.at
}

/// Of each pair of a head, rounded as the reference implementation rounds: an f32 exponent, an f32 result.
fn frequencies(head_dim: usize, base: f32) -> Vec<f32> {
    let base = f64::from(base);
    let frequency = |pair: usize| (1.0 / base.powf(f64::from(2.0 * pair as f32 / head_dim as f32))) as f32;
    (0..head_dim / 2).map(frequency).collect()
}
