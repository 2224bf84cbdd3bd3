//! The hyperparameters of the llama architecture as GGUF metadata states them, checked for the
//! relations that the arithmetic relies on.

use crate::{Gguf, GgufError};
use serde::Serialize;

/// What defines a llama model apart from its weights.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LlamaConfig {
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
    /// Whether the output matrix is the embedding matrix.
    pub tied: bool,
}

impl LlamaConfig {
    /// Reads and checks the metadata; needs no tensor but the embedding's and output's descriptions.
    pub fn read(gguf: &Gguf) -> Result<Self, GgufError> {
        let architecture = gguf.str("general.architecture")?;
        if architecture != "llama" {
            return Err(GgufError::Architecture { architecture: architecture.to_owned() });
        }
        let heads = positive(gguf, "llama.attention.head_count")?;
        let width = positive(gguf, "llama.embedding_length")?;
        let kv_heads = match gguf.optional("llama.attention.head_count_kv", Gguf::u32)? {
            Some(count) => count as usize,
            None => heads,
        };
        let head_dim = match gguf.optional("llama.attention.key_length", Gguf::u32)? {
            Some(dim) => dim as usize,
            None => width / heads,
        };
        let embedding = gguf.tensor("token_embd.weight")?;
        let config = Self {
            layers: positive(gguf, "llama.block_count")?,
            width,
            ffn_width: positive(gguf, "llama.feed_forward_length")?,
            heads,
            kv_heads,
            head_dim,
            vocab: embedding.dims.get(1).copied().unwrap_or(0) as usize,
            context_tokens: positive(gguf, "llama.context_length")?,
            rope_base: gguf.optional("llama.rope.freq_base", Gguf::f32)?.unwrap_or(10_000.0),
            rope_scale: rope_scale(gguf)?,
            norm_epsilon: gguf.f32("llama.attention.layer_norm_rms_epsilon")?,
            tied: !gguf.has_tensor("output.weight"),
        };
        config.check(gguf)?;
        Ok(config)
    }

    fn check(&self, gguf: &Gguf) -> Result<(), GgufError> {
        let wrong = |key: &str, message: String| Err(GgufError::KeyValue { key: key.to_owned(), message });
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            let message = format!("{} does not divide the {} query heads", self.kv_heads, self.heads);
            return wrong("llama.attention.head_count_kv", message);
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(8) || self.head_dim > 1024 {
            return wrong(
                "llama.attention.key_length",
                format!("head width {} is no multiple of 8 in 8..=1024", self.head_dim),
            );
        }
        let value_dim = gguf.optional("llama.attention.value_length", Gguf::u32)?;
        if value_dim.is_some_and(|dim| dim as usize != self.head_dim) {
            return wrong("llama.attention.value_length", format!("differs from the key width {}", self.head_dim));
        }
        let rope_dim = gguf.optional("llama.rope.dimension_count", Gguf::u32)?;
        if rope_dim.is_some_and(|dim| dim as usize != self.head_dim) {
            let message = format!("partial rotary embedding is not supported (head width {})", self.head_dim);
            return wrong("llama.rope.dimension_count", message);
        }
        if !(self.rope_base.is_finite() && self.rope_base > 0.0) {
            return wrong("llama.rope.freq_base", format!("{} is not positive", self.rope_base));
        }
        if !(self.norm_epsilon.is_finite() && self.norm_epsilon > 0.0) {
            let key = "llama.attention.layer_norm_rms_epsilon";
            return wrong(key, format!("{} is not positive", self.norm_epsilon));
        }
        if gguf.value("llama.expert_count").and_then(|v| v.as_u64()).is_some_and(|count| count > 0) {
            return wrong("llama.expert_count", "mixtures of experts are not supported".into());
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
}

/// Sizes are capped so that products of two stay far inside 64 bits and no later allocation is absurd.
fn positive(gguf: &Gguf, key: &str) -> Result<usize, GgufError> {
    let value = gguf.u32(key)?;
    if value == 0 || value > 1 << 24 {
        let message = format!("{value} is outside 1..=16777216");
        return Err(GgufError::KeyValue { key: key.to_owned(), message });
    }
    Ok(value as usize)
}

fn rope_scale(gguf: &Gguf) -> Result<f32, GgufError> {
    let key = "llama.rope.scaling.type";
    let kind = gguf.optional(key, Gguf::str)?.unwrap_or("none");
    match kind {
        "none" => Ok(1.0),
        "linear" => {
            let key = "llama.rope.scaling.factor";
            let factor = gguf.f32(key)?;
            if factor.is_finite() && factor > 0.0 {
                return Ok(factor);
            }
            Err(GgufError::KeyValue { key: key.to_owned(), message: format!("{factor} is not positive") })
        }
        other => {
            let message = format!("{other:?} is not supported; supported: none, linear");
            Err(GgufError::KeyValue { key: key.to_owned(), message })
        }
    }
}
