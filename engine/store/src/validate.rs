//! Whether a checkpoint can be run: every tensor that the architecture needs is there, with the right
//! shape and a type that the kernels know. Registering a model calls this, so that a bad file is
//! refused by the person who adds it and not by the first request.

use crate::{Architecture, GgmlType, Gguf, GgufError, ModelConfig};

/// Weight types that the runtime computes with.
pub const RUNNABLE_TYPES: [GgmlType; 13] = [
    GgmlType::F32,
    GgmlType::F16,
    GgmlType::BF16,
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
    GgmlType::Q8_0,
    GgmlType::Q2_K,
    GgmlType::Q3_K,
    GgmlType::Q4_K,
    GgmlType::Q5_K,
    GgmlType::Q6_K,
];

/// Divisors of Llama 3's rotary frequencies.
const ROPE_FACTORS: &str = "rope_freqs.weight";

impl Gguf {
    /// Checks that the model can be loaded and returns its hyperparameters.
    pub fn validate(&self) -> Result<ModelConfig, GgufError> {
        let config = ModelConfig::read(self)?;
        let (width, ffn, q, kv) = (config.width, config.ffn_width, config.q_width(), config.kv_width());
        self.expect("token_embd.weight", &[width, config.vocab])?;
        self.expect_f32("output_norm.weight", width)?;
        if !config.tied {
            self.expect("output.weight", &[width, config.vocab])?;
        }
        for layer in 0..config.layers {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            self.expect_f32(&name("attn_norm"), width)?;
            self.expect(&name("attn_q"), &[width, q])?;
            self.expect(&name("attn_k"), &[width, kv])?;
            self.expect(&name("attn_v"), &[width, kv])?;
            self.expect(&name("attn_output"), &[q, width])?;
            self.expect_f32(&name("ffn_norm"), width)?;
            self.expect(&name("ffn_gate"), &[width, ffn])?;
            self.expect(&name("ffn_up"), &[width, ffn])?;
            self.expect(&name("ffn_down"), &[ffn, width])?;
        }
        self.expect_extras(&config)?;
        Ok(config)
    }

    /// What architectures have beside the common tensors.
    fn expect_extras(&self, config: &ModelConfig) -> Result<(), GgufError> {
        let (head, width, q, kv) = (config.head_dim, config.width, config.q_width(), config.kv_width());
        let norms = [("attn_q_norm.weight", head), ("attn_k_norm.weight", head)];
        let biases = [("attn_q.bias", q), ("attn_k.bias", kv), ("attn_v.bias", kv)];
        let post_norms = [("post_attention_norm.weight", width), ("post_ffw_norm.weight", width)];
        let extras = match config.architecture {
            Architecture::Llama => Vec::new(),
            Architecture::Qwen2 => biases.to_vec(),
            Architecture::Qwen3 => norms.to_vec(),
            Architecture::Gemma3 => [norms, post_norms].concat(),
        };
        for layer in 0..config.layers {
            for (part, len) in &extras {
                self.expect_f32(&format!("blk.{layer}.{part}"), *len)?;
            }
        }
        if config.architecture == Architecture::Llama && self.has_tensor(ROPE_FACTORS) {
            self.expect_f32(ROPE_FACTORS, head / 2)?;
        }
        self.refuse_unknown(config.architecture, &extras)
    }

    /// Tensors that would change the result but that nothing would read (biases, frequency tables, norms) must
    /// be refused, or the model would run and answer wrongly.
    fn refuse_unknown(&self, architecture: Architecture, extras: &[(&str, usize)]) -> Result<(), GgufError> {
        for tensor in self.tensors() {
            let part = tensor.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map(|(_, part)| part);
            let part = part.unwrap_or(tensor.name);
            let read = ["attn_norm.weight", "ffn_norm.weight", "output_norm.weight"].contains(&part)
                || extras.iter().any(|(extra, _)| *extra == part)
                || architecture == Architecture::Llama && part == ROPE_FACTORS;
            let counts = part.ends_with(".bias") || part.ends_with("_norm.weight") || part == ROPE_FACTORS;
            if counts && !read {
                let message = "not supported by this runtime in this architecture".to_owned();
                return Err(GgufError::Tensor { name: tensor.name.to_owned(), message });
            }
        }
        Ok(())
    }

    fn expect(&self, name: &str, dims: &[usize]) -> Result<(), GgufError> {
        let tensor = self.tensor(name)?;
        let wrong = |message| Err(GgufError::Tensor { name: name.to_owned(), message });
        if !tensor.dims.iter().copied().eq(dims.iter().map(|dim| *dim as u64)) {
            return wrong(format!("shape {:?}, expected {dims:?}", tensor.dims));
        }
        if !RUNNABLE_TYPES.contains(&tensor.kind) {
            return wrong(format!("type {} is not supported; supported: {RUNNABLE_TYPES:?}", tensor.kind));
        }
        Ok(())
    }

    fn expect_f32(&self, name: &str, len: usize) -> Result<(), GgufError> {
        self.expect(name, &[len])?;
        let kind = self.tensor(name)?.kind;
        if kind != GgmlType::F32 {
            return Err(GgufError::Tensor { name: name.to_owned(), message: format!("type {kind}, expected F32") });
        }
        Ok(())
    }
}
