//! The hyperparameters of a decoder, checked for the relations that the arithmetic relies on. Where they are read
//! from is the matter of `config/gguf.rs` and of `folder/config.rs`.

mod gguf;

use serde::Serialize;

/// Families of decoders that the runtime computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    Llama,
    Qwen2,
    Qwen3,
    Gemma3,
}

/// Which two numbers of a head the rotary embedding turns together. It follows from the order in which a file
/// stores the rows of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Rotation {
    /// Number 2i with 2i + 1: llama as GGUF has it.
    Neighbours,
    /// Number i with i + half the head: the others, and everything as Hugging Face has it.
    Halves,
}

/// Products that have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Biases {
    None,
    /// Queries, keys and values.
    Qkv,
    /// Those and attention's output.
    Attention,
}

/// Layers that attend only to the latest tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SlidingWindow {
    /// A token sees itself and this many less one before it.
    pub tokens: usize,
    /// Every so-manyth layer sees everything; the others slide. None when all do.
    pub global_every: Option<usize>,
    /// Rotary base of the layers that slide, where it is their own; they then do not scale positions.
    pub rope_base: Option<f32>,
}

/// What defines a model apart from its weights.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelConfig {
    pub architecture: Architecture,
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width inside the feed-forward network.
    pub ffn_width: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    /// Longest sequence the model was trained for, tokens.
    pub context_tokens: usize,
    pub rope_base: f32,
    /// Positions are divided by this (linear scaling); 1 when the model has none.
    pub rope_scale: f32,
    pub norm_epsilon: f32,
    pub rotation: Rotation,
    pub biases: Biases,
    /// Attention scores are divided by its root: the width of a head, with few exceptions.
    pub query_width: usize,
    /// Whether the output matrix is the embedding matrix.
    pub tied: bool,
    /// None when every layer sees everything.
    pub sliding: Option<SlidingWindow>,
}

impl ModelConfig {
    /// The relations between numbers. The error says which field is at fault, whose name depends on the file.
    pub(crate) fn check(&self) -> Result<(), (Field, String)> {
        if self.heads == 0 || self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return Err((Field::KvHeads, format!("{} does not divide the {} query heads", self.kv_heads, self.heads)));
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(8) || self.head_dim > 1024 {
            return Err((Field::HeadDim, format!("head width {} is no multiple of 8 in 8..=1024", self.head_dim)));
        }
        if !(self.rope_base.is_finite() && self.rope_base > 0.0) {
            return Err((Field::RopeBase, format!("{} is not positive", self.rope_base)));
        }
        if !(self.norm_epsilon.is_finite() && self.norm_epsilon > 0.0) {
            return Err((Field::NormEpsilon, format!("{} is not positive", self.norm_epsilon)));
        }
        Ok(())
    }

    /// Width of all keys (or values) of one token in one layer.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Width of all queries of one token in one layer.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Factor of attention scores.
    pub fn query_scale(&self) -> f32 {
        1.0 / (self.query_width as f32).sqrt()
    }

    /// What a layer sees: the number of latest tokens, or None for everything.
    pub fn window(&self, layer: usize) -> Option<usize> {
        let sliding = self.sliding?;
        let global = sliding.global_every.is_some_and(|every| (layer + 1).is_multiple_of(every));
        (!global).then_some(sliding.tokens)
    }
}

/// A field that [`ModelConfig::check`] refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    KvHeads,
    HeadDim,
    RopeBase,
    NormEpsilon,
}

/// Sizes are capped so that products of two stay far inside 64 bits and no later allocation is absurd.
pub(crate) const SIZE_MAX: u64 = 1 << 24;
