//! The hop of an engine over a small device: tokens, resumption, refusals, cancellation, slow clients.

mod common;

use common::device::{EOS, POISON, reference};
use common::{HopStream, TestEngine, loaded, reason, request};
use engine_wire::TokenId;
use engine_wire::control::{EngineState, Outcome};
use engine_wire::hop::{FinishReason, GenerateRequest, HEADER_DEADLINE_MS, HEADER_REQUEST_ID, HopEvent};
use engine_wire::sampling::Sampling;
use std::time::Duration;

const SLOW: Duration = Duration::from_millis(5);

fn seeded(seed: u64) -> Sampling {
    Sampling { temperature: 0.9, top_p: 0.95, top_k: 20, min_p: 0.01, seed, ..Sampling::default() }
}

/// Everything that changes logits before the draw.
fn penalised(temperature: f32) -> Sampling {
    Sampling {
        temperature,
        seed: 3,
        frequency_penalty: 0.9,
        presence_penalty: 0.4,
        repetition_penalty: 1.3,
        logit_bias: vec![(4, -100.0), (6, 2.0)],
        ..Sampling::default()
    }
}

#[tokio::test]
async fn a_stream_cut_anywhere_goes_on_with_the_same_tokens() {
    let engine = TestEngine::start(Duration::ZERO, |_| {}).await;
    let prompt = [5, 9, 4, 30, 7, 7, 1];
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let plain = reference(&prompt, &greedy, 24);
    assert_ne!(reference(&prompt, &penalised(0.0), 24), plain, "penalties matter here");
    for sampling in [greedy, seeded(1), seeded(u64::MAX), penalised(0.0), penalised(0.9)] {
        let expected = reference(&prompt, &sampling, 24);
        for cut in 0..=24 {
            let mut request = request(&prompt, 24);
            request.sampling = sampling.clone();
            request.emitted = expected[..cut].to_vec();
            let (tokens, end) = engine.generate(&request).await.collect().await;
            assert_eq!(tokens, expected[cut..], "cut after {cut}, {sampling:?}");
            assert_eq!(reason(&end), Some(FinishReason::Length));
        }
    }
}

#[tokio::test]
async fn output_does_not_depend_on_company() {
    let engine = TestEngine::start(Duration::ZERO, |_| {}).await;
    // More tokens than the pool of 128 holds, so that some are preempted.
    let requests: Vec<GenerateRequest> = (0..12u32)
        .map(|n| {
            let mut request = request(&[n, n + 3, 2 * n], 30);
            request.sampling = seeded(u64::from(n));
            request
        })
        .collect();
    let mut streams = Vec::new();
    for request in &requests {
        streams.push(engine.generate(request).await);
    }
    for (request, stream) in requests.iter().zip(streams) {
        let (tokens, end) = stream.collect().await;
        assert_eq!(tokens, reference(&request.prompt, &request.sampling, 30));
        assert_eq!(reason(&end), Some(FinishReason::Length));
    }
    let telemetry = engine.until(|telemetry| telemetry.running == 0).await;
    assert_eq!((telemetry.kv_blocks_used, telemetry.waiting, telemetry.requests_total), (0, 0, 12));
}

#[tokio::test]
async fn ends() {
    let engine = TestEngine::start(Duration::ZERO, |_| {}).await;
    // A prompt whose greedy continuation has the end-of-sequence token within reach, but not at once.
    let sampling = request(&[0], 1).sampling;
    let (prompt, expected, at) = (0..32)
        .find_map(|first| {
            let prompt = vec![first, 11];
            let expected = reference(&prompt, &sampling, 40);
            let at = expected.iter().position(|token| *token == EOS)?;
            (at > 2 && first != POISON).then_some((prompt, expected, at))
        })
        .expect("such a prompt");

    let mut natural = request(&prompt, 40);
    natural.stop.ignore_eos = false;
    let (tokens, end) = engine.generate(&natural).await.collect().await;
    assert_eq!((tokens.as_slice(), reason(&end)), (&expected[..=at], Some(FinishReason::Stop)));

    let mut ended_elsewhere = natural.clone();
    ended_elsewhere.emitted = expected[..=at].to_vec();
    let (tokens, end) = engine.generate(&ended_elsewhere).await.collect().await;
    assert_eq!((tokens.len(), reason(&end)), (0, Some(FinishReason::Stop)));

    let mut stop_token = request(&prompt, 40);
    stop_token.stop.stop_token_ids = vec![expected[1]];
    let (tokens, end) = engine.generate(&stop_token).await.collect().await;
    assert!(tokens.len() <= 2 && tokens.last() == Some(&expected[1]));
    assert_eq!(reason(&end), Some(FinishReason::Stop));

    let mut at_least = natural.clone();
    at_least.stop.min_tokens = at as u32 + 1;
    let (tokens, _) = engine.generate(&at_least).await.collect().await;
    assert_eq!(tokens[..at], expected[..at]);
    assert!(tokens.len() > at + 1 && tokens[at] != EOS, "the end is not drawn before min_tokens: {tokens:?}");
}

#[tokio::test]
async fn refusals_before_the_first_token() {
    let engine = TestEngine::start(Duration::ZERO, |_| {}).await;
    let check = async |body: Vec<u8>, status: u16, expected: &str| {
        let stream = HopStream::open(engine.port, body, &[]).await;
        let (got, message) = (stream.status, stream.error_message().await);
        assert!(got == status && message.contains(expected), "{got} {message}");
    };
    let changed = |change: &dyn Fn(&mut GenerateRequest)| {
        let mut request = request(&[1, 2, 3], 8);
        change(&mut request);
        serde_json::to_vec(&request).expect("serializable")
    };
    check(b"{".to_vec(), 400, "not a generate request").await;
    check(b"\xff\xfe".to_vec(), 400, "not a generate request").await;
    check(br#"{"model":"digest","prompt":[1],"colour":1}"#.to_vec(), 400, "unknown field `colour`").await;
    check(br#"{"model":"digest","prompt":[-1]}"#.to_vec(), 400, "-1").await;
    check(changed(&|r| r.model = "other".into()), 404, "`other` does not exist").await;
    check(changed(&|r| r.prompt.clear()), 400, "empty").await;
    check(changed(&|r| r.prompt[2] = 32), 400, "prompt[2] is 32").await;
    check(changed(&|r| r.stop.max_tokens = 94), 400, "maximum context length is 96").await;
    check(changed(&|r| r.sampling.top_p = 2.0), 400, "top_p").await;
    let (tokens, _) = engine.generate(&request(&[1, 2, 3], 8)).await.collect().await;
    assert_eq!(tokens.len(), 8, "it still serves");
}

#[tokio::test]
async fn logits_that_are_not_numbers_fail_their_own_stream_only() {
    let engine = TestEngine::start(Duration::from_millis(1), |_| {}).await;
    let healthy = engine.generate(&request(&[1, 2], 40)).await;
    let (tokens, end) = engine.generate(&request(&[POISON, 2], 40)).await.collect().await;
    assert!(tokens.is_empty());
    assert!(matches!(end, Some(HopEvent::Failed { status: 500, .. })), "{end:?}");
    let (tokens, end) = healthy.collect().await;
    assert_eq!((tokens.len(), reason(&end)), (40, Some(FinishReason::Length)));
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_blocks() {
    let engine = TestEngine::start(SLOW, |_| {}).await;
    // One that decodes, and one that waits behind it for blocks: 128 tokens are all there are.
    let mut decoding = engine.generate(&request(&[3; 40], 56)).await;
    assert!(matches!(decoding.next().await, Some(HopEvent::Tokens(_))));
    let others = [engine.generate(&request(&[4; 80], 16)).await, engine.generate(&request(&[5; 80], 16)).await];
    engine.until(|telemetry| telemetry.requests_total == 3 && telemetry.waiting > 0).await;
    drop(decoding);
    drop(others);
    let telemetry = engine.until(|telemetry| telemetry.cancelled_total == 3).await;
    assert_eq!((telemetry.running, telemetry.waiting, telemetry.kv_blocks_used), (0, 0, 0));
}

#[tokio::test]
async fn requests_wait_inside_while_the_model_loads() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let engine = TestEngine::start_with(
        |options| options.max_queue = 2,
        move || {
            let _ = wait.recv();
            Ok(loaded(Duration::ZERO))
        },
    )
    .await;
    assert_eq!(engine.telemetry().await.state, EngineState::Loading);
    let early = engine.generate(&request(&[1, 2, 3], 8)).await;
    let unservable = engine.generate(&request(&[1, 2, 999], 8)).await;
    let gone = engine.generate(&request(&[1, 2, 3], 8)).await;
    assert_eq!(engine.telemetry().await.waiting, 3);
    drop(gone);
    go.send(()).expect("the loader waits");
    let (tokens, end) = early.collect().await;
    assert_eq!((tokens.len(), reason(&end)), (8, Some(FinishReason::Length)));
    let (_, end) = unservable.collect().await;
    assert!(matches!(&end, Some(HopEvent::Failed { status: 400, message, .. }) if message.contains("999")), "{end:?}");
    engine.until(|telemetry| telemetry.waiting == 0 && telemetry.running == 0).await;
}

#[tokio::test]
async fn an_answer_says_what_it_is_and_whose() {
    let engine = TestEngine::start(Duration::ZERO, |_| {}).await;
    let body = serde_json::to_vec(&request(&[1, 2, 3], 2)).expect("serializable");
    let stream = HopStream::open(engine.port, body, &[(HEADER_REQUEST_ID, "mine-7")]).await;
    assert_eq!(stream.headers["content-type"], "text/event-stream");
    assert_eq!(stream.headers[HEADER_REQUEST_ID], "mine-7");
    stream.collect().await;
    assert_eq!(engine.telemetry().await.finished[0].request_id, "mine-7");
    let refused = HopStream::open(engine.port, b"{".to_vec(), &[(HEADER_REQUEST_ID, "mine-8")]).await;
    assert_eq!(refused.headers[HEADER_REQUEST_ID], "mine-8");
}

#[tokio::test]
async fn a_full_engine_refuses_with_429() {
    let engine = TestEngine::start(SLOW, |options| options.max_queue = 1).await;
    let mut inside = Vec::new();
    let refused = loop {
        let stream = engine.generate(&request(&[1, 2, 3], 90)).await;
        if stream.status != 200 {
            break stream;
        }
        inside.push(stream);
        assert!(inside.len() < 200, "nothing is refused");
    };
    assert_eq!(refused.status, 429);
    assert!(refused.error_message().await.contains("queue of model `digest` is full"));
    inside.truncate(1);
    let (tokens, _) = inside.remove(0).collect().await;
    assert_eq!(tokens.len(), 90);
}

#[tokio::test]
async fn a_deadline_ends_a_stream() {
    let engine = TestEngine::start(Duration::from_millis(20), |_| {}).await;
    let body = serde_json::to_vec(&request(&[1, 2, 3], 90)).expect("serializable");
    let stream = HopStream::open(engine.port, body, &[(HEADER_DEADLINE_MS, "150")]).await;
    let (tokens, end) = stream.collect().await;
    assert!(tokens.len() < 90);
    assert!(matches!(end, Some(HopEvent::Failed { status: 504 | 408, .. })), "{end:?}");
    let telemetry = engine.until(|telemetry| telemetry.running == 0).await;
    assert_eq!(telemetry.kv_blocks_used, 0);
}

#[tokio::test]
async fn a_deadline_that_passes_in_the_queue_is_said_and_nothing_is_computed() {
    let engine = TestEngine::start(Duration::from_millis(20), |_| {}).await;
    // Two that hold nearly all of the 32 blocks, and one that needs six.
    let long = |first: TokenId| (0..60).map(|n| (first + n) % 30).collect::<Vec<_>>();
    let mut holding = Vec::new();
    for first in [3, 4] {
        holding.push(engine.generate(&request(&long(first), 36)).await);
    }
    engine.until(|telemetry| telemetry.running == 2).await;
    let body = serde_json::to_vec(&request(&[9; 24], 4)).expect("serializable");
    let (tokens, end) = HopStream::open(engine.port, body, &[(HEADER_DEADLINE_MS, "100")]).await.collect().await;
    let Some(HopEvent::Failed { status: 504, message, .. }) = &end else { panic!("{end:?}") };
    assert!(tokens.is_empty() && message.contains("in the engine's queue"), "{message}");
    for stream in holding {
        assert_eq!(stream.collect().await.0.len(), 36);
    }
    let telemetry = engine.until(|telemetry| telemetry.running == 0).await;
    assert_eq!(telemetry.prefix_miss_tokens_total, 120, "it never joined the batch");
}

#[tokio::test]
async fn a_lower_priority_number_is_served_first() {
    let engine = TestEngine::start(Duration::from_millis(10), |_| {}).await;
    // One that holds the blocks, and two that have to wait for it, in the wrong order.
    let long = |first: TokenId| (0..90).map(|n| (first + n) % 30).collect::<Vec<_>>();
    let holding = engine.generate(&request(&long(3), 6)).await;
    engine.until(|telemetry| telemetry.running == 1).await;
    let later = engine.generate(&GenerateRequest { priority: 5, ..request(&long(4), 2) }).await;
    engine.until(|telemetry| telemetry.waiting == 1).await;
    let sooner = engine.generate(&GenerateRequest { priority: -5, ..request(&long(5), 2) }).await;
    let streams = [holding, later, sooner].map(HopStream::collect);
    let ends = futures_util::future::join_all(streams).await;
    assert!(ends.iter().all(|(_, end)| reason(end) == Some(FinishReason::Length)), "{ends:?}");
    let finished = engine.telemetry().await.finished;
    let first_token = |prompt: usize| finished[prompt].first_token_at_ns;
    assert_eq!(finished.len(), 3);
    assert!(first_token(0) < first_token(1) && first_token(1) < first_token(2));
    assert!(finished[1].arrived_at_ns > finished[2].arrived_at_ns, "the one that came last was second");
}

#[tokio::test]
async fn telemetry_tells_what_was_done() {
    let engine = TestEngine::start(Duration::from_millis(1), |_| {}).await;
    engine.generate(&request(&[1, 2, 3, 4, 5], 6)).await.collect().await;
    let telemetry = engine.telemetry().await;
    assert_eq!((telemetry.prefill_tokens_total, telemetry.decode_tokens_total), (5, 5));
    assert_eq!((telemetry.steps_total, telemetry.kv_blocks_total), (6, 32));
    assert!(telemetry.busy_ns_total > 0 && telemetry.resident_bytes > 0);
    let phases = &telemetry.phases;
    assert!(phases.listening_ms <= phases.ready_ms && Some(phases.ready_ms) <= phases.first_step_ms, "{phases:?}");
    let [record] = telemetry.finished.as_slice() else { panic!("one record: {:?}", telemetry.finished) };
    assert_eq!((record.prompt_tokens, record.output_tokens, record.outcome), (5, 6, Outcome::Finished));
    assert!(record.queue_ms <= record.ttft_ms && record.itl_ms_mean.is_some_and(|itl_ms| itl_ms >= 1.0), "{record:?}");
    assert!(record.arrived_at_ns < record.first_token_at_ns && record.first_token_at_ns < record.last_token_at_ns);
    assert!(engine.telemetry().await.finished.is_empty(), "each is reported once");
}
