//! Tiny models of every architecture and of every type of weights, against the CPU device computing in f32.

use crate::{
    common::{gpu, options},
    tiny::{TINY, Tiny, VOCAB},
};
use engine_core::{Batch, Forward, NO_BLOCK};
use engine_cuda::{CudaForward, CudaOptions, KvFormat, format::FORMATS};
use engine_runtime::{Compute, LoadOptions};

/// Logits of every token after the first `cached`, which run in a step of their own.
fn run(device: &mut dyn Forward, tokens: &[u32], cached: usize) -> Vec<f32> {
    let block_tokens = device.shape().kv_block_tokens;
    let mut blocks: Vec<u32> = (0..tokens.len().div_ceil(block_tokens) as u32).rev().collect();
    let mut out = Vec::new();
    for (start, end, logits) in [(0, cached, 0), (cached, tokens.len(), tokens.len() - cached)] {
        // Blocks that fell out of the window of all layers are gone.
        if let Some(window) = device.window_tokens() {
            blocks[..(start + 1usize).saturating_sub(window) / block_tokens].fill(NO_BLOCK);
        }
        let mut batch = Batch { tokens: tokens[start..end].to_vec(), sequences: Vec::new() };
        let (new_tokens, blocks) = (end - start, blocks.clone());
        batch.sequences.push(engine_core::BatchSequence { new_tokens, start, blocks, logits, adapter: None });
        device.forward(&batch, &mut out).expect("a well-formed batch");
    }
    out
}

/// Root mean square of how far apart two devices' logits are, as a share of the reference's own.
fn difference(tiny: Tiny, options: CudaOptions) -> f32 {
    let tokens: Vec<u32> = (0..75).map(|index| (index * 17 + 3) % VOCAB as u32).collect();
    let checkpoint = tiny.checkpoint();
    let cpu = LoadOptions { compute: Compute::F32, kv_bytes: 4 << 20, ..LoadOptions::default() };
    let mut reference = engine_runtime::load(&checkpoint, cpu).expect("a supported model");
    let mut device = CudaForward::load(&checkpoint, options).expect("a supported model");
    assert_eq!(reference.window_tokens(), device.window_tokens());
    let expected = run(&mut *reference, &tokens, 40);
    let found = run(&mut device, &tokens, 40);
    assert_eq!(found.len(), expected.len());
    let squares = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>();
    let apart: Vec<f32> = found.iter().zip(&expected).map(|(a, b)| a - b).collect();
    // No single row may be far off either, as one would be at whose position something is wrong.
    for (row, (apart, expected)) in apart.chunks(VOCAB).zip(expected.chunks(VOCAB)).enumerate() {
        assert!(squares(apart) < 0.1 * squares(expected), "{tiny:?}, row {row}");
    }
    (squares(&apart) / squares(&expected)).sqrt()
}

fn check(tiny: Tiny, tolerance: f32) {
    let gpu = gpu();
    for planes in [1, 2] {
        let share = difference(tiny, CudaOptions { planes, ..options() });
        println!("{}, {}, {planes} planes: {share}", tiny.architecture, tiny.kind);
        assert!(share < tolerance, "{tiny:?}, {planes} planes: off by {share}");
    }
    assert_eq!(gpu.fault(), "");
}

#[test]
fn llama_and_its_variations() {
    check(TINY, 0.02);
    check(Tiny { tied: true, rope_factors: true, ..TINY }, 0.02);
    check(Tiny { window: Some(20), ..TINY }, 0.02);
    check(Tiny { heads: 4, kv_heads: 4, head_dim: 64, width: 128, ..TINY }, 0.02);
}

#[test]
fn qwen2_has_biases_and_qwen3_norms_of_heads() {
    check(Tiny { architecture: "qwen2", ..TINY }, 0.02);
    check(Tiny { architecture: "qwen3", tied: true, ..TINY }, 0.02);
}

#[test]
fn gemma3_has_both_kinds_of_layers() {
    check(Tiny { architecture: "gemma3", layers: 7, window: Some(18), tied: true, ..TINY }, 0.02);
}

#[test]
fn every_type_of_weights() {
    for format in FORMATS {
        let (width, ffn) = if format.unit_cols == 256 { (256, 512) } else { (64, 96) };
        let (heads, head_dim) = if format.unit_cols == 256 { (8, 32) } else { (6, 32) };
        check(Tiny { kind: format.kind, width, ffn, heads, head_dim, layers: 1, ..TINY }, 0.04);
    }
}

#[test]
fn keys_and_values_in_fp8_cost_some_precision() {
    let gpu = gpu();
    let share = difference(TINY, CudaOptions { kv_format: KvFormat::Fp8, kv_block_tokens: 32, ..options() });
    assert!(share > 0.01 && share < 0.2, "off by {share}");
    assert_eq!(gpu.fault(), "");
}

#[test]
fn what_kernels_do_not_know_is_refused_with_a_reason() {
    let _gpu = gpu();
    let refused = |tiny: Tiny, options: CudaOptions, part: &str| {
        let error = CudaForward::load(&tiny.checkpoint(), options).err().expect("refused").to_string();
        assert!(error.contains(part), "{error}");
    };
    refused(Tiny { head_dim: 48, ..TINY }, options(), "heads of 48");
    refused(TINY, CudaOptions { kv_block_tokens: 24, ..options() }, "kv_block_tokens");
    refused(TINY, CudaOptions { planes: 3, ..options() }, "planes");
    refused(TINY, CudaOptions { step_tokens: 0, ..options() }, "step_tokens");
    refused(TINY, CudaOptions { kv_bytes: 100, ..options() }, "hold no block");
    refused(TINY, CudaOptions { ordinal: 3, ..options() }, "no CUDA device 3");
}
