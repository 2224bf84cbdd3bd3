//! The prefix cache as clients and the controller see it: what was cached is said with the answer, in the
//! records and in the totals, and stays with its tenant.

mod common;

use common::device::{POISON, reference};
use common::{HopStream, TestEngine, cached, reason, request};
use engine_wire::TokenId;
use engine_wire::hop::{FinishReason, GenerateRequest, HEADER_TENANT, HopEvent};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn ask(engine: &TestEngine, tenant: &str, request: &GenerateRequest) -> (Vec<TokenId>, Option<HopEvent>) {
    let body = serde_json::to_vec(request).expect("serializable");
    HopStream::open(engine.port, body, &[(HEADER_TENANT, tenant)]).await.collect().await
}

#[tokio::test]
async fn a_hit_is_told_and_stays_with_its_tenant() {
    let engine = TestEngine::start(Duration::ZERO, |_| {}).await;
    let prompt: Vec<TokenId> = (3..17).collect();
    let mut totals = (0, 0);
    // Blocks hold four tokens; of fourteen, twelve are in full ones.
    let mut check = async |tenant: &str, prompt: &[TokenId], expected: u32| {
        let request = request(prompt, 6);
        let (tokens, end) = ask(&engine, tenant, &request).await;
        assert_eq!(tokens, reference(prompt, &request.sampling, 6));
        assert_eq!((reason(&end), cached(&end)), (Some(FinishReason::Length), Some(expected)), "{tenant} {prompt:?}");
        let telemetry = engine.telemetry().await;
        assert_eq!(telemetry.finished[0].cached_tokens, expected);
        totals = (totals.0 + u64::from(expected), totals.1 + prompt.len() as u64 - u64::from(expected));
        assert_eq!((telemetry.prefix_hit_tokens_total, telemetry.prefix_miss_tokens_total), totals);
        assert_eq!((telemetry.prefill_tokens_total, telemetry.kv_blocks_used), (totals.1, 0));
    };
    check("one", &prompt, 0).await;
    check("one", &prompt, 12).await;
    check("one", &prompt[..12], 8).await;
    check("two", &prompt, 0).await;
    check("two", &prompt, 12).await;
    check("one", &[&prompt[..5], &[20, 21, 22]].concat(), 4).await;
}

#[tokio::test]
async fn a_resumed_stream_counts_its_prompt_only() {
    let engine = TestEngine::start(Duration::ZERO, |_| {}).await;
    let request = request(&[3, 4, 5, 6, 7, 8, 9, 10, 11, 12], 8);
    let (expected, _) = ask(&engine, "one", &request).await;
    let resumed = GenerateRequest { emitted: expected[..7].to_vec(), ..request };
    let (tokens, end) = ask(&engine, "one", &resumed).await;
    // Of seventeen tokens sixteen are found, of which the client sent ten as its prompt.
    assert_eq!((tokens.as_slice(), cached(&end)), (&expected[7..], Some(10)), "{end:?}");
    assert_eq!(engine.telemetry().await.prefix_hit_tokens_total, 16);
}

#[tokio::test]
async fn a_prompt_that_fails_fails_again_and_leaves_nothing() {
    let engine = TestEngine::start(Duration::ZERO, |_| {}).await;
    let prompt: Vec<TokenId> = std::iter::once(POISON).chain(3..17).collect();
    for _ in 0..2 {
        let (tokens, end) = ask(&engine, "one", &request(&prompt, 6)).await;
        assert!(tokens.is_empty() && matches!(end, Some(HopEvent::Failed { status: 500, .. })), "{end:?}");
    }
    let telemetry = engine.telemetry().await;
    assert_eq!((telemetry.prefix_hit_tokens_total, telemetry.prefix_miss_tokens_total), (0, 30));
}

#[tokio::test]
async fn what_happened_is_in_the_metrics_by_our_names_and_by_vllms() {
    // A name of its own: engines of one process share their recorder.
    let engine = TestEngine::start(Duration::ZERO, |options| options.name = Some("metered".into())).await;
    let request = GenerateRequest { model: "metered".into(), ..request(&[3, 4, 5, 6, 7, 8, 9, 10, 11], 2) };
    for _ in 0..3 {
        ask(&engine, "one", &request).await;
    }
    let mut stream = TcpStream::connect(("127.0.0.1", engine.port)).await.expect("the port is bound");
    let head = b"GET /metrics HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n";
    stream.write_all(head).await.expect("the engine reads");
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    tokio::time::timeout(common::PATIENCE, read).await.expect("an answer in time").expect("an answer");
    for (outcome, tokens) in [("hit", 16), ("miss", 11)] {
        let row = format!(r#"foreshock_prefix_cache_tokens_total{{model="metered",outcome="{outcome}"}} {tokens}"#);
        assert!(answer.contains(&row), "{row} is not in:\n{answer}");
    }
    for row in [
        r#"vllm:prefix_cache_queries_total{model_name="metered"} 27"#,
        r#"vllm:prefix_cache_hits_total{model_name="metered"} 16"#,
        r#"vllm:generation_tokens_total{model_name="metered"} 6"#,
        r#"vllm:request_success_total{model_name="metered",finished_reason="length"} 3"#,
        r#"vllm:time_to_first_token_seconds_count{model_name="metered"} 3"#,
        r#"vllm:request_generation_tokens_sum{model_name="metered"} 6"#,
        r#"vllm:num_requests_running{model_name="metered"} 0"#,
        r#"foreshock_engine_step_seconds_count{model="metered",phase="forward"} 6"#,
        r#"foreshock_engine_step_tokens_sum{model="metered"} 14"#,
    ] {
        assert!(answer.contains(row), "{row} is not in:\n{answer}");
    }
}
