//! Requests that benchmarks send. Prompts are random token ids, fresh each time, so that no prefix cache
//! answers for the engine.

use crate::sse;
use anyhow::Result;
use serde_json::{Value, json};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::SocketAddr;

/// Ordinary tokens of the models measured lie between these ids; special ones are below.
const FIRST_TOKEN_ID: u64 = 1_000;
const TOKEN_IDS: u64 = 40_000;

/// Random token ids.
pub fn random_prompt(tokens: usize) -> Vec<u64> {
    // A fresh RandomState is seeded by the system; its hash of the position is random enough for a prompt.
    let random = RandomState::new();
    let draw = |position: usize| {
        let mut hasher = random.build_hasher();
        hasher.write_usize(position);
        FIRST_TOKEN_ID + hasher.finish() % TOKEN_IDS
    };
    (0..tokens).map(draw).collect()
}

/// A completion of one token, as both servers take it.
pub fn one_token(model: &str, prompt_tokens: usize, stream: bool) -> Value {
    json!({"model": model, "prompt": random_prompt(prompt_tokens), "max_tokens": 1, "temperature": 0, "stream": stream})
}

/// Time to first token of a fresh streamed prompt, ms, connecting included.
pub fn ttft_ms(addr: SocketAddr, model: &str, prompt_tokens: usize) -> Result<f64> {
    let body = one_token(model, prompt_tokens, true);
    let stream = sse::stream(addr, "/v1/completions", &body, &mut |_| {})?;
    Ok(stream.times.first_token.as_secs_f64() * 1e3)
}

/// One stream of exactly `output` tokens, and how it went.
pub struct Streamed {
    pub ttft_s: f64,
    /// From the first token to the last.
    pub decode_s: f64,
    pub output: usize,
}

/// Streams `output` tokens after a fresh prompt of `prompt_tokens`.
pub fn stream(addr: SocketAddr, model: &str, prompt_tokens: usize, output: usize) -> Result<Streamed> {
    stream_of(addr, model, &random_prompt(prompt_tokens), output)
}

/// Streams `output` tokens after a prompt.
pub fn stream_of(addr: SocketAddr, model: &str, prompt: &[u64], output: usize) -> Result<Streamed> {
    let body = json!({
        "model": model, "prompt": prompt, "max_tokens": output, "temperature": 0,
        "stream": true, "ignore_eos": true, "cache_prompt": false,
    });
    let times = sse::stream(addr, "/v1/completions", &body, &mut |_| {})?.times;
    let ttft_s = times.first_token.as_secs_f64();
    Ok(Streamed { ttft_s, decode_s: times.last_byte.as_secs_f64() - ttft_s, output })
}

/// Median over `count` requests, one after the other.
pub fn warm_ttft_ms(addr: SocketAddr, model: &str, prompt_tokens: usize, count: usize) -> Result<f64> {
    let samples: Result<Vec<f64>> = (0..count).map(|_| ttft_ms(addr, model, prompt_tokens)).collect();
    Ok(super::report::median(&samples?))
}
