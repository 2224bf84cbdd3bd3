//! Whole steps of a model: prefill, and decode by batch and context. What attention reads shows in how steps grow with context.

use crate::{Failure, Scale, yardsticks::Yardsticks};
use engine_core::{Batch, BatchSequence, BlockId, Forward};
use engine_cuda::{CudaForward, CudaOptions};
use engine_store::{Checkpoint, ModelConfig};
use serde_json::{Value, json};
use std::time::Instant;

const BATCHES: [usize; 4] = [1, 8, 32, 64];
const CONTEXTS: [usize; 4] = [16, 1024, 8192, 32_000];
const PREFILL_TOKENS: [usize; 2] = [512, 2048];

/// One sequence by itself, its blocks in order from the first.
pub fn step(device: &mut CudaForward, tokens: &[u32], start: usize, logits: usize) -> Result<Vec<f32>, Failure> {
    let count = (start + tokens.len()).div_ceil(device.shape().kv_block_tokens);
    let sequence = BatchSequence {
        new_tokens: tokens.len(),
        start,
        blocks: (0..count as BlockId).collect(),
        logits,
        adapter: None,
    };
    let mut out = Vec::new();
    device.forward(&Batch { tokens: tokens.to_vec(), sequences: vec![sequence] }, &mut out)?;
    Ok(out)
}

pub fn all(name: &str, checkpoint: &Checkpoint, scale: Scale, best: Yardsticks) -> Result<Value, Failure> {
    let config = checkpoint.validate()?;
    let kv_bytes = if scale.emulated { 8 << 20 } else { 24 << 30 };
    let step_tokens = if scale.emulated { 64 } else { 2048 };
    let begun = Instant::now();
    let mut device = CudaForward::load(checkpoint, CudaOptions { kv_bytes, step_tokens, ..CudaOptions::default() })?;
    let load_ms = begun.elapsed().as_secs_f64() * 1e3;
    let shape = device.shape();
    let prompt = if scale.emulated { 32 } else { 512.min(shape.context_tokens) };
    let prefill = prefill(&mut device, &config, scale, best)?;
    fill_pool(&mut device, prompt)?;
    let mut decode = Vec::new();
    for batch in BATCHES {
        // Of a step with hardly any context: what is more than that is attention's.
        let mut shortest = None;
        for context in CONTEXTS {
            let blocks = (context + 1).div_ceil(shape.kv_block_tokens);
            let too_large = context + 1 > shape.context_tokens || batch * blocks > shape.kv_blocks;
            if too_large || (scale.emulated && batch * context > 1024) {
                continue;
            }
            let seconds = decode_seconds(&mut device, scale, batch, context)?;
            let (first_seconds, first_context) = *shortest.get_or_insert((seconds, context));
            let kv_bytes = batch * (context - first_context) * kv_bytes_of_token(&config);
            let weights = device.weight_bytes() as f64 / seconds / 1e9;
            let attention =
                (context > first_context).then(|| kv_bytes as f64 / (seconds - first_seconds).max(1e-9) / 1e9);
            decode.push(json!({
                "batch": batch, "context": context, "ms": seconds * 1e3, "tokens_per_s": batch as f64 / seconds,
                "weights_gb_per_s": weights, "weights_share_of_copy": weights / best.copy_gb_per_s,
                "attention_gb_per_s": attention,
                "attention_share_of_copy": attention.map(|speed| speed / best.copy_gb_per_s),
            }));
        }
    }
    Ok(json!({
        "model": name, "weight_bytes": device.weight_bytes(), "load_ms": load_ms, "kv_blocks": shape.kv_blocks,
        "prefill": prefill, "decode": decode,
    }))
}

fn prefill(
    device: &mut CudaForward,
    config: &ModelConfig,
    scale: Scale,
    best: Yardsticks,
) -> Result<Vec<Value>, Failure> {
    let shape = device.shape();
    let mut rows = Vec::new();
    for tokens in PREFILL_TOKENS.map(|tokens| if scale.emulated { tokens / 32 } else { tokens }) {
        if tokens > shape.context_tokens || tokens.div_ceil(shape.kv_block_tokens) > shape.kv_blocks {
            continue;
        }
        let ids: Vec<u32> = (0..tokens as u32).map(|i| i * 31 % shape.vocab as u32).collect();
        let mut run = || step(device, &ids, 0, 1).map(drop);
        let seconds = scale.seconds(&mut run, &|| Ok(()))?;
        let tflop_per_s = 2.0 * (tokens * layer_weights(config)) as f64 / seconds / 1e12;
        rows.push(json!({
            "tokens": tokens, "ms": seconds * 1e3, "tokens_per_s": tokens as f64 / seconds, "tflop_per_s": tflop_per_s,
            "share_of_matrix_rate": best.matrix_tflop_per_s.map(|most| tflop_per_s / most),
        }));
    }
    Ok(rows)
}

/// Weights that every token of a prompt is multiplied with: those of the layers. Attention's own products come on top.
fn layer_weights(config: &ModelConfig) -> usize {
    let attention = config.width * config.head_dim * 2 * (config.heads + config.kv_heads);
    config.layers * (attention + 3 * config.width * config.ffn_width)
}

/// Real keys and values in every block of the pool: those of one prompt, again and again.
fn fill_pool(device: &mut CudaForward, prompt: usize) -> Result<(), Failure> {
    let shape = device.shape();
    let ids: Vec<u32> = (0..prompt as u32).map(|i| i * 31 % shape.vocab as u32).collect();
    step(device, &ids, 0, 1)?;
    let filled = prompt / shape.kv_block_tokens;
    let pairs: Vec<(BlockId, BlockId)> =
        (filled..shape.kv_blocks).map(|block| ((block % filled) as BlockId, block as BlockId)).collect();
    Ok(device.copy_blocks(&pairs)?)
}

/// A step of a batch in which all have the same context.
fn decode_seconds(device: &mut CudaForward, scale: Scale, batch: usize, context: usize) -> Result<f64, Failure> {
    let block_tokens = device.shape().kv_block_tokens;
    let blocks = (context + 1).div_ceil(block_tokens);
    let sequence = |index: usize| BatchSequence {
        new_tokens: 1,
        start: context,
        blocks: (index * blocks..(index + 1) * blocks).map(|block| block as BlockId).collect(),
        logits: 1,
        adapter: None,
    };
    let step = Batch { tokens: vec![1; batch], sequences: (0..batch).map(sequence).collect() };
    let mut out = Vec::new();
    let mut run = || -> Result<(), Failure> {
        out.clear();
        Ok(device.forward(&step, &mut out)?)
    };
    scale.seconds(&mut run, &|| Ok(()))
}

/// Keys and values of a token in all layers, in bf16.
fn kv_bytes_of_token(config: &ModelConfig) -> usize {
    config.layers * config.kv_heads * config.head_dim * 2 * 2
}
