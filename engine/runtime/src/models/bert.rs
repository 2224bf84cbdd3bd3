//! The BERT encoder (Devlin et al. 2019) as sentence embedders use it (Reimers and Gurevych 2019): post-norm layers of
//! attention in both directions and a GELU network, then one vector for each text. Texts are packed without padding,
//! so a batch costs what its tokens cost. Reads top to bottom: weights, one step.

use super::layers::{self, Device};
use crate::kernels::cpu::{
    encoder::{self, LayerNorm},
    matmul::Job,
    matrix::Matrix,
    quant::Quantised,
    whole_attention::{WholeAttention, attend_whole},
};
use engine_core::{Encode, EncodeBatch, EncodeShape, ForwardError, malformed};
use engine_store::{EncoderCheckpoint, EncoderConfig, EncoderError, Pooling};
use std::ops::Range;

/// A product and what is added to it.
struct Linear {
    matrix: Matrix,
    bias: Vec<f32>,
}

/// A layer norm's weight and shift.
struct Norm {
    weight: Vec<f32>,
    shift: Vec<f32>,
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_out: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    out_norm: Norm,
}

/// All weights: matrices as they lie in the file, vectors copied out.
pub struct Weights {
    words: Matrix,
    positions: Matrix,
    /// The type of every token of a single text.
    first_type: Vec<f32>,
    embedding_norm: Norm,
    layers: Vec<Layer>,
}

impl Weights {
    /// Finds every tensor that the configuration asks for.
    pub fn new(checkpoint: &EncoderCheckpoint) -> Result<Self, EncoderError> {
        let matrix = |name: &str| checkpoint.tensor(name).map(Matrix::new);
        let vector = |name: &str| checkpoint.tensor(name).map(|data| layers::numbers(&data));
        let linear = |name: String| -> Result<Linear, EncoderError> {
            Ok(Linear { matrix: matrix(&format!("{name}.weight"))?, bias: vector(&format!("{name}.bias"))? })
        };
        let norm = |name: String| -> Result<Norm, EncoderError> {
            Ok(Norm { weight: vector(&format!("{name}.weight"))?, shift: vector(&format!("{name}.bias"))? })
        };
        let layer = |index: usize| -> Result<Layer, EncoderError> {
            let part = |name: &str| format!("encoder.layer.{index}.{name}");
            Ok(Layer {
                query: linear(part("attention.self.query"))?,
                key: linear(part("attention.self.key"))?,
                value: linear(part("attention.self.value"))?,
                attention_out: linear(part("attention.output.dense"))?,
                attention_norm: norm(part("attention.output.LayerNorm"))?,
                up: linear(part("intermediate.dense"))?,
                down: linear(part("output.dense"))?,
                out_norm: norm(part("output.LayerNorm"))?,
            })
        };
        let mut types = vector("embeddings.token_type_embeddings.weight")?;
        types.truncate(checkpoint.config().width);
        Ok(Self {
            words: matrix("embeddings.word_embeddings.weight")?,
            positions: matrix("embeddings.position_embeddings.weight")?,
            first_type: types,
            embedding_norm: norm("embeddings.LayerNorm".to_owned())?,
            layers: (0..checkpoint.config().layers).map(layer).collect::<Result<_, _>>()?,
        })
    }
}

/// Activations of a step, one row per token; kept between steps.
#[derive(Default)]
struct Buffers {
    /// The residual stream.
    x: Vec<f32>,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    attended: Vec<f32>,
    inner: Vec<f32>,
    /// Inputs of the coming product, in int8.
    quantised: Quantised,
}

/// A BERT on this machine's cores.
pub struct Bert {
    config: EncoderConfig,
    weights: Weights,
    device: Device,
    buffers: Buffers,
}

impl Bert {
    pub fn new(config: EncoderConfig, weights: Weights, device: Device) -> Self {
        Self { config, weights, device, buffers: Buffers::default() }
    }

    fn embed(&mut self, batch: &EncodeBatch, texts: &[Range<usize>]) {
        let (width, weights, x) = (self.config.width, &self.weights, &mut self.buffers.x);
        layers::embed(&weights.words, &batch.tokens, x);
        let mut place = vec![0.0; width];
        for text in texts {
            for (position, row) in x[text.start * width..text.end * width].chunks_exact_mut(width).enumerate() {
                weights.positions.dequantise_row(position, &mut place);
                row.iter_mut().zip(&place).for_each(|(x, place)| *x += place);
            }
        }
        self.device.layer_norm(&weights.first_type, &weights.embedding_norm, self.config.norm_epsilon, x);
    }

    fn attention(&mut self, index: usize, texts: &[Range<usize>]) {
        let (config, layer, buffers, device) =
            (&self.config, &self.weights.layers[index], &mut self.buffers, &mut self.device);
        let tokens = buffers.x.len() / config.width;
        device.quantise(&buffers.x, config.width, &mut buffers.quantised);
        for out in [&mut buffers.query, &mut buffers.key, &mut buffers.value, &mut buffers.attended] {
            out.resize(tokens * config.width, 0.0);
        }
        let jobs = vec![
            Job { matrix: &layer.query.matrix, out: &mut buffers.query, accumulate: false },
            Job { matrix: &layer.key.matrix, out: &mut buffers.key, accumulate: false },
            Job { matrix: &layer.value.matrix, out: &mut buffers.value, accumulate: false },
        ];
        device.multiply(tokens, &buffers.x, &buffers.quantised, jobs, &[]);
        let head_dim = config.width / config.heads;
        let job = WholeAttention {
            heads: config.heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            texts,
            inputs: [&buffers.query, &buffers.key, &buffers.value],
            biases: [&layer.query.bias, &layer.key.bias, &layer.value.bias],
            out: &mut buffers.attended,
        };
        attend_whole(&mut device.pool, device.isa, job);
        device.quantise(&buffers.attended, config.width, &mut buffers.quantised);
        let job = Job { matrix: &layer.attention_out.matrix, out: &mut buffers.x, accumulate: true };
        device.multiply(tokens, &buffers.attended, &buffers.quantised, vec![job], &[]);
        device.layer_norm(&layer.attention_out.bias, &layer.attention_norm, config.norm_epsilon, &mut buffers.x);
    }

    fn feed_forward(&mut self, index: usize) {
        let (config, layer, buffers, device) =
            (&self.config, &self.weights.layers[index], &mut self.buffers, &mut self.device);
        let tokens = buffers.x.len() / config.width;
        device.quantise(&buffers.x, config.width, &mut buffers.quantised);
        buffers.inner.resize(tokens * config.ffn_width, 0.0);
        let job = Job { matrix: &layer.up.matrix, out: &mut buffers.inner, accumulate: false };
        device.multiply(tokens, &buffers.x, &buffers.quantised, vec![job], &[]);
        let (isa, bias) = (device.isa, &layer.up.bias);
        device.each_row(&mut buffers.inner, config.ffn_width, |_, row| encoder::gelu(isa, bias, row));
        device.quantise(&buffers.inner, config.ffn_width, &mut buffers.quantised);
        let job = Job { matrix: &layer.down.matrix, out: &mut buffers.x, accumulate: true };
        device.multiply(tokens, &buffers.inner, &buffers.quantised, vec![job], &[]);
        device.layer_norm(&layer.down.bias, &layer.out_norm, config.norm_epsilon, &mut buffers.x);
    }

    /// One vector of length 1 for each text.
    fn pool(&mut self, texts: &[Range<usize>], out: &mut Vec<f32>) {
        let (width, isa, x) = (self.config.width, self.device.isa, &self.buffers.x);
        out.resize(texts.len() * width, 0.0);
        for (text, out) in texts.iter().zip(out.chunks_exact_mut(width)) {
            match self.config.pooling {
                Pooling::Mean => encoder::mean_rows(isa, &x[text.start * width..text.end * width], out),
                Pooling::FirstToken => out.copy_from_slice(&x[text.start * width..(text.start + 1) * width]),
            }
            encoder::unit(isa, out);
        }
    }

    /// Rows of each text, checked: everything that a kernel would otherwise have to trust.
    fn texts(&self, batch: &EncodeBatch) -> Result<Vec<Range<usize>>, ForwardError> {
        let mut texts = Vec::with_capacity(batch.lengths.len());
        let mut end = 0;
        for length in &batch.lengths {
            if *length == 0 || *length > self.config.context_tokens {
                return Err(malformed(format!(
                    "a text of {length} tokens; 1 to {} can be",
                    self.config.context_tokens
                )));
            }
            texts.push(end..end + length);
            end += length;
        }
        if end != batch.tokens.len() {
            return Err(malformed(format!("{} tokens, but the texts have {end}", batch.tokens.len())));
        }
        match batch.tokens.iter().find(|token| **token as usize >= self.config.vocab) {
            Some(token) => Err(malformed(format!("token {token} is outside the vocabulary of {}", self.config.vocab))),
            None => Ok(texts),
        }
    }
}

impl Device {
    /// Adds the bias to each row of `x` and norms it, in place.
    fn layer_norm(&mut self, bias: &[f32], norm: &Norm, epsilon: f32, x: &mut [f32]) {
        let norm = LayerNorm { bias, weight: &norm.weight, shift: &norm.shift, epsilon };
        let isa = self.isa;
        self.each_row(x, bias.len(), |_, row| encoder::layer_norm(isa, &norm, row));
    }
}

impl Encode for Bert {
    fn shape(&self) -> EncodeShape {
        let EncoderConfig { vocab, width, context_tokens, .. } = self.config;
        EncodeShape { vocab, dimensions: width, context_tokens }
    }

    fn encode(&mut self, batch: &EncodeBatch, out: &mut Vec<f32>) -> Result<(), ForwardError> {
        self.device.caller.pin();
        let texts = self.texts(batch)?;
        self.embed(batch, &texts);
        for layer in 0..self.weights.layers.len() {
            self.attention(layer, &texts);
            self.feed_forward(layer);
        }
        self.pool(&texts, out);
        Ok(())
    }
}
