//! A Hugging Face folder of a one-layer llama, as small as can be, to be changed by tests.

#![allow(dead_code, reason = "each test binary uses its own part")]

use serde_json::{Map, Value, json};
use std::path::Path;
use tempfile::TempDir;

/// A folder to be: configuration, and shape and type of each tensor.
#[derive(Clone)]
pub struct Plan {
    pub config: Value,
    pub tensors: Vec<(String, Vec<u64>, &'static str)>,
}

/// One layer: width 32, two heads of 16, one KV head, feed-forward 64, vocabulary of 4.
pub fn llama() -> Plan {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "vocab_size": 4, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "rope_scaling": null, "tie_word_embeddings": true, "torch_dtype": "bfloat16"
    });
    let shapes: [(&str, &[u64]); 11] = [
        ("embed_tokens", &[4, 32]),
        ("norm", &[32]),
        ("layers.0.input_layernorm", &[32]),
        ("layers.0.self_attn.q_proj", &[32, 32]),
        ("layers.0.self_attn.k_proj", &[16, 32]),
        ("layers.0.self_attn.v_proj", &[16, 32]),
        ("layers.0.self_attn.o_proj", &[32, 32]),
        ("layers.0.post_attention_layernorm", &[32]),
        ("layers.0.mlp.gate_proj", &[64, 32]),
        ("layers.0.mlp.up_proj", &[64, 32]),
        ("layers.0.mlp.down_proj", &[32, 64]),
    ];
    let tensor = |(name, shape): &(&str, &[u64])| (format!("model.{name}.weight"), shape.to_vec(), "BF16");
    Plan { config, tensors: shapes.iter().map(tensor).collect() }
}

impl Plan {
    pub fn set(mut self, field: &str, value: Value) -> Self {
        self.config[field] = value;
        self
    }

    pub fn add(mut self, name: &str, shape: &[u64]) -> Self {
        self.tensors.push((name.to_owned(), shape.to_vec(), "BF16"));
        self
    }

    pub fn edit(mut self, name: &str, change: impl FnOnce(&mut (String, Vec<u64>, &'static str))) -> Self {
        change(self.tensors.iter_mut().find(|tensor| tensor.0.contains(name)).expect("the tensor is there"));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.tensors.retain(|tensor| !tensor.0.contains(name));
        self
    }

    pub fn rename(mut self, from: &str, to: &str) -> Self {
        self.tensors.iter_mut().for_each(|tensor| tensor.0 = tensor.0.replacen(from, to, 1));
        self
    }

    /// Numbers are all 0.5, whatever their type.
    pub fn write(&self, folder: &Path) {
        let (mut header, mut data) = (Map::new(), Vec::<u8>::new());
        for (name, shape, dtype) in &self.tensors {
            let start = data.len();
            let one = if *dtype == "F32" { 0.5f32.to_le_bytes().to_vec() } else { vec![0, 0x3f] };
            let count = shape.iter().product::<u64>() as usize;
            data.extend(one.repeat(count));
            let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]});
            header.insert(name.clone(), entry);
        }
        let header = Value::Object(header).to_string();
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
        std::fs::write(folder.join("model.safetensors"), file).unwrap();
        std::fs::write(folder.join("config.json"), self.config.to_string()).unwrap();
        std::fs::write(folder.join("tokenizer.json"), "{}").unwrap();
    }

    pub fn folder(&self) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        self.write(folder.path());
        folder
    }
}
