//! The Gemma 3 architecture (Gemma Team 2025), text only: a pre-norm decoder whose branches are normed once more
//! before they join the residual stream, with norms of queries and keys, GeGLU, and five layers with a sliding
//! window and a short rotary base for each layer that sees everything. Reads top to bottom: weights, one step.

use super::layers::{self, Buffers, Device, Rotary, forward_shape};
use crate::{
    batch::{self, Plan},
    kernels::cpu::{
        attention::{self, Attention},
        elementwise,
        kv::KvPool,
        kv_format::KvElement,
        matmul::Job,
        matrix::Matrix,
    },
};
use engine_core::{Batch, Forward, ForwardError, ForwardShape};
use engine_store::{Checkpoint, CheckpointError, Linear, ModelConfig};

struct Layer {
    attention_norm: Vec<f32>,
    q: Matrix,
    k: Matrix,
    v: Matrix,
    q_norm: Vec<f32>,
    k_norm: Vec<f32>,
    attention_out: Matrix,
    attention_post_norm: Vec<f32>,
    ffn_norm: Vec<f32>,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
    ffn_post_norm: Vec<f32>,
}

/// All weights: matrices as they lie in the file, norms copied out. GGUF stores norms with their 1 added.
pub struct Weights {
    embedding: Matrix,
    layers: Vec<Layer>,
    output_norm: Vec<f32>,
    /// None when the embedding serves as output too.
    output: Option<Matrix>,
}

impl Weights {
    /// `checkpoint` must have passed `validate`.
    pub fn new(checkpoint: &Checkpoint, config: &ModelConfig) -> Result<Self, CheckpointError> {
        let matrix = |name: &str| layers::matrix(checkpoint, name);
        let vector = |name: &str| layers::vector(checkpoint, name);
        let layer = |index: usize| -> Result<Layer, CheckpointError> {
            let name = |part: &str| format!("blk.{index}.{part}.weight");
            Ok(Layer {
                attention_norm: vector(&name("attn_norm"))?,
                q: matrix(&name("attn_q"))?,
                k: matrix(&name("attn_k"))?,
                v: matrix(&name("attn_v"))?,
                q_norm: vector(&name("attn_q_norm"))?,
                k_norm: vector(&name("attn_k_norm"))?,
                attention_out: matrix(&name("attn_output"))?,
                attention_post_norm: vector(&name("post_attention_norm"))?,
                ffn_norm: vector(&name("ffn_norm"))?,
                gate: matrix(&name("ffn_gate"))?,
                up: matrix(&name("ffn_up"))?,
                down: matrix(&name("ffn_down"))?,
                ffn_post_norm: vector(&name("post_ffw_norm"))?,
            })
        };
        Ok(Self {
            embedding: matrix("token_embd.weight")?,
            layers: (0..config.layers).map(layer).collect::<Result<_, _>>()?,
            output_norm: vector("output_norm.weight")?,
            output: if config.tied { None } else { Some(matrix("output.weight")?) },
        })
    }

    /// Those that a step reads whole, in the order in which it does.
    fn matrices_mut(&mut self) -> Vec<&mut Matrix> {
        let layers = self.layers.iter_mut().flat_map(|layer| {
            let Layer { q, k, v, attention_out, gate, up, down, .. } = layer;
            [q, k, v, attention_out, gate, up, down]
        });
        layers.chain([self.output.as_mut().unwrap_or(&mut self.embedding)]).collect()
    }

    fn output(&self) -> &Matrix {
        self.output.as_ref().unwrap_or(&self.embedding)
    }
}

/// A Gemma 3 on this machine's cores. `E` is how keys and values are stored.
pub struct Gemma3<E> {
    config: ModelConfig,
    weights: Weights,
    kv: KvPool<E>,
    device: Device,
    shape: ForwardShape,
    buffers: Buffers,
    /// What a branch adds to the residual stream, before its norm.
    branch: Vec<f32>,
    /// Of the layers that see everything.
    global: Rotary,
    /// Of the layers with a sliding window.
    local: Rotary,
}

impl<E: KvElement> Gemma3<E> {
    pub fn new(config: ModelConfig, weights: Weights, kv: KvPool<E>, device: Device) -> Self {
        let shape = forward_shape(&config, &kv.shape);
        let global = Rotary::new(config.head_dim, config.rope_base, config.rope_scale);
        let local_base = config.sliding.and_then(|sliding| sliding.rope_base).unwrap_or(config.rope_base);
        let local = Rotary::new(config.head_dim, local_base, 1.0);
        let (buffers, branch) = (Buffers::default(), Vec::new());
        Self { config, weights, kv, device, shape, buffers, branch, global, local }
    }

    fn embed(&mut self, batch: &Batch, plan: &Plan<'_>) {
        layers::embed(&self.weights.embedding, &batch.tokens, &mut self.buffers.x);
        let scale = (self.config.width as f32).sqrt();
        self.buffers.x.iter_mut().for_each(|x| *x *= scale);
        self.global.fill(&plan.positions);
        self.local.fill(&plan.positions);
    }

    fn attention(&mut self, index: usize, plan: &Plan<'_>) {
        let (config, layer, buffers, device) =
            (&self.config, &self.weights.layers[index], &mut self.buffers, &mut self.device);
        let (tokens, epsilon, isa) = (plan.positions.len(), config.norm_epsilon, device.isa);
        device.norm(&buffers.x, &layer.attention_norm, epsilon, &mut buffers.normed, &mut buffers.quantised);
        buffers.q.resize(tokens * config.q_width(), 0.0);
        buffers.k.resize(tokens * config.kv_width(), 0.0);
        buffers.v.resize(tokens * config.kv_width(), 0.0);
        let jobs = vec![
            Job { matrix: &layer.q, out: &mut buffers.q, accumulate: false },
            Job { matrix: &layer.k, out: &mut buffers.k, accumulate: false },
            Job { matrix: &layer.v, out: &mut buffers.v, accumulate: false },
        ];
        device.multiply(tokens, &buffers.normed, &buffers.quantised, jobs, &[&layer.attention_out]);

        let mut outputs =
            [(Linear::Q, &mut buffers.q[..]), (Linear::K, &mut buffers.k[..]), (Linear::V, &mut buffers.v[..])];
        device.adapt(plan, index, &buffers.normed, &mut outputs);
        let window = config.window(index);
        let rotary = if window.is_some() { &self.local } else { &self.global };
        for (x, norm) in [(&mut buffers.q, &layer.q_norm), (&mut buffers.k, &layer.k_norm)] {
            let width = x.len() / tokens;
            device.each_row(x, width, |token, row| {
                elementwise::rms_norm_heads(isa, row, norm, epsilon);
                elementwise::rotate_halves(row, rotary.row(token));
            });
        }
        self.kv.write(&mut device.pool, isa, index, &plan.slots, &buffers.k, &buffers.v);

        buffers.attended.resize(tokens * config.q_width(), 0.0);
        let job = Attention {
            kv: &self.kv,
            layer: index,
            heads: config.heads,
            scale: config.query_scale(),
            window,
            spans: &plan.spans,
            queries: &buffers.q,
            out: &mut buffers.attended,
        };
        attention::attend(&mut device.pool, isa, job);
        device.quantise(&buffers.attended, config.q_width(), &mut buffers.quantised);
        let job = Job { matrix: &layer.attention_out, out: &mut self.branch, accumulate: false };
        device.multiply(tokens, &buffers.attended, &buffers.quantised, vec![job], &[&layer.gate, &layer.up]);
        device.adapt(plan, index, &buffers.attended, &mut [(Linear::Output, &mut self.branch[..])]);
        device.join(&self.branch, &layer.attention_post_norm, epsilon, &mut buffers.x);
    }

    fn feed_forward(&mut self, index: usize, plan: &Plan<'_>) {
        let tokens = plan.positions.len();
        let (config, layer, buffers, device) =
            (&self.config, &self.weights.layers[index], &mut self.buffers, &mut self.device);
        let (width, epsilon, isa) = (config.ffn_width, config.norm_epsilon, device.isa);
        let next = match self.weights.layers.get(index + 1) {
            Some(layer) => vec![&layer.q, &layer.k, &layer.v],
            None => vec![self.weights.output()],
        };
        device.norm(&buffers.x, &layer.ffn_norm, epsilon, &mut buffers.normed, &mut buffers.quantised);
        buffers.gate.resize(tokens * width, 0.0);
        buffers.up.resize(tokens * width, 0.0);
        let jobs = vec![
            Job { matrix: &layer.gate, out: &mut buffers.gate, accumulate: false },
            Job { matrix: &layer.up, out: &mut buffers.up, accumulate: false },
        ];
        device.multiply(tokens, &buffers.normed, &buffers.quantised, jobs, &[&layer.down]);
        let mut outputs = [(Linear::Gate, &mut buffers.gate[..]), (Linear::Up, &mut buffers.up[..])];
        device.adapt(plan, index, &buffers.normed, &mut outputs);
        let up = &buffers.up;
        device.each_row(&mut buffers.gate, width, |token, row| {
            elementwise::gelu_times(isa, row, &up[token * width..(token + 1) * width]);
        });
        device.quantise(&buffers.gate, width, &mut buffers.quantised);
        let job = Job { matrix: &layer.down, out: &mut self.branch, accumulate: false };
        device.multiply(tokens, &buffers.gate, &buffers.quantised, vec![job], &next);
        device.adapt(plan, index, &buffers.gate, &mut [(Linear::Down, &mut self.branch[..])]);
        device.join(&self.branch, &layer.ffn_post_norm, epsilon, &mut buffers.x);
    }
}

impl<E: KvElement> Forward for Gemma3<E> {
    fn shape(&self) -> ForwardShape {
        self.shape
    }

    fn forward(&mut self, batch: &Batch, out: &mut Vec<f32>) -> Result<(), ForwardError> {
        self.device.caller.pin();
        let plan = batch::plan(batch, &self.shape, &self.device.adapters)?;
        if batch.tokens.is_empty() {
            out.clear();
            return Ok(());
        }
        self.embed(batch, &plan);
        self.branch.resize(batch.tokens.len() * self.config.width, 0.0);
        for layer in 0..self.weights.layers.len() {
            self.attention(layer, &plan);
            self.feed_forward(layer, &plan);
        }
        let weights = &self.weights;
        let matrix = weights.output();
        let epsilon = self.config.norm_epsilon;
        self.device.logits(&mut self.buffers, &plan, (&weights.output_norm, epsilon), matrix, out);
        self.device.settling.step(&mut self.device.pool, self.weights.matrices_mut());
        batch.check_finite(self.shape.vocab, out)
    }
}
