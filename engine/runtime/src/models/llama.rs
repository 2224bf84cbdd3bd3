//! The llama architecture (Touvron et al. 2023): pre-norm decoder, rotary embedding, grouped-query
//! attention, SwiGLU; and what differs from it by one thing each: Mistral (a sliding window), Llama 3 (stretched
//! rotary frequencies), Qwen2 (biases of queries, keys and values) and Qwen3 (norms of queries and keys).
//! Reads top to bottom: weights, one step.

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
use engine_store::{Architecture, Biases, Checkpoint, CheckpointError, Linear, ModelConfig, Rotation};

struct Layer {
    attention_norm: Vec<f32>,
    q: Matrix,
    k: Matrix,
    v: Matrix,
    /// Of queries, keys and values.
    biases: Option<[Vec<f32>; 3]>,
    /// Of each head of queries and of keys.
    head_norms: Option<[Vec<f32>; 2]>,
    attention_out: Matrix,
    attention_out_bias: Option<Vec<f32>>,
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
    /// What rotary frequencies are divided by.
    rope_factors: Option<Vec<f32>>,
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
                biases: match config.biases {
                    Biases::Qkv | Biases::Attention => {
                        let bias = |part: &str| vector(&format!("blk.{index}.{part}.bias"));
                        Some([bias("attn_q")?, bias("attn_k")?, bias("attn_v")?])
                    }
                    Biases::None => None,
                },
                attention_out_bias: match config.biases {
                    Biases::Attention => Some(vector(&format!("blk.{index}.attn_output.bias"))?),
                    Biases::None | Biases::Qkv => None,
                },
                head_norms: match config.architecture {
                    Architecture::Qwen3 => Some([vector(&name("attn_q_norm"))?, vector(&name("attn_k_norm"))?]),
                    _ => None,
                },
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
            rope_factors: match checkpoint.has_tensor("rope_freqs.weight") {
                true => Some(vector("rope_freqs.weight")?),
                false => None,
            },
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

/// A llama on this machine's cores. `E` is how keys and values are stored.
pub struct Llama<E> {
    pub config: ModelConfig,
    pub weights: Weights,
    pub kv: KvPool<E>,
    pub device: Device,
    pub shape: ForwardShape,
    buffers: Buffers,
    rotary: Rotary,
}

impl<E: KvElement> Llama<E> {
    pub fn new(config: ModelConfig, weights: Weights, kv: KvPool<E>, device: Device) -> Self {
        let shape = forward_shape(&config, &kv.shape);
        let mut rotary = Rotary::new(config.head_dim, config.rope_base, config.rope_scale);
        if let Some(factors) = &weights.rope_factors {
            rotary.divide(factors);
        }
        Self { config, weights, kv, device, shape, buffers: Buffers::default(), rotary }
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
        device.multiply(tokens, &buffers.normed, &buffers.quantised, jobs, &[&layer.attention_out]);

        if let Some([q, k, v]) = &layer.biases {
            for (x, bias) in [(&mut buffers.q, q), (&mut buffers.k, k), (&mut buffers.v, v)] {
                device.add_bias(x, bias);
            }
        }
        let mut outputs =
            [(Linear::Q, &mut buffers.q[..]), (Linear::K, &mut buffers.k[..]), (Linear::V, &mut buffers.v[..])];
        device.adapt(plan, index, &buffers.normed, &mut outputs);
        let (isa, rotary) = (device.isa, &self.rotary);
        let rotate = match config.rotation {
            Rotation::Neighbours => elementwise::rotate,
            Rotation::Halves => elementwise::rotate_halves,
        };
        let [q_norm, k_norm] = layer.head_norms.as_ref().map_or([None, None], |[q, k]| [Some(q), Some(k)]);
        for (x, norm) in [(&mut buffers.q, q_norm), (&mut buffers.k, k_norm)] {
            let width = x.len() / tokens;
            device.each_row(x, width, |token, row| {
                if let Some(norm) = norm {
                    elementwise::rms_norm_heads(isa, row, norm, config.norm_epsilon);
                }
                rotate(row, rotary.row(token));
            });
        }
        self.kv.write(&mut device.pool, device.isa, index, &plan.slots, &buffers.k, &buffers.v);

        buffers.attended.resize(tokens * config.q_width(), 0.0);
        let job = Attention {
            kv: &self.kv,
            layer: index,
            heads: config.heads,
            scale: config.query_scale(),
            window: config.window(index),
            spans: &plan.spans,
            queries: &buffers.q,
            out: &mut buffers.attended,
        };
        attention::attend(&mut device.pool, device.isa, job);
        device.quantise(&buffers.attended, config.q_width(), &mut buffers.quantised);
        let job = Job { matrix: &layer.attention_out, out: &mut buffers.x, accumulate: true };
        device.multiply(tokens, &buffers.attended, &buffers.quantised, vec![job], &[&layer.gate, &layer.up]);
        if let Some(bias) = &layer.attention_out_bias {
            device.add_bias(&mut buffers.x, bias);
        }
        device.adapt(plan, index, &buffers.attended, &mut [(Linear::Output, &mut buffers.x[..])]);
    }

    fn feed_forward(&mut self, index: usize, plan: &Plan<'_>) {
        let tokens = plan.positions.len();
        let (config, layer, buffers, device) =
            (&self.config, &self.weights.layers[index], &mut self.buffers, &mut self.device);
        let next = match self.weights.layers.get(index + 1) {
            Some(layer) => vec![&layer.q, &layer.k, &layer.v],
            None => vec![self.weights.output()],
        };
        device.norm(&buffers.x, &layer.ffn_norm, config.norm_epsilon, &mut buffers.normed, &mut buffers.quantised);
        buffers.gate.resize(tokens * config.ffn_width, 0.0);
        buffers.up.resize(tokens * config.ffn_width, 0.0);
        let jobs = vec![
            Job { matrix: &layer.gate, out: &mut buffers.gate, accumulate: false },
            Job { matrix: &layer.up, out: &mut buffers.up, accumulate: false },
        ];
        device.multiply(tokens, &buffers.normed, &buffers.quantised, jobs, &[&layer.down]);
        let mut outputs = [(Linear::Gate, &mut buffers.gate[..]), (Linear::Up, &mut buffers.up[..])];
        device.adapt(plan, index, &buffers.normed, &mut outputs);
        let (isa, width, up) = (device.isa, config.ffn_width, &buffers.up);
        device.each_row(&mut buffers.gate, width, |token, row| {
            elementwise::silu_times(isa, row, &up[token * width..(token + 1) * width]);
        });
        device.quantise(&buffers.gate, width, &mut buffers.quantised);
        let job = Job { matrix: &layer.down, out: &mut buffers.x, accumulate: true };
        device.multiply(tokens, &buffers.gate, &buffers.quantised, vec![job], &next);
        device.adapt(plan, index, &buffers.gate, &mut [(Linear::Down, &mut buffers.x[..])]);
    }
}

impl<E: KvElement> Forward for Llama<E> {
    fn shape(&self) -> ForwardShape {
        self.shape
    }

    fn window_tokens(&self) -> Option<usize> {
        // The widest, if every layer has one.
        let windows: Option<Vec<usize>> = (0..self.config.layers).map(|layer| self.config.window(layer)).collect();
        windows?.into_iter().max()
    }

    fn forward(&mut self, batch: &Batch, out: &mut Vec<f32>) -> Result<(), ForwardError> {
        self.device.caller.pin();
        let plan = batch::plan_within(batch, &self.shape, &self.device.adapters, self.window_tokens())?;
        if batch.tokens.is_empty() {
            out.clear();
            return Ok(());
        }
        layers::embed(&self.weights.embedding, &batch.tokens, &mut self.buffers.x);
        self.rotary.fill(&plan.positions);
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
