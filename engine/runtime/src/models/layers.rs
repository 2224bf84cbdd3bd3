//! What architectures share: the device and its products, activations, rotary tables, and the way from a
//! token to the residual stream and from there to logits.

use crate::{
    adapters::Adapters,
    batch::Plan,
    kernels::cpu::{
        elementwise,
        low_rank::{self, Product},
        matmul::{self, Input, Job},
        matrix::Matrix,
        pool::Pool,
        quant::{self, Quantised},
        settle::Settling,
        simd::Isa,
    },
};
use engine_core::{ForwardShape, TokenId};
use engine_store::{Checkpoint, CheckpointError, Linear, ModelConfig, TensorData};

/// A matrix as it lies in the file, or quantised at load.
pub(super) fn matrix(checkpoint: &Checkpoint, name: &str) -> Result<Matrix, CheckpointError> {
    checkpoint.tensor_data(name).map(Matrix::new)
}

/// A vector, copied out as f32.
pub(super) fn vector(checkpoint: &Checkpoint, name: &str) -> Result<Vec<f32>, CheckpointError> {
    let data = checkpoint.tensor_data(name)?;
    let mut out = vec![0.0; data.dims().iter().product::<u64>() as usize];
    quant::dequantise(data.kind(), &data, &mut out);
    Ok(out)
}

/// All numbers of a tensor, copied out as f32.
pub(super) fn numbers(data: &TensorData) -> Vec<f32> {
    let mut out = vec![0.0; data.dims().iter().product::<u64>() as usize];
    quant::dequantise(data.kind(), data, &mut out);
    out
}

/// What the scheduler is told of a model with this KV pool.
pub(super) fn forward_shape(config: &ModelConfig, kv: &crate::kernels::cpu::kv::KvShape) -> ForwardShape {
    ForwardShape {
        vocab: config.vocab,
        kv_block_tokens: kv.block_tokens,
        kv_blocks: kv.blocks,
        context_tokens: config.context_tokens,
    }
}

/// The rotary angles of a step's positions, for one base.
pub(super) struct Rotary {
    frequencies: Vec<f32>,
    scale: f32,
    /// (cos, sin) by token and pair.
    table: Vec<[f32; 2]>,
}

impl Rotary {
    /// Positions are divided by `scale`.
    pub(super) fn new(head_dim: usize, base: f32, scale: f32) -> Self {
        let base = f64::from(base);
        // As f32 from an f32 exponent, which is how the reference implementation rounds them.
        let frequency = |pair: usize| (1.0 / base.powf(f64::from(2.0 * pair as f32 / head_dim as f32))) as f32;
        Self { frequencies: (0..head_dim / 2).map(frequency).collect(), scale, table: Vec::new() }
    }

    /// Divides each frequency by its factor (Llama 3.1's scaling, which files carry worked out).
    pub(super) fn divide(&mut self, factors: &[f32]) {
        self.frequencies.iter_mut().zip(factors).for_each(|(frequency, factor)| *frequency /= factor);
    }

    pub(super) fn fill(&mut self, positions: &[usize]) {
        let pairs = self.frequencies.len();
        self.table.resize(positions.len() * pairs, [0.0; 2]);
        for (position, row) in positions.iter().zip(self.table.chunks_exact_mut(pairs)) {
            elementwise::rotary_table(*position as f32 / self.scale, &self.frequencies, row);
        }
    }

    pub(super) fn row(&self, token: usize) -> &[[f32; 2]] {
        let pairs = self.frequencies.len();
        &self.table[token * pairs..(token + 1) * pairs]
    }
}

/// The embedding of each token, one row each.
pub(super) fn embed(embedding: &Matrix, tokens: &[TokenId], x: &mut Vec<f32>) {
    x.resize(tokens.len() * embedding.cols, 0.0);
    for (token, row) in tokens.iter().zip(x.chunks_exact_mut(embedding.cols)) {
        embedding.dequantise_row(*token as usize, row);
    }
}

/// Activations of a step, one row per token; kept between steps so that a step allocates next to nothing.
#[derive(Default)]
pub(super) struct Buffers {
    /// The residual stream.
    pub(super) x: Vec<f32>,
    pub(super) normed: Vec<f32>,
    pub(super) q: Vec<f32>,
    pub(super) k: Vec<f32>,
    pub(super) v: Vec<f32>,
    pub(super) attended: Vec<f32>,
    pub(super) gate: Vec<f32>,
    pub(super) up: Vec<f32>,
    /// Inputs of the coming product, in int8.
    pub(super) quantised: Quantised,
}

/// What a step runs on.
pub struct Device {
    pub isa: Isa,
    pub pool: Pool,
    /// Whether products round activations to int8.
    pub integer: bool,
    /// The core of the calling thread, when cores were given.
    pub caller: crate::cores::Caller,
    /// Of the weights, into huge pages.
    pub settling: Settling,
    pub adapters: Adapters,
    /// What lies between the two products of an adapter.
    pub hidden: Vec<f32>,
}

impl Device {
    /// Normalises each row of `x` and, for integer products, rounds the result to int8.
    pub(super) fn norm(
        &mut self,
        x: &[f32],
        weight: &[f32],
        epsilon: f32,
        normed: &mut Vec<f32>,
        quantised: &mut Quantised,
    ) {
        let (isa, width) = (self.isa, weight.len());
        normed.resize(x.len(), 0.0);
        self.each_row(normed, width, |token, row| {
            elementwise::rms_norm(isa, &x[token * width..(token + 1) * width], weight, epsilon, row);
        });
        self.quantise(normed, width, quantised);
    }

    /// Adds each row of `branch`, normalised, to that of `x`.
    pub(super) fn join(&mut self, branch: &[f32], weight: &[f32], epsilon: f32, x: &mut [f32]) {
        let (isa, width) = (self.isa, weight.len());
        self.each_row(x, width, |token, row| {
            elementwise::add_rms_norm(isa, &branch[token * width..(token + 1) * width], weight, epsilon, row);
        });
    }

    /// Adds a bias to each row.
    pub(super) fn add_bias(&mut self, x: &mut [f32], bias: &[f32]) {
        self.each_row(x, bias.len(), |_, row| row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias));
    }

    pub(super) fn quantise(&mut self, x: &[f32], width: usize, out: &mut Quantised) {
        if !self.integer || !width.is_multiple_of(quant::BLOCK) {
            return;
        }
        out.resize(x.len() / width, width);
        out.fill(&mut self.pool, self.isa, x);
    }

    /// `next` are the matrices of the product after this one.
    pub(super) fn multiply(
        &mut self,
        tokens: usize,
        real: &[f32],
        quantised: &Quantised,
        jobs: Vec<Job<'_>>,
        next: &[&Matrix],
    ) {
        let quantised = self.integer.then_some(quantised);
        matmul::multiply(&mut self.pool, self.isa, Input { tokens, real, quantised }, jobs, next);
    }

    /// Adds to products of `real` what the adapters of their rows change of them.
    pub(super) fn adapt(&mut self, plan: &Plan<'_>, layer: usize, real: &[f32], outputs: &mut [(Linear, &mut [f32])]) {
        if plan.adapted.is_empty() {
            return;
        }
        let mut products = Vec::new();
        for adapted in &plan.adapted {
            for (out, (linear, _)) in outputs.iter().enumerate() {
                let pair = adapted.weights.pair(layer, *linear);
                products.extend(pair.map(|pair| Product { pair, rows: &adapted.rows, out }));
            }
        }
        if products.is_empty() {
            return;
        }
        let mut outputs: Vec<&mut [f32]> = outputs.iter_mut().map(|(_, out)| &mut **out).collect();
        low_rank::apply(&mut self.pool, self.isa, real, &mut outputs, &products, &mut self.hidden);
    }

    /// Rows in parallel, several per item; what is little work is done in place.
    pub(super) fn each_row(&mut self, data: &mut [f32], width: usize, task: impl Fn(usize, &mut [f32]) + Sync) {
        /// Numbers that one thread is through with before another would have begun.
        const ALONE: usize = 8192;
        if data.len() <= ALONE {
            data.chunks_exact_mut(width).enumerate().for_each(|(row, data)| task(row, data));
            return;
        }
        let rows_per_item = (data.len() / width / (2 * self.pool.threads())).clamp(1, 8);
        self.pool.for_each_chunk(data, rows_per_item * width, |item, rows| {
            for (row, data) in rows.chunks_exact_mut(width).enumerate() {
                task(item * rows_per_item + row, data);
            }
        });
    }

    /// Logits of the rows of the residual stream that want them; `norm` is its weight and epsilon.
    pub(super) fn logits(
        &mut self,
        buffers: &mut Buffers,
        plan: &Plan<'_>,
        norm: (&[f32], f32),
        matrix: &Matrix,
        out: &mut Vec<f32>,
    ) {
        let (count, width) = (plan.logit_rows.len(), matrix.cols);
        out.resize(count * matrix.rows, 0.0);
        if count == 0 {
            return;
        }
        let wanted = &mut buffers.attended;
        wanted.clear();
        for row in &plan.logit_rows {
            wanted.extend_from_slice(&buffers.x[row * width..(row + 1) * width]);
        }
        self.norm(wanted, norm.0, norm.1, &mut buffers.normed, &mut buffers.quantised);
        let job = Job { matrix, out: &mut out[..], accumulate: false };
        self.multiply(count, &buffers.normed, &buffers.quantised, vec![job], &[]);
    }
}
