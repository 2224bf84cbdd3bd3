//! The llama architecture (Touvron et al. 2023): pre-norm decoder, rotary embedding, grouped-query
//! attention, SwiGLU. Reads top to bottom: weights, buffers, one step.

use crate::{
    batch::{self, Plan},
    kernels::cpu::{
        attention::{self, Attention},
        elementwise,
        kv::{KvElement, KvPool},
        matmul::{self, Input, Job},
        matrix::Matrix,
        pool::Pool,
        quant::{self, Quantised},
        simd::Isa,
    },
};
use engine_core::{Batch, Forward, ForwardError, ForwardShape};
use engine_store::{Gguf, GgufError, LlamaConfig};

struct Layer {
    attention_norm: Vec<f32>,
    q: Matrix,
    k: Matrix,
    v: Matrix,
    attention_out: Matrix,
    ffn_norm: Vec<f32>,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

/// All weights: matrices as they lie in the file, norms copied out.
pub struct Weights {
    embedding: Matrix,
    layers: Vec<Layer>,
    output_norm: Vec<f32>,
    /// None when the embedding serves as output too.
    output: Option<Matrix>,
}

impl Weights {
    /// `gguf` must have passed `validate`.
    pub fn new(gguf: &Gguf, config: &LlamaConfig) -> Result<Self, GgufError> {
        let matrix = |name: &str| gguf.tensor_data(name).map(Matrix::new);
        let vector = |name: &str| -> Result<Vec<f32>, GgufError> {
            let tensor = gguf.tensor(name)?;
            let mut out = vec![0.0; tensor.elements() as usize];
            quant::dequantise(tensor.kind, tensor.bytes, &mut out);
            Ok(out)
        };
        let layer = |index: usize| -> Result<Layer, GgufError> {
            let name = |part: &str| format!("blk.{index}.{part}.weight");
            Ok(Layer {
                attention_norm: vector(&name("attn_norm"))?,
                q: matrix(&name("attn_q"))?,
                k: matrix(&name("attn_k"))?,
                v: matrix(&name("attn_v"))?,
                attention_out: matrix(&name("attn_output"))?,
                ffn_norm: vector(&name("ffn_norm"))?,
                gate: matrix(&name("ffn_gate"))?,
                up: matrix(&name("ffn_up"))?,
                down: matrix(&name("ffn_down"))?,
            })
        };
        Ok(Self {
            embedding: matrix("token_embd.weight")?,
            layers: (0..config.layers).map(layer).collect::<Result<_, _>>()?,
            output_norm: vector("output_norm.weight")?,
            output: if config.tied { None } else { Some(matrix("output.weight")?) },
        })
    }
}

/// Activations of a step, one row per token; kept between steps so that a step allocates next to nothing.
#[derive(Default)]
struct Buffers {
    /// The residual stream.
    x: Vec<f32>,
    normed: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    /// Inputs of the coming product, in int8.
    quantised: Quantised,
    /// (cos, sin) by token and pair.
    rotary: Vec<[f32; 2]>,
}

/// A llama on this machine's cores. `E` is how keys and values are stored.
pub struct Llama<E> {
    pub config: LlamaConfig,
    pub weights: Weights,
    pub kv: KvPool<E>,
    pub device: Device,
    pub shape: ForwardShape,
    buffers: Buffers,
    frequencies: Vec<f32>,
}

/// What a step runs on.
pub struct Device {
    pub isa: Isa,
    pub pool: Pool,
    /// Whether products round activations to int8.
    pub integer: bool,
    /// The core of the calling thread, when cores were given.
    pub caller: crate::cores::Caller,
}

impl<E: KvElement> Llama<E> {
    pub fn new(config: LlamaConfig, weights: Weights, kv: KvPool<E>, device: Device) -> Self {
        let pairs = config.head_dim / 2;
        let base = f64::from(config.rope_base);
        // As f32 from an f32 exponent, which is how the reference implementation rounds them.
        let frequency = |pair: usize| (1.0 / base.powf(f64::from(2.0 * pair as f32 / config.head_dim as f32))) as f32;
        let shape = ForwardShape {
            vocab: config.vocab,
            kv_block_tokens: kv.shape.block_tokens,
            kv_blocks: kv.shape.blocks,
            context_tokens: config.context_tokens,
        };
        let frequencies = (0..pairs).map(frequency).collect();
        Self { config, weights, kv, device, shape, buffers: Buffers::default(), frequencies }
    }

    fn embed(&mut self, batch: &Batch, plan: &Plan<'_>) {
        let width = self.config.width;
        self.buffers.x.resize(batch.tokens.len() * width, 0.0);
        for (token, row) in batch.tokens.iter().zip(self.buffers.x.chunks_exact_mut(width)) {
            self.weights.embedding.dequantise_row(*token as usize, row);
        }
        let pairs = self.frequencies.len();
        self.buffers.rotary.resize(batch.tokens.len() * pairs, [0.0; 2]);
        for (position, row) in plan.positions.iter().zip(self.buffers.rotary.chunks_exact_mut(pairs)) {
            elementwise::rotary_table(*position as f32 / self.config.rope_scale, &self.frequencies, row);
        }
    }

    fn attention(&mut self, index: usize, plan: &Plan<'_>) {
        let (config, layer, buffers, device) =
            (&self.config, &self.weights.layers[index], &mut self.buffers, &mut self.device);
        let tokens = plan.positions.len();
        device.norm(
            &buffers.x,
            &layer.attention_norm,
            config.norm_epsilon,
            &mut buffers.normed,
            &mut buffers.quantised,
        );
        buffers.q.resize(tokens * config.q_width(), 0.0);
        buffers.k.resize(tokens * config.kv_width(), 0.0);
        buffers.v.resize(tokens * config.kv_width(), 0.0);
        let jobs = vec![
            Job { matrix: &layer.q, out: &mut buffers.q, accumulate: false },
            Job { matrix: &layer.k, out: &mut buffers.k, accumulate: false },
            Job { matrix: &layer.v, out: &mut buffers.v, accumulate: false },
        ];
        device.multiply(tokens, &buffers.normed, &buffers.quantised, jobs);

        let (rotary, pairs) = (&buffers.rotary, config.head_dim / 2);
        let table = |token: usize| &rotary[token * pairs..(token + 1) * pairs];
        device.each_row(&mut buffers.q, config.q_width(), |token, row| elementwise::rotate(row, table(token)));
        device.each_row(&mut buffers.k, config.kv_width(), |token, row| elementwise::rotate(row, table(token)));
        self.kv.write(&mut device.pool, device.isa, index, &plan.slots, &buffers.k, &buffers.v);

        buffers.attended.resize(tokens * config.q_width(), 0.0);
        let job = Attention {
            kv: &self.kv,
            layer: index,
            heads: config.heads,
            spans: &plan.spans,
            queries: &buffers.q,
            out: &mut buffers.attended,
        };
        attention::attend(&mut device.pool, device.isa, job);
        device.quantise(&buffers.attended, config.q_width(), &mut buffers.quantised);
        let job = Job { matrix: &layer.attention_out, out: &mut buffers.x, accumulate: true };
        device.multiply(tokens, &buffers.attended, &buffers.quantised, vec![job]);
    }

    fn feed_forward(&mut self, index: usize, tokens: usize) {
        let (config, layer, buffers, device) =
            (&self.config, &self.weights.layers[index], &mut self.buffers, &mut self.device);
        device.norm(&buffers.x, &layer.ffn_norm, config.norm_epsilon, &mut buffers.normed, &mut buffers.quantised);
        buffers.gate.resize(tokens * config.ffn_width, 0.0);
        buffers.up.resize(tokens * config.ffn_width, 0.0);
        let jobs = vec![
            Job { matrix: &layer.gate, out: &mut buffers.gate, accumulate: false },
            Job { matrix: &layer.up, out: &mut buffers.up, accumulate: false },
        ];
        device.multiply(tokens, &buffers.normed, &buffers.quantised, jobs);
        let (isa, width, up) = (device.isa, config.ffn_width, &buffers.up);
        device.each_row(&mut buffers.gate, width, |token, row| {
            elementwise::silu_times(isa, row, &up[token * width..(token + 1) * width]);
        });
        device.quantise(&buffers.gate, width, &mut buffers.quantised);
        let job = Job { matrix: &layer.down, out: &mut buffers.x, accumulate: true };
        device.multiply(tokens, &buffers.gate, &buffers.quantised, vec![job]);
    }

    /// Logits of the rows that want them.
    fn logits(&mut self, plan: &Plan<'_>, out: &mut Vec<f32>) {
        let (config, buffers, device) = (&self.config, &mut self.buffers, &mut self.device);
        let count = plan.logit_rows.len();
        out.resize(count * config.vocab, 0.0);
        if count == 0 {
            return;
        }
        let wanted = &mut buffers.attended;
        wanted.clear();
        for row in &plan.logit_rows {
            wanted.extend_from_slice(&buffers.x[row * config.width..(row + 1) * config.width]);
        }
        let norm = &self.weights.output_norm;
        device.norm(wanted, norm, config.norm_epsilon, &mut buffers.normed, &mut buffers.quantised);
        let matrix = self.weights.output.as_ref().unwrap_or(&self.weights.embedding);
        let job = Job { matrix, out: &mut out[..], accumulate: false };
        device.multiply(count, &buffers.normed, &buffers.quantised, vec![job]);
    }
}

impl<E: KvElement> Forward for Llama<E> {
    fn shape(&self) -> ForwardShape {
        self.shape
    }

    fn forward(&mut self, batch: &Batch, out: &mut Vec<f32>) -> Result<(), ForwardError> {
        self.device.caller.pin();
        let plan = batch::plan(batch, &self.shape)?;
        if batch.tokens.is_empty() {
            out.clear();
            return Ok(());
        }
        self.embed(batch, &plan);
        for layer in 0..self.weights.layers.len() {
            self.attention(layer, &plan);
            self.feed_forward(layer, batch.tokens.len());
        }
        self.logits(&plan, out);
        batch::check_finite(batch, self.shape.vocab, out)
    }
}

impl Device {
    /// Normalises each row of `x` and, for integer products, rounds the result to int8.
    fn norm(&mut self, x: &[f32], weight: &[f32], epsilon: f32, normed: &mut Vec<f32>, quantised: &mut Quantised) {
        let (isa, width) = (self.isa, weight.len());
        normed.resize(x.len(), 0.0);
        self.each_row(normed, width, |token, row| {
            elementwise::rms_norm(isa, &x[token * width..(token + 1) * width], weight, epsilon, row);
        });
        self.quantise(normed, width, quantised);
    }

    fn quantise(&mut self, x: &[f32], width: usize, out: &mut Quantised) {
        if !self.integer || !width.is_multiple_of(quant::BLOCK) {
            return;
        }
        out.resize(x.len() / width, width);
        out.fill(&mut self.pool, self.isa, x);
    }

    fn multiply(&mut self, tokens: usize, real: &[f32], quantised: &Quantised, jobs: Vec<Job<'_>>) {
        let quantised = self.integer.then_some(quantised);
        matmul::multiply(&mut self.pool, self.isa, Input { tokens, real, quantised }, jobs);
    }

    /// Rows in parallel, several per item; a single row is done in place.
    fn each_row(&mut self, data: &mut [f32], width: usize, task: impl Fn(usize, &mut [f32]) + Sync) {
        const ROWS_PER_ITEM: usize = 8;
        self.pool.for_each_chunk(data, ROWS_PER_ITEM * width, |item, rows| {
            for (row, data) in rows.chunks_exact_mut(width).enumerate() {
                task(item * ROWS_PER_ITEM + row, data);
            }
        });
    }
}
