//! Perplexity of a fixed text (the licence in the repository's root), beside llama.cpp's own tool on the same file:
//! what the fast kernels lose, in one figure.
//!
//! As that tool counts: chunks of 512 tokens, each by itself, with the model's beginning-of-text token in
//! place of the first where the model wants one, and only the second half of each is scored.

use super::process::{Engine, NAME, PLAIN};
use super::subject::Subject;
use super::{Bound, add};
use crate::bench::llama;
use crate::bench::report::{Report, Samples};
use crate::http;
use crate::layout;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;

const CHUNK_TOKENS: usize = 512;
/// The first token whose probability counts.
const SCORED_FROM: usize = CHUNK_TOKENS / 2 + 1;
/// Ours may be this much above the peer's.
const RATIO_MOST: f64 = 1.005;

pub fn measure(subject: &Subject, model: &Path, report: &mut Report) -> Result<()> {
    eprintln!("    {}: perplexity", subject.name);
    let text_path = layout::root().join("LICENSE");
    let peer = llama::perplexity(model, &text_path, CHUNK_TOKENS)?;
    let engine = Engine::start(model, PLAIN)?;
    let ours = perplexity(engine.addr, &std::fs::read_to_string(&text_path)?)?;
    let samples = Samples { ours: vec![ours], peer: vec![peer] };
    add(report, format!("{}: perplexity", subject.name), "", &samples, Bound::AtMost(RATIO_MOST), None);
    Ok(())
}

fn perplexity(addr: SocketAddr, text: &str) -> Result<f64> {
    let tokens = tokenize(addr, text)?;
    let begins = beginning(addr)?;
    let tokens = tokens.strip_prefix(begins.as_slice()).unwrap_or(&tokens);
    // The peer takes the beginning as the text's first token, then cuts.
    let tokens = [begins.as_slice(), tokens].concat();
    let (mut sum, mut count) = (0.0, 0);
    for chunk in tokens.chunks_exact(CHUNK_TOKENS) {
        let mut chunk = chunk.to_vec();
        chunk[..begins.len()].copy_from_slice(&begins);
        let scores = logprobs(addr, &chunk)?;
        ensure!(scores.len() == chunk.len(), "{} scores for {} tokens", scores.len(), chunk.len());
        for score in &scores[SCORED_FROM..] {
            sum -= score.context("a token of the prompt has no log-probability")?;
            count += 1;
        }
    }
    ensure!(count > 0, "the text is shorter than {CHUNK_TOKENS} tokens");
    Ok((sum / f64::from(count)).exp())
}

/// The token that the model wants at the beginning of a text; empty where it wants none.
fn beginning(addr: SocketAddr) -> Result<Vec<u64>> {
    tokenize(addr, "")
}

fn tokenize(addr: SocketAddr, text: &str) -> Result<Vec<u64>> {
    let answer = post(addr, "/tokenize", &json!({"model": NAME, "prompt": text, "add_special_tokens": true}))?;
    serde_json::from_value(answer["tokens"].clone()).context("/tokenize answered no tokens")
}

/// Log-probability of each token of a prompt; none for the first.
fn logprobs(addr: SocketAddr, prompt: &[u64]) -> Result<Vec<Option<f64>>> {
    let body = json!({"model": NAME, "prompt": prompt, "max_tokens": 0, "echo": true, "logprobs": 0});
    let answer = post(addr, "/v1/completions", &body)?;
    serde_json::from_value(answer["choices"][0]["logprobs"]["token_logprobs"].clone())
        .context("the completion came without log-probabilities")
}

fn post(addr: SocketAddr, path: &str, body: &Value) -> Result<Value> {
    http::call(addr, "POST", path, body.to_string().as_bytes())?.json()
}
