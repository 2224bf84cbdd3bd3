//! Architectures of which no small checkpoint is to be had: tiny ones with random weights, against a second
//! implementation that is written from the definitions, in f64 and one number at a time.

#[path = "common/folder.rs"]
mod folder;

use engine_core::{Batch, BatchSequence, NO_BLOCK};
use engine_runtime::{Compute, CpuBands, KV_BLOCK_TOKENS, LoadOptions, load};
use engine_store::{Checkpoint, Gguf, Segments, Store};
use folder::Dtype;
use std::collections::BTreeMap;

const WIDTH: usize = 32;
const FFN: usize = 48;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD: usize = 16;
const LAYERS: usize = 2;
const VOCAB: usize = 40;
const EPSILON: f64 = 1e-5;
const BASE: f64 = 10_000.0;

/// What a case has beside the common parts.
#[derive(Clone, Copy)]
struct Case {
    architecture: &'static str,
    tied: bool,
    window: Option<usize>,
    rope_factors: bool,
    biases: bool,
    head_norms: bool,
}

const LLAMA: Case =
    Case { architecture: "llama", tied: false, window: None, rope_factors: false, biases: false, head_norms: false };

/// Tensors by name: dimensions (columns first) and values.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Noise in [-1, 1), the same on every run.
fn noise(index: usize) -> f32 {
    (index as u32).wrapping_mul(0x9e37_79b9).rotate_left(13).wrapping_mul(0x85eb_ca6b) as i32 as f32
        / (1u32 << 31) as f32
}

fn tensors(case: Case) -> Tensors {
    let (q, kv) = (HEADS * HEAD, KV_HEADS * HEAD);
    let mut shapes =
        vec![("token_embd.weight".to_owned(), vec![WIDTH, VOCAB]), ("output_norm.weight".to_owned(), vec![WIDTH])];
    if !case.tied {
        shapes.push(("output.weight".to_owned(), vec![WIDTH, VOCAB]));
    }
    for layer in 0..LAYERS {
        let mut add = |part: &str, dims: &[usize]| shapes.push((format!("blk.{layer}.{part}"), dims.to_vec()));
        add("attn_norm.weight", &[WIDTH]);
        add("attn_q.weight", &[WIDTH, q]);
        add("attn_k.weight", &[WIDTH, kv]);
        add("attn_v.weight", &[WIDTH, kv]);
        add("attn_output.weight", &[q, WIDTH]);
        add("ffn_norm.weight", &[WIDTH]);
        add("ffn_gate.weight", &[WIDTH, FFN]);
        add("ffn_up.weight", &[WIDTH, FFN]);
        add("ffn_down.weight", &[FFN, WIDTH]);
        if case.biases {
            add("attn_q.bias", &[q]);
            add("attn_k.bias", &[kv]);
            add("attn_v.bias", &[kv]);
        }
        if case.head_norms {
            add("attn_q_norm.weight", &[HEAD]);
            add("attn_k_norm.weight", &[HEAD]);
        }
    }
    let mut out = Tensors::new();
    for (number, (name, dims)) in shapes.into_iter().enumerate() {
        let len = dims.iter().product();
        let offset = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
        let values = (0..len).map(|index| offset + 0.3 * noise(number * 100_000 + index)).collect();
        out.insert(name, (dims, values));
    }
    if case.rope_factors {
        let factors = (0..HEAD / 2).map(|pair| 1.0 + pair as f32).collect();
        out.insert("rope_freqs.weight".to_owned(), (vec![HEAD / 2], factors));
    }
    out
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// The case as a GGUF file, all tensors in f32.
fn gguf(case: Case, tensors: &Tensors) -> Gguf {
    let mut numbers = vec![
        ("block_count", LAYERS),
        ("embedding_length", WIDTH),
        ("feed_forward_length", FFN),
        ("context_length", 64),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", KV_HEADS),
        ("attention.key_length", HEAD),
    ];
    numbers.extend(case.window.map(|window| ("attention.sliding_window", window)));
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((numbers.len() as u64 + 2).to_le_bytes());
    string(&mut out, "general.architecture");
    out.extend(8u32.to_le_bytes());
    string(&mut out, case.architecture);
    string(&mut out, &format!("{}.attention.layer_norm_rms_epsilon", case.architecture));
    out.extend(6u32.to_le_bytes());
    out.extend((EPSILON as f32).to_le_bytes());
    for (key, value) in numbers {
        string(&mut out, &format!("{}.{key}", case.architecture));
        out.extend(4u32.to_le_bytes());
        out.extend((value as u32).to_le_bytes());
    }
    let mut data: Vec<u8> = Vec::new();
    for (name, (dims, values)) in tensors {
        string(&mut out, name);
        out.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| out.extend((*dim as u64).to_le_bytes()));
        out.extend(0u32.to_le_bytes());
        out.extend((data.len() as u64).to_le_bytes());
        data.extend(values.iter().flat_map(|x| x.to_le_bytes()));
        data.resize(data.len().next_multiple_of(32), 0);
    }
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    Gguf::from_bytes(out).expect("a well-formed file")
}

/// The second implementation.
struct Reference<'a> {
    case: Case,
    tensors: &'a Tensors,
}

impl Reference<'_> {
    fn vector(&self, name: &str) -> Vec<f64> {
        self.tensors[name].1.iter().map(|x| f64::from(*x)).collect()
    }

    fn product(&self, name: &str, x: &[f64]) -> Vec<f64> {
        self.vector(name).chunks(x.len()).map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        x.iter().zip(self.vector(name)).map(|(x, w)| x / (mean + EPSILON).sqrt() * w).collect()
    }

    /// Heads of queries or keys of one token, ready to be compared.
    fn heads(&self, layer: usize, part: &str, position: usize, x: &[f64]) -> Vec<Vec<f64>> {
        let all = self.projected(layer, part, x);
        all.chunks(HEAD)
            .map(|head| {
                let norm = format!("blk.{layer}.{part}_norm.weight");
                let head = if self.case.head_norms { self.norm(&norm, head) } else { head.to_vec() };
                self.turned(position, &head)
            })
            .collect()
    }

    fn projected(&self, layer: usize, part: &str, x: &[f64]) -> Vec<f64> {
        let out = self.product(&format!("blk.{layer}.{part}.weight"), x);
        match self.case.biases {
            true => out.iter().zip(self.vector(&format!("blk.{layer}.{part}.bias"))).map(|(x, b)| x + b).collect(),
            false => out,
        }
    }

    fn turned(&self, position: usize, head: &[f64]) -> Vec<f64> {
        let mut out = head.to_vec();
        for pair in 0..HEAD / 2 {
            let factor = if self.case.rope_factors { 1.0 + pair as f64 } else { 1.0 };
            let angle = position as f64 * BASE.powf(-2.0 * pair as f64 / HEAD as f64) / factor;
            let (a, b) =
                if self.case.architecture == "llama" { (2 * pair, 2 * pair + 1) } else { (pair, pair + HEAD / 2) };
            out[a] = head[a] * angle.cos() - head[b] * angle.sin();
            out[b] = head[a] * angle.sin() + head[b] * angle.cos();
        }
        out
    }

    fn attended(&self, layer: usize, normed: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let rows = normed.iter().enumerate();
        let keys: Vec<_> = rows.clone().map(|(at, x)| self.heads(layer, "attn_k", at, x)).collect();
        let values: Vec<_> = rows.clone().map(|(_, x)| self.projected(layer, "attn_v", x)).collect();
        let attend = |(at, x): (usize, &Vec<f64>)| {
            let queries = self.heads(layer, "attn_q", at, x);
            let mut out = Vec::new();
            for (head, query) in queries.iter().enumerate() {
                let kv = head / (HEADS / KV_HEADS);
                let first = self.case.window.map_or(0, |window| (at + 1).saturating_sub(window));
                let score =
                    |key: &Vec<f64>| query.iter().zip(key).map(|(a, b)| a * b).sum::<f64>() / (HEAD as f64).sqrt();
                let weights: Vec<f64> = (first..=at).map(|other| score(&keys[other][kv]).exp()).collect();
                let total: f64 = weights.iter().sum();
                out.extend((0..HEAD).map(|d| {
                    (first..=at).zip(&weights).map(|(other, w)| w * values[other][kv * HEAD + d]).sum::<f64>() / total
                }));
            }
            self.product(&format!("blk.{layer}.attn_output.weight"), &out)
        };
        rows.map(attend).collect()
    }

    fn fed_forward(&self, layer: usize, x: &[f64]) -> Vec<f64> {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let (gate, up) = (self.product(&name("ffn_gate"), x), self.product(&name("ffn_up"), x));
        let inner: Vec<f64> = gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
        self.product(&name("ffn_down"), &inner)
    }

    /// Logits after the last token.
    fn logits(&self, tokens: &[u32]) -> Vec<f64> {
        let embedding = self.vector("token_embd.weight");
        let mut x: Vec<Vec<f64>> =
            tokens.iter().map(|token| embedding[*token as usize * WIDTH..][..WIDTH].to_vec()).collect();
        for layer in 0..LAYERS {
            let normed: Vec<_> = x.iter().map(|x| self.norm(&format!("blk.{layer}.attn_norm.weight"), x)).collect();
            for (x, add) in x.iter_mut().zip(self.attended(layer, &normed)) {
                x.iter_mut().zip(add).for_each(|(x, add)| *x += add);
            }
            for x in &mut x {
                let add = self.fed_forward(layer, &self.norm(&format!("blk.{layer}.ffn_norm.weight"), x));
                x.iter_mut().zip(add).for_each(|(x, add)| *x += add);
            }
        }
        let last = self.norm("output_norm.weight", &x[tokens.len() - 1]);
        self.product(if self.case.tied { "token_embd.weight" } else { "output.weight" }, &last)
    }
}

/// Logits of the device after `tokens`, the first `prefill` of them in one step and then one by one.
fn device_logits(checkpoint: &Checkpoint, compute: Compute, tokens: &[u32], prefill: usize) -> Vec<f32> {
    let options = LoadOptions { compute, kv_bytes: 1 << 20, ..LoadOptions::default() };
    let mut device = load(checkpoint, options).expect("a supported model");
    let (mut start, mut out) = (0, Vec::new());
    while start < tokens.len() {
        let new_tokens = if start == 0 { prefill } else { 1 };
        let mut blocks = vec![2, 0, 1];
        // Blocks that fell out of the window of all layers are gone.
        if let Some(window_tokens) = device.window_tokens() {
            let first_seen = (start + 1usize).saturating_sub(window_tokens);
            blocks[..first_seen / KV_BLOCK_TOKENS].fill(NO_BLOCK);
        }
        let sequence = BatchSequence { new_tokens, start, blocks, logits: 1, adapter: None };
        let batch = Batch { tokens: tokens[start..start + new_tokens].to_vec(), sequences: vec![sequence] };
        device.forward(&batch, &mut out).expect("a well-formed batch");
        start += new_tokens;
    }
    out
}

fn check(case: Case) {
    let tensors = tensors(case);
    let gguf = gguf(case, &tensors);
    let tokens: Vec<u32> = (0..35).map(|index| (index * 17 + 3) % VOCAB as u32).collect();
    let expected = Reference { case, tensors: &tensors }.logits(&tokens);
    check_logits(case, &Checkpoint::from(&gguf), &tokens, &expected);
    // The same as a Hugging Face folder, which says in other terms how factors come about.
    if !case.rope_factors {
        let folder = tempfile::tempdir().expect("a folder");
        folder::write(&gguf, folder.path(), Dtype::F32, 2);
        std::fs::write(folder.path().join("tokenizer.json"), "{}").expect("a file");
        let checkpoint = Checkpoint::open(folder.path(), None).expect("a good folder");
        check_logits(case, &checkpoint, &tokens, &expected);
    }
}

/// The same checkpoint, by way of the store.
fn stored(checkpoint: &Checkpoint) -> Checkpoint {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(folder.path().join("store")).expect("a store");
    let manifest = store.ingest(checkpoint, "one", &CpuBands, &mut |_| {}).expect("ingested");
    let segments = Segments::open(folder.path().join("segments")).expect("a folder");
    let loaded = engine_store::load(&store, &manifest, &segments, engine_store::LoadOptions::default());
    checkpoint.clone().with_loaded(loaded.expect("loaded")).expect("the same model")
}

fn check_logits(case: Case, checkpoint: &Checkpoint, tokens: &[u32], expected: &[f64]) {
    let stored = stored(checkpoint);
    for (compute, tolerance) in [(Compute::F32, 1e-4), (Compute::Fast, 2e-2)] {
        for prefill in [35, 20] {
            let found = device_logits(checkpoint, compute, tokens, prefill);
            assert_eq!(found.len(), VOCAB);
            assert_eq!(device_logits(&stored, compute, tokens, prefill), found, "from the store, bit by bit");
            for (id, (found, expected)) in found.iter().zip(expected).enumerate() {
                let error = (f64::from(*found) - expected).abs();
                let name = case.architecture;
                assert!(error < tolerance, "{name}, {compute:?}, token {id}: {found}, expected {expected}");
            }
        }
    }
}

#[test]
fn llama_with_and_without_its_variations() {
    check(LLAMA);
    check(Case { tied: true, ..LLAMA });
    check(Case { rope_factors: true, ..LLAMA });
    check(Case { window: Some(6), ..LLAMA });
}

#[test]
fn qwen2_has_biases() {
    check(Case { architecture: "qwen2", biases: true, ..LLAMA });
    check(Case { architecture: "qwen2", biases: true, tied: true, ..LLAMA });
}

#[test]
fn qwen3_norms_queries_and_keys() {
    check(Case { architecture: "qwen3", head_norms: true, ..LLAMA });
    check(Case { architecture: "qwen3", head_norms: true, tied: true, ..LLAMA });
}
