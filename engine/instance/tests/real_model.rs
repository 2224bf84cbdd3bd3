//! The engine on real weights: the reference tokens through the hop, resumption bit for bit, and text.

mod common;

use common::{HopStream, TestEngine, cached, reason, request};
use engine_core::{Limits, Sampled, Scheduler, SchedulerConfig, SequenceId, Submission};
use engine_instance::{Compute, EngineOptions};
use engine_runtime::LoadOptions;
use engine_store::Gguf;
use engine_text::TextModel;
use engine_wire::TokenId;
use engine_wire::hop::{FinishReason, GenerateRequest, HEADER_TENANT, HopEvent, TokenLogprobs};
use engine_wire::sampling::Sampling;
use serde::Deserialize;
use std::path::PathBuf;

/// Positions after which streams are cut in the resumption tests.
const CUTS: [usize; 5] = [0, 1, 7, 16, 31];

/// Room for some 270 tokens in f32, of the 450 that the golden cases come to.
const SCARCE_KV_BYTES: u64 = 24 << 20;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt_ids: Vec<TokenId>,
    greedy_ids: Vec<TokenId>,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn golden() -> Vec<Case> {
    let path = root().join("../shared/golden/smollm2_q4_1_dequant_f32_greedy32.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str::<Golden>(&text).expect("the golden file's shape").cases
}

fn checkpoint() -> PathBuf {
    let path = root().join("target/models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(path.exists(), "{} is missing: run `cargo xtask setup`", path.display());
    path
}

async fn engine(compute: Compute, kv_bytes: u64) -> TestEngine {
    let change = move |options: &mut EngineOptions| {
        options.model = checkpoint();
        options.compute = compute;
        options.kv_bytes = Some(kv_bytes);
    };
    TestEngine::start_checkpoint(change).await
}

/// 32 greedy tokens after a prompt, in the golden file's terms: it goes on after the end of sequence.
fn greedy(prompt: &[TokenId]) -> GenerateRequest {
    request(prompt, 32)
}

#[tokio::test]
async fn the_reference_tokens_come_out_of_the_hop() {
    // All at once, and more than the KV cache holds: neither company nor preemption may change a token.
    let engine = engine(Compute::F32, SCARCE_KV_BYTES).await;
    let cases = golden();
    let mut streams = Vec::new();
    for case in &cases {
        streams.push(engine.generate(&greedy(&case.prompt_ids)).await);
    }
    for (case, stream) in cases.iter().zip(streams) {
        let (tokens, end) = stream.collect().await;
        assert_eq!(tokens, case.greedy_ids);
        assert_eq!(reason(&end), Some(FinishReason::Length));
    }
}

#[tokio::test]
async fn a_stream_cut_anywhere_goes_on_bit_for_bit() {
    let engine = engine(Compute::Fast, 64 << 20).await;
    let case = &golden()[0];
    let seeded = Sampling { temperature: 0.8, top_p: 0.95, top_k: 40, min_p: 0.0, seed: 42, ..Sampling::default() };
    let penalised = Sampling {
        frequency_penalty: 0.6,
        presence_penalty: 0.3,
        repetition_penalty: 1.15,
        logit_bias: vec![(28, -100.0), (30, 1.5)],
        ..seeded.clone()
    };
    for sampling in [greedy(&[1]).sampling, seeded, penalised] {
        let mut undisturbed = greedy(&case.prompt_ids);
        undisturbed.sampling = sampling;
        let (expected, _) = engine.generate(&undisturbed).await.collect().await;
        assert_eq!(expected.len(), 32);
        for cut in CUTS {
            let resumed = GenerateRequest { emitted: expected[..cut].to_vec(), ..undisturbed.clone() };
            let (tokens, end) = engine.generate(&resumed).await.collect().await;
            assert_eq!(tokens, expected[cut..], "cut after {cut}, {:?}", undisturbed.sampling);
            assert_eq!(reason(&end), Some(FinishReason::Length));
        }
    }
}

/// Tokens of a request with the log-probabilities that came beside them.
async fn scored(engine: &TestEngine, request: &GenerateRequest) -> Vec<(TokenId, TokenLogprobs)> {
    let (mut stream, mut out) = (engine.generate(request).await, Vec::new());
    while let Some(event) = stream.next().await {
        match event {
            HopEvent::Scored { tokens, logprobs } => out.extend(tokens.into_iter().zip(logprobs)),
            HopEvent::Finished { .. } => {}
            other => panic!("without log-probabilities: {other:?}"),
        }
    }
    out
}

#[tokio::test]
async fn log_probabilities_are_the_models_own() {
    let engine = engine(Compute::Fast, 64 << 20).await;
    let case = &golden()[0];
    let mut request = greedy(&case.prompt_ids);
    let (tokens, _) = engine.generate(&request).await.collect().await;
    request.top_logprobs = Some(20);
    let plain = scored(&engine, &request).await;
    assert_eq!(plain.iter().map(|(token, _)| *token).collect::<Vec<_>>(), tokens, "asking changes no token");
    for (token, scores) in &plain {
        assert_eq!((scores.top.len(), scores.top[0]), (20, (*token, scores.logprob)), "greedy takes the likeliest");
        assert!(scores.top.is_sorted_by(|a, b| a.1 >= b.1), "{:?}", scores.top);
        let sum: f64 = scores.top.iter().map(|(_, logprob)| f64::from(*logprob).exp()).sum();
        assert!(sum > 0.0 && sum <= 1.0 + 1e-5, "{sum}");
    }

    // What is done to the logits for the draw does not show in them: nor does where the stream was resumed.
    request.sampling =
        Sampling { temperature: 1.5, seed: 9, logit_bias: vec![(tokens[0], -100.0)], ..Sampling::default() };
    let drawn = scored(&engine, &request).await;
    assert_ne!(drawn[0].0, tokens[0]);
    assert_eq!(drawn[0].1.top, plain[0].1.top);
    request.emitted = drawn[..5].iter().map(|(token, _)| *token).collect();
    assert_eq!(scored(&engine, &request).await, drawn[5..]);
}

#[tokio::test]
async fn a_chat_has_several_choices_with_log_probabilities() {
    let engine = engine(Compute::Fast, 64 << 20).await;
    let mut body = serde_json::json!({
        "model": common::MODEL,
        "messages": [{"role": "user", "content": "Name a colour."}],
        "temperature": 1.2, "seed": 11, "max_tokens": 12, "n": 3, "logprobs": true, "top_logprobs": 2,
    });
    let answer = engine.post("/v1/chat/completions", &body).await;
    let choices = answer["choices"].as_array().expect("choices").clone();
    let text = |choice: &serde_json::Value| choice["message"]["content"].as_str().expect("text").to_string();
    assert_eq!(choices.iter().map(|choice| choice["index"].as_u64()).collect::<Vec<_>>(), [Some(0), Some(1), Some(2)]);
    assert_ne!(text(&choices[0]), text(&choices[1]), "each has its own draws");
    for choice in &choices {
        let entries = choice["logprobs"]["content"].as_array().expect("entries");
        let bytes = entries.iter().flat_map(|entry| entry["bytes"].as_array().expect("bytes"));
        let bytes: Vec<u8> = bytes.map(|byte| byte.as_u64().expect("a byte") as u8).collect();
        assert_eq!(String::from_utf8_lossy(&bytes), text(choice), "an entry for each token of the text");
        assert!(entries.iter().all(|entry| entry["top_logprobs"].as_array().is_some_and(|top| top.len() == 2)));
    }
    // The first choice is what the request would get alone, the prompt is counted once and every output token too.
    body["n"] = 1.into();
    let alone = engine.post("/v1/chat/completions", &body).await;
    assert_eq!(text(&alone["choices"][0]), text(&choices[0]));
    assert_eq!(alone["usage"]["prompt_tokens"], answer["usage"]["prompt_tokens"]);
    let telemetry = engine.until(|telemetry| telemetry.running == 0 && telemetry.waiting == 0).await;
    let produced: u64 = telemetry.finished.iter().map(|request| u64::from(request.output_tokens)).sum();
    let counted = |answer: &serde_json::Value| answer["usage"]["completion_tokens"].as_u64().expect("a count");
    assert_eq!((telemetry.requests_total, produced), (4, counted(&answer) + counted(&alone)));
}

#[tokio::test]
async fn chat_speaks_text_and_ends_where_the_model_ends() {
    let engine = engine(Compute::Fast, 64 << 20).await;
    let body = serde_json::json!({
        "model": common::MODEL,
        "messages": [{"role": "user", "content": "What is the capital of France? Answer in one word."}],
        "temperature": 0,
        "max_tokens": 48,
    });
    let answer = engine.post("/v1/chat/completions", &body).await;
    let content = answer["choices"][0]["message"]["content"].as_str().expect("text").to_string();
    assert!(content.contains("Paris"), "{answer}");
    assert!(!content.contains("<|im_end|>"), "{content}");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
}

#[test]
fn both_sides_agree_on_the_tokens_that_end_an_output() {
    let gguf = Gguf::open(checkpoint()).expect("a checkpoint");
    let text = TextModel::from_gguf(&gguf).expect("a tokenizer");
    assert_eq!(engine_instance::end_tokens(&gguf).expect("metadata"), text.eos_ids());
}

#[tokio::test]
async fn a_cut_off_checkpoint_and_a_tiny_cache_are_said_in_one_line() {
    let dir = tempfile::tempdir().expect("a folder");
    let check = async |options: EngineOptions, expected: &str| {
        let error = engine_instance::run(options).await.expect_err("it cannot start");
        let line = error.to_string();
        assert!(error.exit_code() == 2 && line.contains(expected) && !line.contains('\n'), "{line}");
    };
    let whole = std::fs::read(checkpoint()).expect("readable");
    let mut cut = common::options(dir.path());
    std::fs::write(&cut.model, &whole[..whole.len() / 2]).expect("writable");
    cut.kv_bytes = None;
    check(cut, "tensor").await;

    let mut tiny = common::options(dir.path());
    tiny.model = checkpoint();
    tiny.kv_bytes = Some(1000);
    check(tiny, "kv").await;
}

/// As many tokens as wanted, from the golden prompts.
fn text(count: usize, salt: usize) -> Vec<TokenId> {
    let pool: Vec<TokenId> = golden().into_iter().flat_map(|case| case.prompt_ids).collect();
    (0..count).map(|index| pool[(index * 7 + salt) % pool.len()]).collect()
}

#[tokio::test]
async fn a_shared_prefix_is_computed_once_and_changes_no_token() {
    let engine = engine(Compute::Fast, 192 << 20).await;
    let seeded = Sampling { temperature: 0.8, top_p: 0.95, top_k: 40, seed: 7, ..Sampling::default() };
    let prompts = [11, 23].map(|salt| [text(1000, 0), text(20, salt)].concat());
    let mut before = 0;
    let mut ask = async |tenant: &str, prompt: &[TokenId], sampling: Option<&Sampling>| {
        let mut request = request(prompt, 16);
        request.sampling = sampling.cloned().unwrap_or(request.sampling);
        let body = serde_json::to_vec(&request).expect("serializable");
        let (tokens, end) = HopStream::open(engine.port, body, &[(HEADER_TENANT, tenant)]).await.collect().await;
        let after = engine.telemetry().await.prefill_tokens_total;
        let computed = after - std::mem::replace(&mut before, after);
        let cached = cached(&end).expect("it finished");
        assert_eq!(computed + u64::from(cached), prompt.len() as u64);
        (tokens, computed)
    };
    let (first, computed) = ask("one", &prompts[0], None).await;
    assert_eq!(computed, 1020);
    let (again, computed) = ask("one", &prompts[0], None).await;
    assert!(computed <= 16, "the same prompt: {computed} tokens are computed");
    assert_eq!(again, first);
    let (hit, computed) = ask("one", &prompts[1], None).await;
    assert!((20..=36).contains(&computed), "another end of 20 tokens: {computed} are computed");
    let (seeded_hit, computed) = ask("one", &prompts[1], Some(&seeded)).await;
    assert!(computed <= 16);
    // Another tenant shares nothing, and so tells what comes out without the cache.
    let (miss, computed) = ask("two", &prompts[1], Some(&seeded)).await;
    assert_eq!((miss, computed), (seeded_hit, 1020));
    let (miss, _) = ask("three", &prompts[1], None).await;
    assert_eq!(miss, hit);
}

#[test]
fn logits_are_the_same_bits_with_and_without_a_hit() {
    for compute in [engine_runtime::Compute::Fast, engine_runtime::Compute::F32] {
        let options = LoadOptions { compute, threads: 2, kv_bytes: 64 << 20, ..LoadOptions::default() };
        let gguf = Gguf::open(checkpoint()).expect("a checkpoint");
        let mut forward = engine_runtime::load(&gguf, options).expect("it loads");
        // Small steps, so that the chunks of a hit and of a miss differ.
        let config = SchedulerConfig { step_tokens: 40, ..SchedulerConfig::default() };
        let mut scheduler = Scheduler::new(forward.shape(), config).expect("room");
        let mut logits = |id: u64, tenant: &str, prompt: &[TokenId]| {
            let limits =
                Limits { max_tokens: 2, min_tokens: 0, given_tokens: 0, ignore_eos: true, stop_token_ids: Vec::new() };
            let (id, prompt) = (SequenceId(id), prompt.to_vec());
            let submission = Submission {
                id,
                tenant: tenant.into(),
                adapter: None,
                prompt,
                emitted: Vec::new(),
                limits,
                priority: 0,
                deadline_ns: 0,
                speculate: false,
            };
            scheduler.submit(submission).expect("room");
            let (mut bits, mut cached, mut out) = (Vec::new(), 0, Vec::new());
            while let Some(step) = scheduler.schedule() {
                cached += step.admitted.iter().map(|admitted| admitted.cached_tokens).sum::<usize>();
                forward.forward(&step.batch, &mut out).expect("it computes");
                bits.extend(step.rows.iter().flat_map(|_| &out).map(|logit| logit.to_bits()));
                scheduler.complete(step.id, &vec![Sampled::Token(17); step.rows.len()]).expect("in flight");
            }
            (bits, cached)
        };
        let long = text(150, 0);
        logits(0, "one", &long);
        for (n, length) in [(1, 150), (2, 97), (3, 64), (4, 33)] {
            let (hit, cached) = logits(n, "one", &long[..length]);
            let (miss, none) = logits(n + 10, &format!("tenant {n}"), &long[..length]);
            assert!(cached + 16 >= length && none == 0, "{cached} of {length}, {none} without");
            assert!(hit == miss, "{compute:?}, {length} tokens");
        }
    }
}

#[tokio::test]
async fn usage_tells_cached_tokens() {
    let engine = engine(Compute::Fast, 64 << 20).await;
    let body = serde_json::json!({"model": common::MODEL, "prompt": text(70, 5), "temperature": 0, "max_tokens": 4});
    let check = async |expected: u64| {
        let answer = engine.post("/v1/completions", &body).await;
        assert_eq!(answer["usage"]["prompt_tokens"], 70, "{answer}");
        assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], expected, "{answer}");
        answer["choices"][0]["text"].clone()
    };
    let first = check(0).await;
    assert_eq!(check(64).await, first);
}
