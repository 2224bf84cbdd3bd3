//! Hyperparameters from GGUF metadata.

use super::{Architecture, Biases, Field, ModelConfig, Rotation, SIZE_MAX, SlidingWindow};
use crate::{Gguf, GgufError};

/// Names that GGUF has for what the runtime computes.
const ARCHITECTURES: [(&str, Architecture); 4] = [
    ("llama", Architecture::Llama),
    ("qwen2", Architecture::Qwen2),
    ("qwen3", Architecture::Qwen3),
    ("gemma3", Architecture::Gemma3),
];

impl ModelConfig {
    /// Reads and checks the metadata; needs no tensor but the embedding's and output's descriptions.
    pub fn read(gguf: &Gguf) -> Result<Self, GgufError> {
        let (name, architecture) = architecture(gguf)?;
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
        let layers = positive(gguf, &key("block_count"))?;
        let config = Self {
            architecture,
            layers,
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
            rotation: match architecture {
                Architecture::Llama => Rotation::Neighbours,
                _ => Rotation::Halves,
            },
            biases: match architecture {
                Architecture::Qwen2 => Biases::Qkv,
                _ => Biases::None,
            },
            query_width: query_width(architecture, layers, width / heads, head_dim),
            tied: !gguf.has_tensor("output.weight"),
            sliding: sliding(gguf, name, architecture)?,
        };
        config.check().map_err(|(field, message)| GgufError::KeyValue { key: key(name_of(field)), message })?;
        refuse(gguf, name, head_dim)?;
        Ok(config)
    }
}

fn architecture(gguf: &Gguf) -> Result<(&'static str, Architecture), GgufError> {
    let name = gguf.str("general.architecture")?;
    ARCHITECTURES.into_iter().find(|(known, _)| *known == name).ok_or_else(|| GgufError::Architecture {
        architecture: name.to_owned(),
        supported: ARCHITECTURES.map(|(known, _)| known).join(", "),
    })
}

fn name_of(field: Field) -> &'static str {
    match field {
        Field::KvHeads => "attention.head_count_kv",
        Field::HeadDim => "attention.key_length",
        Field::RopeBase => "rope.freq_base",
        Field::NormEpsilon => "attention.layer_norm_rms_epsilon",
    }
}

/// Metadata that would change the result and that nothing computes.
fn refuse(gguf: &Gguf, name: &str, head_dim: usize) -> Result<(), GgufError> {
    let wrong = |part: &str, message: String| Err(GgufError::KeyValue { key: format!("{name}.{part}"), message });
    let number = |part: &str| gguf.optional(&format!("{name}.{part}"), Gguf::u32);
    if number("attention.value_length")?.is_some_and(|dim| dim as usize != head_dim) {
        return wrong("attention.value_length", format!("differs from the key width {head_dim}"));
    }
    if number("rope.dimension_count")?.is_some_and(|dim| dim as usize != head_dim) {
        let message = format!("partial rotary embedding is not supported (head width {head_dim})");
        return wrong("rope.dimension_count", message);
    }
    if gguf.value(&format!("{name}.expert_count")).and_then(|v| v.as_u64()).is_some_and(|count| count > 0) {
        return wrong("expert_count", "mixtures of experts are not supported".into());
    }
    for part in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if gguf.optional(&format!("{name}.{part}"), Gguf::f32)?.is_some_and(|cap| cap != 0.0) {
            return wrong(part, "soft caps are not supported".into());
        }
    }
    Ok(())
}

/// Gemma 3 27B, known by its 62 layers, is the one that does not take the width of a head
/// (`query_pre_attn_scalar`), which files do not state.
fn query_width(architecture: Architecture, layers: usize, per_head: usize, head_dim: usize) -> usize {
    match (architecture, layers) {
        (Architecture::Gemma3, 62) => per_head,
        _ => head_dim,
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

fn positive(gguf: &Gguf, key: &str) -> Result<usize, GgufError> {
    let value = gguf.u32(key)?;
    if value == 0 || u64::from(value) > SIZE_MAX {
        let message = format!("{value} is outside 1..={SIZE_MAX}");
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
