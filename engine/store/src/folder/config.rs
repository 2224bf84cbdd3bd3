//! config.json of a decoder as hyperparameters. What would change the result and is not computed is refused by name.

use super::fields::Fields;
use super::rope::{self, FULL, Rope};
use crate::config::Field;
use crate::{Architecture, Biases, CheckpointError, ModelConfig, Rotation, SlidingWindow};

/// `model_type` of what the runtime computes. Mistral is a llama, perhaps with a sliding window.
const MODEL_TYPES: [(&str, Architecture); 6] = [
    ("llama", Architecture::Llama),
    ("mistral", Architecture::Llama),
    ("qwen2", Architecture::Qwen2),
    ("qwen3", Architecture::Qwen3),
    ("gemma3_text", Architecture::Gemma3),
    ("gemma3", Architecture::Gemma3),
];

/// The text part of a model of text and images, or the whole.
pub(super) fn text_part<'a>(fields: &Fields<'a>) -> Result<Fields<'a>, CheckpointError> {
    Ok(fields.object("text_config")?.unwrap_or_else(|| fields.clone()))
}

/// `model_type`, the hyperparameters, and divisors of rotary frequencies where there are some.
pub(super) fn read(whole: &Fields<'_>) -> Result<(String, ModelConfig, Option<Vec<f32>>), CheckpointError> {
    let model_type = whole.text("model_type")?.ok_or_else(|| whole.wrong("model_type", "is missing"))?;
    let known = MODEL_TYPES.into_iter().find(|(name, _)| *name == model_type);
    let (_, architecture) = known.ok_or_else(|| {
        let supported = MODEL_TYPES.map(|(name, _)| name).join(", ");
        whole.wrong("model_type", format!("{model_type:?} is not supported; supported: {supported}"))
    })?;
    if whole.get("quantization_config").is_some() {
        let message = "weights that were quantised elsewhere are not read: take the original folder, or a GGUF file";
        return Err(whole.wrong("quantization_config", message));
    }
    let fields = &text_part(whole)?;
    refuse(fields, architecture)?;
    let gemma = architecture == Architecture::Gemma3;
    // Gemma's own files leave out what is as in its smallest multimodal model.
    let size = |field: &str, of_gemma: usize| match fields.size(field)? {
        None if gemma => Ok(of_gemma),
        _ => fields.required_size(field),
    };
    let heads = size("num_attention_heads", 8)?;
    let width = fields.required_size("hidden_size")?;
    let head_dim = fields.size("head_dim")?.unwrap_or(default_head_dim(architecture, width, heads));
    let rope = rope::read(fields, FULL, if gemma { 1e6 } else { 10_000.0 }, head_dim)?;
    if gemma && rope.factors.is_some() {
        return Err(fields.wrong("rope_scaling", "llama3 is not supported in this architecture"));
    }
    let tied = match whole.get("tie_word_embeddings") {
        Some(_) => whole.flag("tie_word_embeddings", gemma)?,
        None => fields.flag("tie_word_embeddings", gemma)?,
    };
    let config = ModelConfig {
        architecture,
        layers: fields.required_size("num_hidden_layers")?,
        width,
        ffn_width: fields.required_size("intermediate_size")?,
        heads,
        kv_heads: fields.size("num_key_value_heads")?.unwrap_or(if gemma { 4 } else { heads }),
        head_dim,
        vocab: size("vocab_size", 262_208)?,
        context_tokens: context_tokens(fields, gemma)?,
        rope_base: rope.base,
        rope_scale: rope.scale,
        norm_epsilon: fields.positive("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        rotation: Rotation::Halves,
        biases: biases(fields, architecture)?,
        query_width: if gemma { fields.size("query_pre_attn_scalar")?.unwrap_or(256) } else { head_dim },
        tied,
        sliding: sliding(fields, model_type, architecture, head_dim)?,
    };
    config.check().map_err(|(field, message)| fields.wrong(name_of(field), message))?;
    let Rope { factors, .. } = rope;
    Ok((model_type.to_owned(), config, factors))
}

/// Longest sequence, tokens.
pub(super) fn context_tokens(fields: &Fields<'_>, gemma: bool) -> Result<usize, CheckpointError> {
    match fields.size("max_position_embeddings")? {
        None if gemma => Ok(131_072),
        _ => fields.required_size("max_position_embeddings"),
    }
}

fn default_head_dim(architecture: Architecture, width: usize, heads: usize) -> usize {
    match architecture {
        Architecture::Gemma3 => 256,
        Architecture::Qwen3 => 128,
        Architecture::Llama | Architecture::Qwen2 => width / heads,
    }
}

fn name_of(field: Field) -> &'static str {
    match field {
        Field::KvHeads => "num_key_value_heads",
        Field::HeadDim => "head_dim",
        Field::RopeBase => "rope_theta",
        Field::NormEpsilon => "rms_norm_eps",
    }
}

fn biases(fields: &Fields<'_>, architecture: Architecture) -> Result<Biases, CheckpointError> {
    if architecture == Architecture::Qwen2 {
        return Ok(Biases::Qkv);
    }
    let asked = fields.flag("attention_bias", false)?;
    match architecture {
        Architecture::Gemma3 if asked => Err(fields.wrong("attention_bias", "is not supported in this architecture")),
        _ if asked => Ok(Biases::Attention),
        _ => Ok(Biases::None),
    }
}

fn refuse(fields: &Fields<'_>, architecture: Architecture) -> Result<(), CheckpointError> {
    let activations: &[&str] = match architecture {
        Architecture::Gemma3 => &["gelu_pytorch_tanh"],
        _ => &["silu", "swish"],
    };
    for field in ["hidden_activation", "hidden_act"] {
        if let Some(found) = fields.text(field)?.filter(|found| !activations.contains(found)) {
            return Err(fields.wrong(field, format!("{found:?} is not supported; supported: {activations:?}")));
        }
    }
    if fields.flag("mlp_bias", false)? {
        return Err(fields.wrong("mlp_bias", "is not supported"));
    }
    for field in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if fields.number(field)?.is_some_and(|cap| cap != 0.0) {
            return Err(fields.wrong(field, "soft caps are not supported"));
        }
    }
    if fields.number("partial_rotary_factor")?.is_some_and(|part| part != 1.0) {
        return Err(fields.wrong("partial_rotary_factor", "partial rotary embedding is not supported"));
    }
    if fields.flag("use_bidirectional_attention", false)? {
        return Err(fields.wrong("use_bidirectional_attention", "is not supported"));
    }
    Ok(())
}

fn sliding(
    fields: &Fields<'_>,
    model_type: &str,
    architecture: Architecture,
    head_dim: usize,
) -> Result<Option<SlidingWindow>, CheckpointError> {
    match architecture {
        Architecture::Gemma3 => {
            let local = match fields.positive("rope_local_base_freq")? {
                Some(base) => base as f32,
                None => local_base(fields, head_dim)?,
            };
            let tokens = fields.size("sliding_window")?.unwrap_or(4096);
            Ok(Some(SlidingWindow { tokens, global_every: global_every(fields)?, rope_base: Some(local) }))
        }
        // A llama has no such field; in a Mistral every layer slides.
        Architecture::Llama if model_type == "mistral" => {
            let window = |tokens| SlidingWindow { tokens, global_every: None, rope_base: None };
            Ok(fields.size("sliding_window")?.map(window))
        }
        Architecture::Llama => Ok(None),
        Architecture::Qwen2 | Architecture::Qwen3 => match fields.flag("use_sliding_window", false)? {
            false => Ok(None),
            true => Err(fields.wrong("use_sliding_window", "is not supported in this architecture")),
        },
    }
}

/// The rotary base of Gemma's layers that slide, where transformers 5 states it.
fn local_base(fields: &Fields<'_>, head_dim: usize) -> Result<f32, CheckpointError> {
    const OTHERWISE: f64 = 10_000.0;
    match fields.object("rope_parameters")? {
        Some(parameters) if parameters.get(rope::SLIDING).is_some() => {
            Ok(rope::read(fields, rope::SLIDING, OTHERWISE, head_dim)?.base)
        }
        _ => Ok(OTHERWISE as f32),
    }
}

/// Every so-manyth layer of a Gemma sees everything: from `layer_types`, which lists them all, or from the pattern.
fn global_every(fields: &Fields<'_>) -> Result<Option<usize>, CheckpointError> {
    let Some(types) = fields.array("layer_types")? else {
        let newer = fields.size("_sliding_window_pattern")?;
        return Ok(Some(fields.size("sliding_window_pattern")?.or(newer).unwrap_or(6)));
    };
    let global: Vec<bool> = types.iter().map(|kind| kind.as_str() == Some(FULL)).collect();
    let every = global.iter().position(|global| *global).map(|first| first + 1);
    let expected = |layer: usize| every.is_some_and(|every| (layer + 1).is_multiple_of(every));
    match global.iter().enumerate().find(|(layer, global)| **global != expected(*layer)) {
        None => Ok(every),
        Some((layer, _)) => Err(fields.wrong("layer_types", format!("no steady pattern: layer {layer} breaks it"))),
    }
}
