//! Tiny models with random weights of any type, as GGUF files in memory.
#![allow(dead_code)]

use engine_store::{Checkpoint, GgmlType, Gguf};
use half::f16;

/// Noise in [-1, 1), the same on every run.
pub fn noise(index: usize) -> f32 {
    (index as u32).wrapping_mul(0x9e37_79b9).rotate_left(13).wrapping_mul(0x85eb_ca6b) as i32 as f32
        / (1u32 << 31) as f32
}

/// Random numbers of a type, most of them within +-0.4: any bits will do for whole numbers, scales are set.
pub fn weights(kind: GgmlType, elements: usize, seed: usize) -> Vec<u8> {
    let number = |index: usize| 0.3 * noise(seed.wrapping_mul(1_000_003) + index);
    match kind {
        GgmlType::F32 => return (0..elements).flat_map(|i| number(i).to_le_bytes()).collect(),
        GgmlType::F16 => return (0..elements).flat_map(|i| f16::from_f32(number(i)).to_le_bytes()).collect(),
        GgmlType::BF16 => return (0..elements).flat_map(|i| half::bf16::from_f32(number(i)).to_le_bytes()).collect(),
        _ => {}
    }
    // Where f16 numbers lie in a block, and how large they are.
    let halves: &[(usize, f32)] = match kind {
        GgmlType::Q4_0 => &[(0, 0.04)],
        GgmlType::Q4_1 => &[(0, 0.04), (2, -0.3)],
        GgmlType::Q5_0 => &[(0, 0.02)],
        GgmlType::Q5_1 => &[(0, 0.02), (2, -0.3)],
        GgmlType::Q8_0 => &[(0, 0.003)],
        GgmlType::Q2_K => &[(80, 0.02), (82, 0.02)],
        GgmlType::Q3_K => &[(108, 0.003)],
        GgmlType::Q4_K | GgmlType::Q5_K => &[(0, 0.0005), (2, 0.004)],
        _ => &[(208, 0.0001)],
    };
    let (block_bytes, count) = (kind.block_bytes() as usize, elements / kind.block_len() as usize);
    let mut out = Vec::with_capacity(count * block_bytes);
    for block in 0..count {
        let start = out.len();
        out.extend((0..block_bytes).map(|i| (noise(seed * 7919 + block * 613 + i).to_bits() >> 7) as u8));
        for (at, size) in halves {
            let x = f16::from_f32(size * (1.0 + 0.5 * noise(seed + block * 31 + at)));
            out[start + at..start + at + 2].copy_from_slice(&x.to_le_bytes());
        }
    }
    out
}

/// A model to be.
#[derive(Clone, Copy, Debug)]
pub struct Tiny {
    pub architecture: &'static str,
    /// Of all matrices.
    pub kind: GgmlType,
    pub width: usize,
    pub ffn: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub layers: usize,
    pub context: usize,
    pub tied: bool,
    pub window: Option<usize>,
    pub rope_factors: bool,
}

pub const VOCAB: usize = 80;

pub const TINY: Tiny = Tiny {
    architecture: "llama",
    kind: GgmlType::BF16,
    width: 64,
    ffn: 96,
    heads: 6,
    kv_heads: 2,
    head_dim: 32,
    layers: 2,
    context: 1024,
    tied: false,
    window: None,
    rope_factors: false,
};

impl Tiny {
    fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let (width, q, kv) = (self.width, self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut out =
            vec![("token_embd.weight".to_owned(), vec![width, VOCAB]), ("output_norm.weight".to_owned(), vec![width])];
        if !self.tied {
            out.push(("output.weight".to_owned(), vec![width, VOCAB]));
        }
        if self.rope_factors {
            out.push(("rope_freqs.weight".to_owned(), vec![self.head_dim / 2]));
        }
        for layer in 0..self.layers {
            let mut add = |part: &str, dims: &[usize]| out.push((format!("blk.{layer}.{part}"), dims.to_vec()));
            add("attn_norm.weight", &[width]);
            add("attn_q.weight", &[width, q]);
            add("attn_k.weight", &[width, kv]);
            add("attn_v.weight", &[width, kv]);
            add("attn_output.weight", &[q, width]);
            add("ffn_norm.weight", &[width]);
            add("ffn_gate.weight", &[width, self.ffn]);
            add("ffn_up.weight", &[width, self.ffn]);
            add("ffn_down.weight", &[self.ffn, width]);
            if self.architecture == "qwen2" {
                add("attn_q.bias", &[q]);
                add("attn_k.bias", &[kv]);
                add("attn_v.bias", &[kv]);
            }
            if ["qwen3", "gemma3"].contains(&self.architecture) {
                add("attn_q_norm.weight", &[self.head_dim]);
                add("attn_k_norm.weight", &[self.head_dim]);
            }
            if self.architecture == "gemma3" {
                add("post_attention_norm.weight", &[width]);
                add("post_ffw_norm.weight", &[width]);
            }
        }
        out
    }

    fn tensor(&self, name: &str, dims: &[usize], seed: usize) -> (u32, Vec<u8>) {
        let offset = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
        if dims.len() == 1 {
            let number = |i: usize| match name {
                "rope_freqs.weight" => 1.0 + i as f32,
                _ => offset + 0.3 * noise(seed * 100_003 + i),
            };
            return (0, (0..dims[0]).flat_map(|i| number(i).to_le_bytes()).collect());
        }
        (type_number(self.kind), weights(self.kind, dims[0] * dims[1], seed + 1))
    }

    pub fn gguf_bytes(&self) -> Vec<u8> {
        let mut numbers = vec![
            ("block_count", self.layers),
            ("embedding_length", self.width),
            ("feed_forward_length", self.ffn),
            ("context_length", self.context),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("attention.key_length", self.head_dim),
        ];
        numbers.extend(self.window.map(|window| ("attention.sliding_window", window)));
        let shapes = self.shapes();
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((shapes.len() as u64).to_le_bytes());
        out.extend((numbers.len() as u64 + 2).to_le_bytes());
        string(&mut out, "general.architecture");
        out.extend(8u32.to_le_bytes());
        string(&mut out, self.architecture);
        string(&mut out, &format!("{}.attention.layer_norm_rms_epsilon", self.architecture));
        out.extend(6u32.to_le_bytes());
        out.extend(1e-5f32.to_le_bytes());
        for (key, value) in numbers {
            string(&mut out, &format!("{}.{key}", self.architecture));
            out.extend(4u32.to_le_bytes());
            out.extend((value as u32).to_le_bytes());
        }
        let mut data: Vec<u8> = Vec::new();
        for (seed, (name, dims)) in shapes.iter().enumerate() {
            let (kind, bytes) = self.tensor(name, dims, seed);
            string(&mut out, name);
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|dim| out.extend((*dim as u64).to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }

    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint::from(&Gguf::from_bytes(self.gguf_bytes()).expect("a well-formed file"))
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn type_number(kind: GgmlType) -> u32 {
    match kind {
        GgmlType::F32 => 0,
        GgmlType::F16 => 1,
        GgmlType::Q4_0 => 2,
        GgmlType::Q4_1 => 3,
        GgmlType::Q5_0 => 6,
        GgmlType::Q5_1 => 7,
        GgmlType::Q8_0 => 8,
        GgmlType::Q2_K => 10,
        GgmlType::Q3_K => 11,
        GgmlType::Q4_K => 12,
        GgmlType::Q5_K => 13,
        GgmlType::Q6_K => 14,
        GgmlType::BF16 => 30,
        other => panic!("no number for {other}"),
    }
}
