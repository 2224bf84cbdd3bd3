//! Whether a checkpoint can be run: every tensor that the architecture needs is there, with the right
//! shape and a type that the kernels know. Registering a model calls this, so that a bad file is
//! refused by the person who adds it and not by the first request.

use crate::{Architecture, Biases, GgmlType, Gguf, GgufError, ModelConfig};

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
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// A tensor that a model asks for, by GGUF's name.
pub(crate) struct Expected {
    pub(crate) name: String,
    /// One dimension makes it a vector: a norm or a bias, in f32.
    pub(crate) dims: Vec<u64>,
}

/// Every tensor of an architecture, rotary factors apart, which are there or not.
pub(crate) fn expected(config: &ModelConfig) -> Vec<Expected> {
    let (width, ffn, q, kv) = (config.width, config.ffn_width, config.q_width(), config.kv_width());
    let mut out = Vec::new();
    let mut add = |name: String, dims: &[usize]| {
        out.push(Expected { name, dims: dims.iter().map(|dim| *dim as u64).collect() });
    };
    add("token_embd.weight".into(), &[width, config.vocab]);
    add("output_norm.weight".into(), &[width]);
    if !config.tied {
        add("output.weight".into(), &[width, config.vocab]);
    }
    let extras = extras(config);
    for layer in 0..config.layers {
        let mut add = |part: &str, dims: &[usize]| add(format!("blk.{layer}.{part}"), dims);
        add("attn_norm.weight", &[width]);
        add("attn_q.weight", &[width, q]);
        add("attn_k.weight", &[width, kv]);
        add("attn_v.weight", &[width, kv]);
        add("attn_output.weight", &[q, width]);
        add("ffn_norm.weight", &[width]);
        add("ffn_gate.weight", &[width, ffn]);
        add("ffn_up.weight", &[width, ffn]);
        add("ffn_down.weight", &[ffn, width]);
        for (part, len) in &extras {
            add(part, &[*len]);
        }
    }
    out
}

/// Vectors of a layer that architectures have beside the common ones.
fn extras(config: &ModelConfig) -> Vec<(&'static str, usize)> {
    let (head, width, q, kv) = (config.head_dim, config.width, config.q_width(), config.kv_width());
    let norms = [("attn_q_norm.weight", head), ("attn_k_norm.weight", head)];
    let post_norms = [("post_attention_norm.weight", width), ("post_ffw_norm.weight", width)];
    let biases = [("attn_q.bias", q), ("attn_k.bias", kv), ("attn_v.bias", kv), ("attn_output.bias", width)];
    let mut out = match config.architecture {
        Architecture::Llama | Architecture::Qwen2 => Vec::new(),
        Architecture::Qwen3 => norms.to_vec(),
        Architecture::Gemma3 => [norms, post_norms].concat(),
    };
    out.extend(match config.biases {
        Biases::None => &biases[..0],
        Biases::Qkv => &biases[..3],
        Biases::Attention => &biases[..],
    });
    out
}

impl Gguf {
    /// Checks that the model can be loaded and returns its hyperparameters.
    pub fn validate(&self) -> Result<ModelConfig, GgufError> {
        let config = ModelConfig::read(self)?;
        for tensor in expected(&config) {
            self.expect(&tensor.name, &tensor.dims)?;
        }
        if config.architecture == Architecture::Llama && self.has_tensor(ROPE_FACTORS) {
            self.expect(ROPE_FACTORS, &[config.head_dim as u64 / 2])?;
        }
        self.refuse_unknown(config.architecture, &extras(&config))?;
        Ok(config)
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

    fn expect(&self, name: &str, dims: &[u64]) -> Result<(), GgufError> {
        let tensor = self.tensor(name)?;
        let wrong = |message| Err(GgufError::Tensor { name: name.to_owned(), message });
        if tensor.dims != dims {
            return wrong(format!("shape {:?}, expected {dims:?}", tensor.dims));
        }
        if !RUNNABLE_TYPES.contains(&tensor.kind) {
            return wrong(format!("type {} is not supported; supported: {RUNNABLE_TYPES:?}", tensor.kind));
        }
        if dims.len() == 1 && tensor.kind != GgmlType::F32 {
            return wrong(format!("type {}, expected F32", tensor.kind));
        }
        Ok(())
    }
}
