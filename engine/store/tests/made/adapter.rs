//! Adapters in PEFT's format, made by tests: also those of other crates, which name this file by its path.

use serde_json::{Map, Value, json};
use std::path::Path;

/// Name, shape, numbers.
pub type Tensor = (String, Vec<usize>, Vec<f32>);

/// Widths of a decoder: residual stream, queries, keys, feed-forward.
#[derive(Clone, Copy)]
pub struct Shape {
    pub width: usize,
    pub q: usize,
    pub kv: usize,
    pub ffn: usize,
}

/// Linear layers of a block with their columns and rows.
pub fn linears(shape: Shape) -> [(&'static str, usize, usize); 7] {
    let Shape { width, q, kv, ffn } = shape;
    [
        ("self_attn.q_proj", width, q),
        ("self_attn.k_proj", width, kv),
        ("self_attn.v_proj", width, kv),
        ("self_attn.o_proj", q, width),
        ("mlp.gate_proj", width, ffn),
        ("mlp.up_proj", width, ffn),
        ("mlp.down_proj", ffn, width),
    ]
}

/// Noise in [-1, 1), the same on every run.
fn noise(seed: u32, index: usize) -> f32 {
    let mixed = (index as u32 ^ seed.wrapping_mul(0x85eb_ca6b)).wrapping_mul(0x9e37_79b9).rotate_left(13);
    mixed.wrapping_mul(0x85eb_ca6b) as i32 as f32 / (1u32 << 31) as f32
}

/// Random matrices for these layers, of an effect that shows: each product adds about `size` of its input's length.
pub fn tensors(shape: Shape, layers: &[usize], rank: usize, seed: u32, size: f32) -> Vec<Tensor> {
    let mut tensors = Vec::new();
    for layer in layers {
        for (number, (path, cols, rows)) in linears(shape).into_iter().enumerate() {
            let name = |half: &str| format!("base_model.model.model.layers.{layer}.{path}.{half}.weight");
            let seed = seed.wrapping_mul(977).wrapping_add((layer * 16 + number) as u32 * 2);
            let (a, b) = (1.0 / (cols as f32).sqrt(), size / (rank as f32).sqrt());
            let numbers = |count: usize, seed: u32, size: f32| (0..count).map(|i| noise(seed, i) * size).collect();
            tensors.push((name("lora_A"), vec![rank, cols], numbers(rank * cols, seed, a)));
            tensors.push((name("lora_B"), vec![rows, rank], numbers(rows * rank, seed + 1, b)));
        }
    }
    tensors
}

/// A configuration that can be served, as PEFT writes it.
pub fn config(rank: usize) -> Map<String, Value> {
    let config = json!({
        "alpha_pattern": {}, "auto_mapping": null, "base_model_name_or_path": "base", "bias": "none",
        "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true, "layers_pattern": null,
        "layers_to_transform": null, "lora_alpha": rank, "lora_dropout": 0.05, "modules_to_save": null,
        "peft_type": "LORA", "r": rank, "rank_pattern": {}, "revision": null, "target_modules": "all-linear",
        "task_type": "CAUSAL_LM", "use_dora": false, "use_rslora": false
    });
    config.as_object().cloned().expect("an object")
}

/// Writes an adapter's folder.
pub fn write(folder: &Path, config: &Map<String, Value>, tensors: &[Tensor]) {
    std::fs::create_dir_all(folder).expect("a folder");
    let json = serde_json::to_vec_pretty(config).expect("JSON");
    std::fs::write(folder.join("adapter_config.json"), json).expect("a file");
    std::fs::write(folder.join("adapter_model.safetensors"), safetensors(tensors)).expect("a file");
}

/// The container's bytes: the header's length, the header, the numbers.
pub fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let mut header = Map::new();
    let mut data: Vec<u8> = Vec::new();
    for (name, shape, numbers) in tensors {
        let begin = data.len();
        data.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
        header.insert(name.clone(), json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()] }));
    }
    let header = serde_json::to_vec(&header).expect("JSON");
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}
