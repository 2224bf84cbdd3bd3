//! An engine of an encoder: vectors through the hop and the API, company, refusals, cancellation, drain.

mod common;

use common::{HopStream, MODEL, PATIENCE, TestEngine, request};
use engine_core::{Encode, EncodeBatch, EncodeShape, ForwardError, TokenId};
use engine_instance::{Came, EngineError, EngineOptions, Loaded, LoadedEncoder};
use engine_wire::control::{Command, EngineState, Outcome, Reply};
use engine_wire::hop::{EMBED_PATH, EmbedRequest, Embedded, HEADER_DEADLINE_MS, HEADER_DIMENSIONS};
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    input_ids: Vec<TokenId>,
    embedding: Vec<f64>,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn golden() -> Vec<Case> {
    let path = root().join("../shared/golden/minilm_l6_v2_embeddings_f32.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str::<Golden>(&text).expect("the golden file's shape").cases
}

async fn minilm() -> TestEngine {
    let path = root().join("target/models/minilm");
    assert!(path.exists(), "{} is missing: run `cargo xtask setup`", path.display());
    TestEngine::start_checkpoint(|options: &mut EngineOptions| options.model = path).await
}

/// A device that needs this long for a step. The vector of a text is its length and its first token; a text that
/// begins with `POISON` has none.
struct Slow(Duration);

const POISON: TokenId = 9;

impl Encode for Slow {
    fn shape(&self) -> EncodeShape {
        EncodeShape { vocab: 10, dimensions: 2, context_tokens: 100 }
    }

    fn encode(&mut self, batch: &EncodeBatch, out: &mut Vec<f32>) -> Result<(), ForwardError> {
        std::thread::sleep(self.0);
        out.clear();
        let mut tokens = batch.tokens.as_slice();
        for length in &batch.lengths {
            let first = tokens[0];
            out.extend([*length as f32, if first == POISON { f32::NAN } else { first as f32 }]);
            tokens = &tokens[*length..];
        }
        Ok(())
    }
}

async fn slow(pace: Duration, change: impl FnOnce(&mut EngineOptions)) -> TestEngine {
    let load = move || Ok(Loaded::from(LoadedEncoder { device: Box::new(Slow(pace)), came: Came::default() }));
    let engine = TestEngine::start_with(change, load).await;
    engine.until(|telemetry| telemetry.state == EngineState::Ready).await;
    engine
}

async fn ask(port: u16, texts: Vec<Vec<TokenId>>, headers: &[(&str, &str)]) -> HopStream {
    let body = serde_json::to_vec(&EmbedRequest { model: MODEL.into(), texts }).expect("serializable");
    HopStream::open_at(port, EMBED_PATH, body, headers).await
}

async fn vectors(port: u16, texts: Vec<Vec<TokenId>>) -> Embedded {
    let count = texts.len();
    let answer = ask(port, texts, &[]).await;
    let dimensions = answer.headers.get(HEADER_DIMENSIONS).and_then(|value| value.to_str().ok()?.parse().ok());
    let (status, bytes) = (answer.status, answer.bytes().await);
    let dimensions = dimensions.unwrap_or_else(|| panic!("{status}: {}", String::from_utf8_lossy(&bytes)));
    Embedded::from_bytes(dimensions, count, &bytes).expect("a vector for each text")
}

#[tokio::test]
async fn reference_vectors_come_out_of_the_hop_and_of_the_api() {
    let (engine, cases) = (minilm().await, golden());
    let texts: Vec<Vec<TokenId>> = cases.iter().map(|case| case.input_ids.clone()).collect();
    let hop = vectors(engine.port, texts.clone()).await;
    assert_eq!(hop.dimensions, 384);
    let input: Vec<&str> = cases.iter().map(|case| case.text.as_str()).collect();
    let body = json!({"model": MODEL, "input": input, "truncate_prompt_tokens": -1});
    let answer = engine.post("/v1/embeddings", &body).await;
    for (index, (case, vector)) in cases.iter().zip(hop.numbers.chunks_exact(384)).enumerate() {
        let api: Vec<f32> = serde_json::from_value(answer["data"][index]["embedding"].clone()).expect("numbers");
        assert_eq!(api, vector, "the API's tokens are the references': {:?}", case.text);
        let dot: f64 = vector.iter().zip(&case.embedding).map(|(a, b)| f64::from(*a) * b).sum();
        let length = case.embedding.iter().map(|x| x * x).sum::<f64>().sqrt();
        assert!(dot / length > 0.9999, "{:?}: cosine {}", case.text, dot / length);
    }
    let tokens: usize = texts.iter().map(Vec::len).sum();
    assert_eq!(answer["usage"], json!({"prompt_tokens": tokens, "total_tokens": tokens}));
    let models = HopStream::open_at(engine.port, "/v1/embeddings", b"{}".to_vec(), &[]).await;
    assert_eq!(models.status, 400);
    let telemetry = engine.telemetry().await;
    assert_eq!((telemetry.encode_tokens_total, telemetry.requests_total), (2 * tokens as u64, 2));
    assert_eq!((telemetry.prefill_tokens_total, telemetry.running, telemetry.waiting), (0, 0, 0));
    assert!(telemetry.busy_ns_total > 0 && telemetry.phases.first_step_ms.is_some());
}

#[tokio::test]
async fn vectors_do_not_depend_on_company_in_the_engine() {
    let engine = minilm().await;
    let texts: Vec<Vec<TokenId>> = golden().into_iter().map(|case| case.input_ids).collect();
    let mut alone = Vec::new();
    for text in &texts {
        alone.push(vectors(engine.port, vec![text.clone()]).await);
    }
    // Several requests at once, of many texts each, so that steps mix them.
    let port = engine.port;
    let many: Vec<Vec<TokenId>> = texts.iter().cycle().take(40).cloned().collect();
    let tasks: Vec<_> = (0..4).map(|_| tokio::spawn(vectors(port, many.clone()))).collect();
    for task in tasks {
        let together = task.await.expect("vectors");
        for (index, vector) in together.numbers.chunks_exact(together.dimensions).enumerate() {
            let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(vector), bits(&alone[index % texts.len()].numbers));
        }
    }
}

#[tokio::test]
async fn what_cannot_be_served_is_refused() {
    let engine = slow(Duration::ZERO, |_| {}).await;
    let check = async |texts: Vec<Vec<TokenId>>, status: u16, expected: &str| {
        let answer = ask(engine.port, texts, &[]).await;
        let (got, message) = (answer.status, answer.error_message().await);
        assert!(got == status && message.contains(expected), "{got} {message}");
    };
    check(vec![], 400, "at least one").await;
    check(vec![vec![1], vec![]], 400, "texts[1] is empty").await;
    check(vec![vec![1; 101]], 400, "maximum context length is 100 tokens, but 'texts[0]' has 101").await;
    check(vec![vec![10]], 400, "vocabulary has 10 tokens").await;
    check(vec![vec![1]; 16_385], 503, "16384 can be inside").await;
    check(vec![vec![1], vec![POISON], vec![2]], 500, "could not compute a vector").await;
    let other =
        serde_json::to_vec(&EmbedRequest { model: "other".into(), texts: vec![vec![1]] }).expect("serializable");
    assert_eq!(HopStream::open_at(engine.port, EMBED_PATH, other, &[]).await.status, 404);
    let garbage = HopStream::open_at(engine.port, EMBED_PATH, b"{\"model\":\"m\"}".to_vec(), &[]).await;
    assert!(garbage.error_message().await.contains("not an embed request"));
    // The engine goes on, and a neighbour of a text that failed is unharmed.
    let port = engine.port;
    let poisoned = tokio::spawn(async move { ask(port, vec![vec![POISON]; 50], &[]).await.status });
    let good = vectors(port, vec![vec![3, 4], vec![5]]).await;
    assert_eq!(good.numbers, [2.0, 3.0, 1.0, 5.0]);
    assert_eq!(poisoned.await.expect("an answer"), 500);
    // What a generation is told, and what an embedding is told by a decoder.
    let generation = engine.generate(&request(&[1], 1)).await;
    let (status, message) = (generation.status, generation.error_message().await);
    assert!(status == 400 && message.contains("use /v1/embeddings"), "{status} {message}");
    let decoder = TestEngine::start(Duration::ZERO, |_| {}).await;
    let answer = ask(decoder.port, vec![vec![1]], &[]).await;
    let (status, message) = (answer.status, answer.error_message().await);
    assert!(status == 400 && message.contains("generates text"), "{status} {message}");
}

#[tokio::test]
async fn requests_that_came_while_it_loaded_are_answered_or_refused() {
    let (release, gate) = std::sync::mpsc::channel::<()>();
    let load = move || -> Result<Loaded, EngineError> {
        gate.recv_timeout(PATIENCE).expect("the test releases it");
        Ok(LoadedEncoder { device: Box::new(Slow(Duration::ZERO)), came: Came::default() }.into())
    };
    let engine = TestEngine::start_with(|_| {}, load).await;
    let port = engine.port;
    let good = tokio::spawn(vectors(port, vec![vec![1, 2]]));
    let long = tokio::spawn(async move { ask(port, vec![vec![1; 101]], &[]).await.status });
    let generation = serde_json::to_vec(&request(&[1], 1)).expect("serializable");
    let mut stream = HopStream::open(port, generation, &[]).await;
    engine.until(|telemetry| telemetry.waiting == 3).await;
    release.send(()).expect("it loads");
    assert_eq!(good.await.expect("vectors").numbers, [2.0, 1.0]);
    assert_eq!(long.await.expect("an answer"), 400);
    let failed = stream.next().await.expect("an event");
    assert!(format!("{failed:?}").contains("use /v1/embeddings"), "{failed:?}");
}

#[tokio::test]
async fn clients_that_leave_and_deadlines_end_the_work() {
    let engine = slow(Duration::from_millis(20), |_| {}).await;
    // Each step holds five of these, so this would take a long time.
    let large = || vec![vec![1; 100]; 10_000];
    let port = engine.port;
    let leaving = tokio::spawn(async move { ask(port, large(), &[]).await.status });
    engine.until(|telemetry| telemetry.running == 1).await;
    // A small one is served meanwhile.
    assert_eq!(vectors(port, vec![vec![7]]).await.numbers, [1.0, 7.0]);
    leaving.abort();
    let telemetry = engine.until(|telemetry| telemetry.running == 0).await;
    assert_eq!(telemetry.cancelled_total, 1);
    let answer = ask(port, large(), &[(HEADER_DEADLINE_MS, "100")]).await;
    let (status, message) = (answer.status, answer.error_message().await);
    assert!(status == 504 && message.contains("deadline of 100 ms"), "{status} {message}");
}

#[tokio::test]
async fn a_drain_finishes_what_is_in_hand_and_takes_nothing_new() {
    let engine = slow(Duration::from_millis(20), |_| {}).await;
    let port = engine.port;
    let in_hand = tokio::spawn(vectors(port, vec![vec![1; 100]; 50]));
    engine.until(|telemetry| telemetry.running == 1).await;
    assert_eq!(engine.command(&Command::Drain { epoch: 1, deadline_ms: 60_000 }).await, Reply::Done);
    assert_eq!(ask(port, vec![vec![1]], &[]).await.status, 503);
    assert_eq!(in_hand.await.expect("vectors").numbers.len(), 100);
    engine.ended().await.expect("a good end");
}

#[tokio::test]
async fn the_queue_is_bounded_and_ended_requests_are_reported() {
    let engine = slow(Duration::from_millis(1), |options| options.max_queue = 1).await;
    let port = engine.port;
    // More at once than there are places: those beyond are told so.
    let asks: Vec<_> =
        (0..80).map(|_| tokio::spawn(async move { ask(port, vec![vec![1; 100]; 40], &[]).await.status })).collect();
    let mut statuses = Vec::new();
    for ask in asks {
        statuses.push(ask.await.expect("an answer"));
    }
    assert!(statuses.iter().all(|status| matches!(status, 200 | 429)), "{statuses:?}");
    assert!(statuses.contains(&200) && statuses.contains(&429), "{statuses:?}");
    let served = statuses.iter().filter(|status| **status == 200).count();
    let telemetry = engine.telemetry().await;
    assert_eq!(telemetry.encode_tokens_total, served as u64 * 4000);
    let finished = engine.telemetry().await;
    assert_eq!(finished.requests_total, served as u64);
    assert!(
        telemetry.finished.iter().all(|record| record.outcome == Outcome::Finished && record.prompt_tokens == 4000)
    );
    let models: Value = json!({"model": MODEL, "input": "x"});
    let answer = engine.post("/v1/embeddings", &models).await;
    assert!(answer["error"]["message"].as_str().is_some(), "this engine's checkpoint has no tokenizer: {answer}");
}
