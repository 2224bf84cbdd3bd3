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
        if config.architecture == Architecture::Gemma3 {
            self.expect_gemma3(&config)?;
        }
        self.refuse_unknown(&config)?;
        Ok(config)
    }

    /// What Gemma 3 has beside llama's tensors: norms of queries and keys, and norms after each half of a layer.
    fn expect_gemma3(&self, config: &ModelConfig) -> Result<(), GgufError> {
        for layer in 0..config.layers {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            self.expect_f32(&name("attn_q_norm"), config.head_dim)?;
            self.expect_f32(&name("attn_k_norm"), config.head_dim)?;
            self.expect_f32(&name("post_attention_norm"), config.width)?;
            self.expect_f32(&name("post_ffw_norm"), config.width)?;
        }
        Ok(())
    }

    /// Tensors that would change the result but that nothing would read (biases, frequency tables, norms) must
    /// be refused, or the model would run and answer wrongly.
    fn refuse_unknown(&self, config: &ModelConfig) -> Result<(), GgufError> {
        let known: &[&str] = match config.architecture {
            Architecture::Llama => &["attn_norm", "ffn_norm", "output_norm"],
            Architecture::Gemma3 => &[
                "attn_norm",
                "ffn_norm",
                "output_norm",
                "attn_q_norm",
                "attn_k_norm",
                "post_attention_norm",
                "post_ffw_norm",
            ],
        };
        for tensor in self.tensors() {
            let part = tensor.name.trim_end_matches(".weight").rsplit('.').next().unwrap_or_default();
            let unread = part.ends_with("_norm") && !known.contains(&part);
            if tensor.name == "rope_freqs.weight" || tensor.name.ends_with(".bias") || unread {
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
