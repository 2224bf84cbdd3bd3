//! The hyperparameters of a decoder as GGUF metadata states them, checked for the relations that the
//! arithmetic relies on.

use crate::{Gguf, GgufError};
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

impl Architecture {
    const ALL: [(&'static str, Self); 4] =
        [("llama", Self::Llama), ("qwen2", Self::Qwen2), ("qwen3", Self::Qwen3), ("gemma3", Self::Gemma3)];

    fn read(gguf: &Gguf) -> Result<(&'static str, Self), GgufError> {
        let name = gguf.str("general.architecture")?;
        Self::ALL.into_iter().find(|(known, _)| *known == name).ok_or_else(|| GgufError::Architecture {
            architecture: name.to_owned(),
            supported: Self::ALL.map(|(known, _)| known).join(", "),
        })
    }
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
    /// Whether the output matrix is the embedding matrix.
    pub tied: bool,
    /// None when every layer sees everything.
    pub sliding: Option<SlidingWindow>,
}

impl ModelConfig {
    /// Reads and checks the metadata; needs no tensor but the embedding's and output's descriptions.
    pub fn read(gguf: &Gguf) -> Result<Self, GgufError> {
        let (name, architecture) = Architecture::read(gguf)?;
        let key = |key: &str| format!("{name}.{key}");
        let heads = positive(gguf, &key("attention.head_count"))?;
        let width = positive(gguf, &key("embedding_length"))?;
        let kv_heads = match gguf.optional(&key("attention.head_count_kv"), Gguf::u32)? {
            Some(count) => count as usize,
            None => heads,
        };
        let head_dim = match gguf.optional(&key("attention.key_length"), Gguf::u32)? {
            Some(dim) => dim as usize,
            None => width / heads,
        };
        let embedding = gguf.tensor("token_embd.weight")?;
        let config = Self {
            architecture,
            layers: positive(gguf, &key("block_count"))?,
            width,
            ffn_width: positive(gguf, &key("feed_forward_length"))?,
            heads,
            kv_heads,
            head_dim,
            vocab: embedding.dims.get(1).copied().unwrap_or(0) as usize,
            context_tokens: positive(gguf, &key("context_length"))?,
            rope_base: gguf.optional(&key("rope.freq_base"), Gguf::f32)?.unwrap_or(10_000.0),
            rope_scale: rope_scale(gguf, name)?,
            norm_epsilon: gguf.f32(&key("attention.layer_norm_rms_epsilon"))?,
            tied: !gguf.has_tensor("output.weight"),
            sliding: sliding(gguf, name, architecture)?,
        };
        config.check(gguf, name)?;
        Ok(config)
    }

    fn check(&self, gguf: &Gguf, name: &str) -> Result<(), GgufError> {
        let key = |key: &str| format!("{name}.{key}");
        let wrong = |part: &str, message: String| Err(GgufError::KeyValue { key: key(part), message });
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            let message = format!("{} does not divide the {} query heads", self.kv_heads, self.heads);
            return wrong("attention.head_count_kv", message);
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(8) || self.head_dim > 1024 {
            let message = format!("head width {} is no multiple of 8 in 8..=1024", self.head_dim);
            return wrong("attention.key_length", message);
        }
        let value_dim = gguf.optional(&key("attention.value_length"), Gguf::u32)?;
        if value_dim.is_some_and(|dim| dim as usize != self.head_dim) {
            return wrong("attention.value_length", format!("differs from the key width {}", self.head_dim));
        }
        let rope_dim = gguf.optional(&key("rope.dimension_count"), Gguf::u32)?;
        if rope_dim.is_some_and(|dim| dim as usize != self.head_dim) {
            let message = format!("partial rotary embedding is not supported (head width {})", self.head_dim);
            return wrong("rope.dimension_count", message);
        }
        if !(self.rope_base.is_finite() && self.rope_base > 0.0) {
            return wrong("rope.freq_base", format!("{} is not positive", self.rope_base));
        }
        if !(self.norm_epsilon.is_finite() && self.norm_epsilon > 0.0) {
            return wrong("attention.layer_norm_rms_epsilon", format!("{} is not positive", self.norm_epsilon));
        }
        if gguf.value(&key("expert_count")).and_then(|v| v.as_u64()).is_some_and(|count| count > 0) {
            return wrong("expert_count", "mixtures of experts are not supported".into());
        }
        for part in ["attn_logit_softcapping", "final_logit_softcapping"] {
            if gguf.optional(&key(part), Gguf::f32)?.is_some_and(|cap| cap != 0.0) {
                return wrong(part, "soft caps are not supported".into());
            }
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

    /// Factor of attention scores. Gemma 3 27B, known by its 62 layers, is the one that does not take the width
    /// of a head (`query_pre_attn_scalar`), which files do not state.
    pub fn query_scale(&self) -> f32 {
        let width = match (self.architecture, self.layers) {
            (Architecture::Gemma3, 62) => self.width / self.heads,
            _ => self.head_dim,
        };
        1.0 / (width as f32).sqrt()
    }

    /// What a layer sees: the number of latest tokens, or None for everything.
    pub fn window(&self, layer: usize) -> Option<usize> {
        let sliding = self.sliding?;
        let global = sliding.global_every.is_some_and(|every| (layer + 1).is_multiple_of(every));
        (!global).then_some(sliding.tokens)
    }
}

/// Layers of Gemma 3 between two that see everything, plus one; and the rotary base of those between. Files
/// state neither (llama.cpp's `set_swa_pattern(6)` and `rope_freq_base_train_swa`).
const GEMMA3_GLOBAL_EVERY: usize = 6;
const GEMMA3_LOCAL_ROPE_BASE: f32 = 10_000.0;

fn sliding(gguf: &Gguf, name: &str, architecture: Architecture) -> Result<Option<SlidingWindow>, GgufError> {
    let key = format!("{name}.attention.sliding_window");
    match architecture {
        Architecture::Gemma3 => Ok(Some(SlidingWindow {
            tokens: positive(gguf, &key)?,
            global_every: Some(GEMMA3_GLOBAL_EVERY),
            rope_base: Some(GEMMA3_LOCAL_ROPE_BASE),
        })),
        // Mistral: every layer slides.
        Architecture::Llama => match gguf.optional(&key, Gguf::u32)? {
            None | Some(0) => Ok(None),
            Some(tokens) => Ok(Some(SlidingWindow { tokens: tokens as usize, global_every: None, rope_base: None })),
        },
        Architecture::Qwen2 | Architecture::Qwen3 => match gguf.optional(&key, Gguf::u32)? {
            None | Some(0) => Ok(None),
            Some(_) => {
                let message = "sliding windows are not supported in this architecture".into();
                Err(GgufError::KeyValue { key, message })
            }
        },
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

fn rope_scale(gguf: &Gguf, name: &str) -> Result<f32, GgufError> {
    let key = format!("{name}.rope.scaling.type");
    let kind = gguf.optional(&key, Gguf::str)?.unwrap_or("none");
    match kind {
        "none" => Ok(1.0),
        "linear" => {
            let key = format!("{name}.rope.scaling.factor");
            let factor = gguf.f32(&key)?;
            if factor.is_finite() && factor > 0.0 {
                return Ok(factor);
            }
            Err(GgufError::KeyValue { key, message: format!("{factor} is not positive") })
        }
        other => {
            let message = format!("{other:?} is not supported; supported: none, linear");
            Err(GgufError::KeyValue { key, message })
        }
    }
}
