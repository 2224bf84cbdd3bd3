//! A Hugging Face folder of a GGUF file's weights, dequantised, in the order and under the names that transformers
//! writes.

#![allow(dead_code, reason = "each test binary uses its own part")]

use engine_runtime::kernels::cpu::quant::dequantise;
use engine_store::{Architecture, Gguf, ModelConfig, TensorView};
use half::bf16;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// How numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    F32,
    BF16,
}

impl Dtype {
    fn bytes(self) -> u64 {
        if self == Self::F32 { 4 } else { 2 }
    }

    fn write(self, x: f32, out: &mut impl Write) {
        let written = match self {
            Self::F32 => out.write_all(&x.to_le_bytes()),
            Self::BF16 => out.write_all(&bf16::from_f32(x).to_le_bytes()),
        };
        written.expect("the file can be written");
    }
}

/// Writes config.json and the weights, in as many shards as asked for; one is `model.safetensors`.
pub fn write(gguf: &Gguf, folder: &Path, dtype: Dtype, shards: usize) {
    let config = gguf.validate().expect("a supported checkpoint");
    std::fs::write(folder.join("config.json"), config_json(&config).to_string()).expect("a file");
    let tensors: Vec<TensorView<'_>> = gguf.tensors().filter(|tensor| tensor.name != "rope_freqs.weight").collect();
    let mut weight_map = Map::new();
    for (number, part) in tensors.chunks(tensors.len().div_ceil(shards)).enumerate() {
        let name = match shards {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{shards:05}.safetensors", number + 1),
        };
        write_shard(&folder.join(&name), part, &config, dtype);
        weight_map.extend(part.iter().map(|tensor| (stored_name(tensor.name, &config), json!(name))));
    }
    if shards > 1 {
        let index = json!({"metadata": {"total_size": 0}, "weight_map": weight_map});
        std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).expect("a file");
    }
}

fn config_json(config: &ModelConfig) -> Value {
    let model_type = match config.architecture {
        Architecture::Llama if config.sliding.is_some() => "mistral",
        Architecture::Llama => "llama",
        Architecture::Qwen2 => "qwen2",
        Architecture::Qwen3 => "qwen3",
        Architecture::Gemma3 => "gemma3_text",
    };
    let gemma = config.architecture == Architecture::Gemma3;
    json!({
        "model_type": model_type, "hidden_act": if gemma { "gelu_pytorch_tanh" } else { "silu" },
        "hidden_size": config.width, "intermediate_size": config.ffn_width, "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads, "num_key_value_heads": config.kv_heads, "head_dim": config.head_dim,
        "vocab_size": config.vocab, "max_position_embeddings": config.context_tokens,
        "rope_theta": config.rope_base, "rms_norm_eps": config.norm_epsilon, "tie_word_embeddings": config.tied,
        "sliding_window": config.sliding.map(|sliding| sliding.tokens), "query_pre_attn_scalar": config.query_width,
        "rope_local_base_freq": config.sliding.and_then(|sliding| sliding.rope_base), "sliding_window_pattern": 6
    })
}

fn write_shard(path: &Path, tensors: &[TensorView<'_>], config: &ModelConfig, dtype: Dtype) {
    let (mut header, mut end) = (Map::new(), 0);
    for tensor in tensors {
        let start = end;
        end += tensor.elements() * dtype.bytes();
        let shape: Vec<u64> = tensor.dims.iter().rev().copied().collect();
        let entry = json!({"dtype": format!("{dtype:?}"), "shape": shape, "data_offsets": [start, end]});
        header.insert(stored_name(tensor.name, config), entry);
    }
    let mut header = Value::Object(header).to_string();
    header += &" ".repeat(header.len().next_multiple_of(8) - header.len());
    let mut out = BufWriter::new(File::create(path).expect("a file"));
    out.write_all(&(header.len() as u64).to_le_bytes()).expect("the file can be written");
    out.write_all(header.as_bytes()).expect("the file can be written");
    for tensor in tensors {
        let mut numbers = vec![0.0; tensor.elements() as usize];
        dequantise(tensor.kind, tensor.bytes, &mut numbers);
        let gemma_norm = config.architecture == Architecture::Gemma3 && tensor.name.ends_with("norm.weight");
        let less = if gemma_norm { 1.0 } else { 0.0 };
        let cols = tensor.dims[0] as usize;
        for row in rows(tensor, config) {
            numbers[row * cols..(row + 1) * cols].iter().for_each(|x| dtype.write(x - less, &mut out));
        }
    }
    out.flush().expect("the file can be written");
}

/// The file's rows in transformers' order: GGUF interleaves the halves of llama's heads.
fn rows(tensor: &TensorView<'_>, config: &ModelConfig) -> Vec<usize> {
    let count = tensor.dims[1..].iter().product::<u64>() as usize;
    let turned = tensor.name.ends_with("attn_q.weight") || tensor.name.ends_with("attn_k.weight");
    let half = config.head_dim / 2;
    let interleaved = |row: usize| {
        let (head, within) = (row / config.head_dim, row % config.head_dim);
        head * config.head_dim + within % half * 2 + within / half
    };
    let turned = turned && config.architecture == Architecture::Llama;
    (0..count).map(|row| if turned { interleaved(row) } else { row }).collect()
}

/// What transformers calls a tensor, written out from its models rather than taken from the code under test.
fn stored_name(name: &str, config: &ModelConfig) -> String {
    let gemma = config.architecture == Architecture::Gemma3;
    let Some((layer, part)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
        return match name {
            "token_embd.weight" => "model.embed_tokens.weight".to_owned(),
            "output_norm.weight" => "model.norm.weight".to_owned(),
            "output.weight" => "lm_head.weight".to_owned(),
            other => panic!("no name for {other}"),
        };
    };
    let (part, kind) = part.split_once('.').expect("weight or bias");
    let part = match part {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_norm" if gemma => "pre_feedforward_layernorm",
        "ffn_norm" | "post_attention_norm" => "post_attention_layernorm",
        "post_ffw_norm" => "post_feedforward_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        other => panic!("no name for {other}"),
    };
    format!("model.layers.{layer}.{part}.{kind}")
}
