//! Streams outlive their instances: whatever happens to an attempt, the client gets every token once.

mod common;

use common::engine::{Engine, Move, expected};
use common::{Bench, context, endpoint, options, request};
use controller_gateway::Outcome;
use engine_http::{ApiError, Backend};
use engine_wire::hop::FinishReason;
use proptest::prelude::*;
use std::time::Duration;

const TOKENS: usize = 6;

/// Runs one request with `moves` on the first engine and an honest second one.
async fn check_resumed(moves: Vec<Move>) {
    let (first, second) = (Engine::start(moves.clone()).await, Engine::start([]).await);
    let options = controller_gateway::GatewayOptions { stall_timeout: Duration::from_millis(30), ..options() };
    let bench = Bench::new(options, vec![endpoint("a", &first), endpoint("b", &second)]);
    let collected = bench.complete(5, TOKENS as u32).await.unwrap();
    assert_eq!(collected.tokens, expected(&[5, 7], TOKENS), "{moves:?}");
    assert_eq!((collected.finished, collected.error), (Some(FinishReason::Length), None), "{moves:?}");
    let demand = bench.demand();
    assert_eq!((demand.arrivals_total, demand.output_tokens_total), (1, TOKENS as u64), "{moves:?}");
    assert_eq!((demand.prompt_tokens_total, demand.held, demand.in_flight), (2, 0, 0), "{moves:?}");
}

#[tokio::test]
async fn every_cut_at_every_position_is_seamless() {
    for at in 0..=TOKENS {
        check_resumed(vec![Move::Close(at)]).await;
        check_resumed(vec![Move::CloseInLine(at)]).await;
        check_resumed(vec![Move::EndEarly(at)]).await;
        check_resumed(vec![Move::Garbage(at)]).await;
        check_resumed(vec![Move::Failed(at, 500)]).await;
        check_resumed(vec![Move::Failed(at, 503)]).await;
    }
    // Silence before the first token is patience with a long prompt, so it counts only after it.
    for at in 1..=TOKENS {
        check_resumed(vec![Move::Stall(at)]).await;
    }
    check_resumed(vec![Move::CloseBeforeEnd]).await;
    check_resumed(vec![Move::TooMany]).await;
    for status in [404, 408, 429, 500, 502, 503, 504] {
        check_resumed(vec![Move::Status(status)]).await;
    }
}

#[tokio::test]
async fn log_probabilities_stay_with_their_tokens_across_instances() {
    for at in 0..=TOKENS {
        let (first, second) = (Engine::start([Move::Close(at)]).await, Engine::start([]).await);
        let bench = Bench::new(options(), vec![endpoint("a", &first), endpoint("b", &second)]);
        let mut request = request(5, TOKENS as u32);
        request.top_logprobs = Some(2);
        let stream = bench.gateway.generate(context(Duration::from_secs(20)), request).await.unwrap();
        let collected = common::collect(stream).await;
        assert_eq!((collected.tokens, collected.error), (expected(&[5, 7], TOKENS), None), "cut at {at}");
        let logprobs: Vec<f32> = (0..TOKENS).map(|position| -(position as f32)).collect();
        assert_eq!(collected.logprobs, logprobs, "cut at {at}");
    }
}

#[tokio::test]
async fn a_lone_instance_is_tried_again_after_its_quarantine() {
    let engine = Engine::start([Move::Close(2), Move::Garbage(0), Move::Close(1)]).await;
    let bench = Bench::new(options(), vec![endpoint("a", &engine)]);
    let collected = bench.complete(5, 6).await.unwrap();
    assert_eq!((collected.tokens, collected.error), (expected(&[5, 7], 6), None));
    let record = &bench.gateway.generation_records(10)[0];
    assert_eq!(
        (record.resumes, record.outcome, record.output_tokens, record.cached_tokens),
        (3, Outcome::Finished, 6, 3)
    );
    assert_eq!(record.instances, ["a", "a", "a", "a"]);
}

#[tokio::test]
async fn a_stream_with_no_instance_left_waits_for_the_next_one() {
    let (first, second) = (Engine::start([Move::Close(3)]).await, Engine::start([]).await);
    let quarantine = Duration::from_secs(60);
    let options = controller_gateway::GatewayOptions { quarantine, ..options() };
    let bench = Bench::new(options, vec![endpoint("a", &first)]);
    let stream = bench.gateway.generate(context(Duration::from_secs(20)), request(9, 8)).await.unwrap();
    common::eventually("held", || bench.demand().held == 1).await;
    bench.publish(vec![endpoint("b", &second)]);
    let collected = common::collect(stream).await;
    assert_eq!((collected.tokens, collected.error), (expected(&[9, 7], 8), None));
    assert!(collected.waiting > 0);
}

#[tokio::test]
async fn attempts_without_progress_are_bounded() {
    let engine = Engine::start(vec![Move::Garbage(0); 50]).await;
    let bench = Bench::new(options(), vec![endpoint("a", &engine)]);
    // The first hold, for the quarantine, has started the stream: the error is an event.
    let collected = bench.complete(5, 6).await.unwrap();
    assert!(matches!(collected.error, Some(ApiError::Unavailable { .. })), "{collected:?}");
    assert_eq!((engine.requests(), collected.tokens, collected.finished), (5, vec![], None));
    assert_eq!(bench.gateway.generation_records(1)[0].outcome, Outcome::Rejected);
}

#[tokio::test]
async fn progress_renews_the_attempts() {
    let engine = Engine::start(vec![Move::Close(1); 19]).await;
    let bench = Bench::new(options(), vec![endpoint("a", &engine)]);
    let collected = bench.complete(5, 20).await.unwrap();
    assert_eq!((collected.tokens, collected.error), (expected(&[5, 7], 20), None));
}

#[tokio::test]
async fn a_wrong_request_is_tried_once() {
    for (moves, started) in [(Move::Status(400), false), (Move::Failed(0, 422), false), (Move::Failed(2, 400), true)] {
        let engine = Engine::start([moves.clone()]).await;
        let bench = Bench::new(options(), vec![endpoint("a", &engine)]);
        let error = match bench.complete(5, 6).await {
            Ok(collected) => collected.error.filter(|_| started),
            Err(error) => Some(error).filter(|_| !started),
        };
        assert!(matches!(error, Some(ApiError::InvalidRequest { .. })), "{moves:?}: {error:?}");
        assert_eq!(engine.requests(), 1, "{moves:?}");
    }
}

#[tokio::test]
async fn a_stream_never_mixes_revisions() {
    let engine = Engine::start([Move::Close(3)]).await;
    let options = controller_gateway::GatewayOptions { quarantine: Duration::from_secs(60), ..options() };
    let bench = Bench::new(options, vec![endpoint("a", &engine)]);
    let stream = bench.gateway.generate(context(Duration::from_secs(20)), request(9, 8)).await.unwrap();
    common::eventually("held", || bench.demand().held == 1).await;
    let mut table = (*common::table(vec![endpoint("b", &engine)])).clone();
    table.models.insert(common::MODEL.to_owned(), common::route("r2"));
    bench.routes.send_replace(table.into());
    let collected = common::collect(stream).await;
    assert_eq!(collected.tokens, expected(&[9, 7], 3));
    assert!(matches!(collected.error, Some(ApiError::Unavailable { .. })), "{collected:?}");
}

fn any_move() -> impl Strategy<Value = Move> {
    let at = 0..8usize;
    prop_oneof![
        Just(Move::Serve),
        Just(Move::CloseBeforeEnd),
        Just(Move::TooMany),
        at.clone().prop_map(Move::Close),
        at.clone().prop_map(Move::CloseInLine),
        at.clone().prop_map(Move::EndEarly),
        at.clone().prop_map(Move::Garbage),
        (at, prop_oneof![Just(500), Just(503), Just(429)]).prop_map(|(at, status)| Move::Failed(at, status)),
        prop_oneof![Just(429), Just(500), Just(503), Just(404)].prop_map(Move::Status),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Over any schedule of failures on three instances and concurrent requests, each stream is either complete
    /// or a prefix with an error, and with enough attempts it is complete. Counters agree with what was received.
    #[test]
    fn delivered_is_expected_exactly_once(
        moves in prop::collection::vec(prop::collection::vec(any_move(), 0..6), 3),
        requests in prop::collection::vec((1u32..1000, 1u32..12), 1..6),
        resume_limit in prop_oneof![Just(2u32), Just(1000)],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut endpoints = Vec::new();
            for (index, moves) in moves.into_iter().enumerate() {
                let engine = Engine::start(moves).await;
                endpoints.push(endpoint(&format!("i{index}"), &engine));
            }
            let bench = Bench::new(controller_gateway::GatewayOptions { resume_limit, ..options() }, endpoints);
            let streams = requests.iter().map(|(prompt, max)| bench.complete(*prompt, *max));
            let mut received = 0;
            for (outcome, (prompt, max)) in futures_util::future::join_all(streams).await.into_iter().zip(&requests) {
                let all = expected(&[*prompt, 7], *max as usize);
                match outcome {
                    Ok(collected) if collected.error.is_none() => {
                        received += all.len();
                        assert_eq!((collected.tokens, collected.finished), (all, Some(FinishReason::Length)));
                    }
                    Ok(collected) => {
                        assert!(resume_limit == 2, "{collected:?}");
                        received += collected.tokens.len();
                        assert!(all.starts_with(&collected.tokens), "{:?} is no prefix of {all:?}", collected.tokens);
                    }
                    Err(error) => assert!(resume_limit == 2, "{error:?}"),
                }
            }
            let demand = bench.demand();
            assert_eq!((demand.output_tokens_total, demand.arrivals_total), (received as u64, requests.len() as u64));
            assert_eq!((demand.held, demand.in_flight), (0, 0));
        });
    }
}
