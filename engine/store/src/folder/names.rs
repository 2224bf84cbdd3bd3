//! What Hugging Face calls a tensor that GGUF calls so, and which stored tensors belong to the decoder.

use crate::{Architecture, Safetensors};

/// Parts of a layer by GGUF's name and by Hugging Face's.
const PARTS: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// What stands before a decoder's names, with what stands before the output's: alone, inside a model of text and
/// images (older and newer), and saved without its head.
const PREFIXES: [(&str, &str); 4] =
    [("model.", ""), ("language_model.model.", "language_model."), ("model.language_model.", ""), ("", "")];

const EMBEDDING: &str = "embed_tokens.weight";
const OUTPUT: &str = "lm_head.";

/// The names of one set of weights.
pub(super) struct Names {
    decoder: &'static str,
    output: &'static str,
    architecture: Architecture,
}

impl Names {
    /// Finds out what stands before the names by where the embedding is.
    pub(super) fn new(weights: &Safetensors, architecture: Architecture) -> Self {
        let has = |prefix: &(&str, &str)| weights.get(&format!("{}{EMBEDDING}", prefix.0)).is_some();
        let (decoder, output) = PREFIXES.into_iter().find(has).unwrap_or(PREFIXES[0]);
        Self { decoder, output, architecture }
    }

    /// The stored name of a tensor that a model asks for.
    pub(super) fn stored(&self, name: &str) -> String {
        let decoder = self.decoder;
        if let Some((layer, part, kind)) = layer_part(name) {
            return format!("{decoder}layers.{layer}.{}.{kind}", self.part(part));
        }
        match name {
            "token_embd.weight" => format!("{decoder}{EMBEDDING}"),
            "output_norm.weight" => format!("{decoder}norm.weight"),
            "output.weight" => format!("{}{OUTPUT}weight", self.output),
            other => format!("{decoder}{other}"),
        }
    }

    fn part<'a>(&self, part: &'a str) -> &'a str {
        match (part, self.architecture) {
            // Gemma has norms before and after both branches; in the others the second norm stands before the
            // feed-forward network, whatever it is called.
            ("ffn_norm", Architecture::Gemma3) => "pre_feedforward_layernorm",
            ("ffn_norm" | "post_attention_norm", _) => "post_attention_layernorm",
            _ => PARTS.into_iter().find(|(ours, _)| *ours == part).map_or(part, |(_, theirs)| theirs),
        }
    }

    /// Whether a stored tensor that the model did not ask for would have changed its answers. Tables that the
    /// configuration implies would not; nor would the parts that see images.
    pub(super) fn matters(&self, stored: &str) -> bool {
        if stored.ends_with("rotary_emb.inv_freq") {
            return false;
        }
        let is_head = stored.strip_prefix(self.output).is_some_and(|rest| rest.starts_with(OUTPUT));
        match self.decoder {
            "" => stored.starts_with("layers."),
            // A tied output may be stored all the same; a bias of it is another matter.
            decoder => stored.starts_with(decoder) || is_head && !stored.ends_with(".weight"),
        }
    }
}

/// `blk.3.attn_q.weight` as 3, `attn_q`, `weight`.
fn layer_part(name: &str) -> Option<(&str, &str, &str)> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let (part, kind) = rest.split_once('.')?;
    Some((layer, part, kind))
}

/// What is added to a stored vector: Gemma stores its norms less one.
pub(super) fn norm_offset(architecture: Architecture, stored: &str) -> f32 {
    if architecture == Architecture::Gemma3 && stored.ends_with("norm.weight") { 1.0 } else { 0.0 }
}

/// Whether a matrix has a row per token: these suffer most from few bits.
pub(super) fn is_vocabulary(stored: &str) -> bool {
    stored.ends_with(EMBEDDING) || stored.ends_with("lm_head.weight")
}
