//! Requests for a model at zero: held, in order, within bounds, and visible to the controller.

mod common;

use common::engine::{Engine, Move, expected, header};
use common::{Bench, collect, context, endpoint, eventually, loading, options, request};
use controller_gateway::{Gateway, GatewayOptions, Outcome, RouteTable};
use engine_http::backend::StreamEvent;
use engine_http::{ApiError, Backend};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_request_at_zero_is_held_until_an_instance_comes() {
    let bench = Bench::new(options(), vec![]);
    let mut stream = bench.gateway.generate(context(LONG), request(3, 4)).await.unwrap();
    assert_eq!(stream.events.recv().await, Some(Ok(StreamEvent::Waiting)), "a sign of life comes at once");
    bench.gateway.demand_changed().await;
    let demand = bench.demand();
    assert_eq!((demand.arrivals_total, demand.held, demand.in_flight), (1, 1, 0));
    assert!(demand.oldest_held_ms.is_some());
    let engine = Engine::start([]).await;
    bench.publish(vec![endpoint("a", &engine)]);
    let collected = collect(stream).await;
    assert_eq!((collected.tokens, collected.error), (expected(&[3, 7], 4), None));
    bench.gateway.idle().await;
    let demand = bench.demand();
    assert_eq!((demand.arrivals_total, demand.held, demand.in_flight, demand.oldest_held_ms), (1, 0, 0, None));
    let record = &bench.gateway.generation_records(1)[0];
    assert!(record.hold_ms > 0.0 && record.ttft_ms.unwrap() >= record.hold_ms, "{record:?}");
}

#[tokio::test]
async fn a_held_client_hears_again_and_again() {
    let bench = Bench::new(options(), vec![]);
    let mut stream = bench.gateway.generate(context(LONG), request(3, 4)).await.unwrap();
    for _ in 0..3 {
        assert_eq!(stream.events.recv().await, Some(Ok(StreamEvent::Waiting)));
    }
}

#[tokio::test]
async fn the_queue_is_bounded() {
    let bench = Bench::new(GatewayOptions { hold_limit: 2, ..options() }, vec![]);
    let first = bench.gateway.generate(context(LONG), request(1, 4)).await.unwrap();
    let _second = bench.gateway.generate(context(LONG), request(2, 4)).await.unwrap();
    let third = bench.gateway.generate(context(LONG), request(3, 4)).await.err();
    let full = ApiError::QueueFull { model: "m".to_owned(), limit: 2, retry_after_s: 5 };
    assert_eq!(third, Some(full));
    assert_eq!((bench.demand().held, bench.demand().arrivals_total), (2, 3), "a refused request is demand too");
    drop(first);
    eventually("room again", || bench.demand().held == 1).await;
    assert!(bench.gateway.generate(context(LONG), request(4, 4)).await.is_ok());
}

#[tokio::test]
async fn what_was_refused_and_is_asked_again_is_no_new_demand() {
    let bench = Bench::new(GatewayOptions { hold_limit: 1, ..options() }, vec![]);
    let first = bench.gateway.generate(context(LONG), request(1, 4)).await.unwrap();
    for attempt in 1..=3 {
        assert!(bench.gateway.generate(context(LONG), request(2, 4)).await.is_err());
        assert_eq!(bench.demand().arrivals_total, 2, "attempt {attempt}");
    }
    drop(first);
    eventually("room again", || bench.demand().held == 0).await;
    let _served = bench.gateway.generate(context(LONG), request(2, 4)).await.unwrap();
    assert_eq!(bench.demand().arrivals_total, 2, "let in at last, and counted when it first came");
    let _ = bench.gateway.generate(context(LONG), request(2, 4)).await;
    assert_eq!(bench.demand().arrivals_total, 3, "the same question anew");
}

#[tokio::test]
async fn held_requests_go_in_the_order_of_arrival() {
    let bench = Bench::new(options(), vec![]);
    let mut streams = Vec::new();
    for prompt in 1..=40 {
        streams.push(bench.gateway.generate(context(LONG), request(prompt, 1)).await.unwrap());
    }
    let engine = Engine::start([]).await;
    bench.publish(vec![endpoint("a", &engine)]);
    for (prompt, stream) in (1..=40).zip(streams) {
        assert_eq!(collect(stream).await.tokens, expected(&[prompt, 7], 1));
    }
    assert_eq!(*engine.seen.lock().unwrap(), (1..=40).collect::<Vec<u32>>());
}

#[tokio::test]
async fn the_deadline_ends_a_hold() {
    let bench = Bench::new(options(), vec![]);
    let stream = bench.gateway.generate(context(Duration::from_millis(50)), request(1, 4)).await.unwrap();
    let collected = collect(stream).await;
    let stage = "while it waited for an instance";
    assert_eq!(collected.error, Some(ApiError::DeadlineExceeded { deadline_ms: 50, stage }));
    assert_eq!(bench.demand().held, 0);
    assert_eq!(bench.gateway.generation_records(1)[0].outcome, Outcome::Rejected);
}

#[tokio::test]
async fn the_deadline_ends_a_stalled_stream() {
    let engine = Engine::start([Move::Stall(2)]).await;
    let bench = Bench::new(options(), vec![endpoint("a", &engine)]);
    let stream = bench.gateway.generate(context(Duration::from_millis(80)), request(1, 4)).await.unwrap();
    let collected = collect(stream).await;
    assert_eq!(collected.tokens, expected(&[1, 7], 2));
    assert_eq!(collected.error, Some(ApiError::DeadlineExceeded { deadline_ms: 80, stage: "before it was complete" }));
    eventually("cancelled", || engine.abandoned.load(std::sync::atomic::Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn a_hold_times_out_with_a_hint() {
    let options = GatewayOptions { hold_timeout: Duration::from_millis(40), ..options() };
    let bench = Bench::new(options.clone(), vec![]);
    let waiting = bench.gateway.generate(context(LONG), request(1, 4)).await.unwrap();
    // The second one waits behind it in the queue, and no longer than it.
    let behind = bench.gateway.generate(context(LONG), request(2, 4)).await.unwrap();
    for stream in [waiting, behind] {
        let error = collect(stream).await.error;
        assert!(matches!(error, Some(ApiError::Unavailable { retry_after_s: Some(_), .. })), "{error:?}");
    }
    // A loading instance that never gets ready is no better.
    let engine = Engine::start([Move::Gate]).await;
    let bench = Bench::new(options, vec![loading("a", &engine)]);
    let collected = bench.complete(1, 4).await.unwrap();
    assert!(matches!(collected.error, Some(ApiError::Unavailable { .. })), "{collected:?}");
}

#[tokio::test]
async fn a_request_at_a_loading_instance_is_held_until_it_is_ready() {
    let engine = Engine::start([Move::Gate]).await;
    let bench = Bench::new(options(), vec![loading("a", &engine)]);
    let stream = bench.gateway.generate(context(LONG), request(1, 4)).await.unwrap();
    eventually("sent there at once", || engine.requests() == 1).await;
    assert_eq!((bench.demand().held, bench.demand().in_flight), (1, 0));
    bench.publish(vec![endpoint("a", &engine)]);
    eventually("in flight", || bench.demand().in_flight == 1).await;
    assert_eq!(bench.demand().held, 0);
    engine.gate.add_permits(1);
    assert_eq!(collect(stream).await.tokens, expected(&[1, 7], 4));
}

#[tokio::test]
async fn the_first_token_of_a_loading_instance_ends_the_hold() {
    let engine = Engine::start([Move::Stall(1)]).await;
    let bench = Bench::new(options(), vec![loading("a", &engine)]);
    let _stream = bench.gateway.generate(context(LONG), request(1, 4)).await.unwrap();
    eventually("in flight", || bench.demand().in_flight == 1).await;
    assert_eq!(bench.demand().held, 0);
}

#[tokio::test]
async fn removing_the_model_ends_its_holds() {
    let bench = Bench::new(options(), vec![]);
    let stream = bench.gateway.generate(context(LONG), request(1, 4)).await.unwrap();
    bench.routes.send_replace(Arc::default());
    let error = collect(stream).await.error;
    assert!(matches!(error, Some(ApiError::Unavailable { .. })), "{error:?}");
    let next = bench.gateway.generate(context(LONG), request(1, 4)).await.err();
    assert_eq!(next, Some(ApiError::ModelNotFound { model: "m".to_owned() }));
    assert!(bench.gateway.demand().is_empty() && bench.gateway.models().is_empty());
}

#[tokio::test]
async fn the_deadline_and_the_identity_travel() {
    let engine = Engine::start([]).await;
    let bench = Bench::new(options(), vec![endpoint("a", &engine)]);
    bench.complete(1, 1).await.unwrap();
    let head = engine.headers.lock().unwrap()[0].clone();
    let deadline_ms: u64 = header(&head, "x-foreshock-deadline-ms").parse().unwrap();
    assert!((19_000..=20_000).contains(&deadline_ms), "{head}");
    assert_eq!(
        (header(&head, "x-request-id"), header(&head, "x-foreshock-tenant")),
        ("req-1".into(), "default".into())
    );
    assert!(header(&head, "traceparent").starts_with("00-4bf9"), "{head}");
}

#[tokio::test]
async fn readiness_and_drain() {
    let (routes, receiver) = watch::channel(Arc::new(RouteTable::default()));
    let gateway = Gateway::new(options(), receiver);
    assert_eq!(gateway.ready(), Ok(()), "a registry without models is a good one");
    routes.send_replace(common::table(vec![]));
    gateway.followed().wait_for(|table| !table.models.is_empty()).await.unwrap();
    assert_eq!(gateway.models().len(), 1, "what is seen there holds for the next request");
    let held = gateway.generate(context(LONG), request(1, 4)).await.unwrap();
    gateway.drain();
    assert!(gateway.ready().is_err());
    assert_eq!(gateway.generate(context(LONG), request(2, 4)).await.err(), Some(ApiError::ShuttingDown));
    assert_eq!(gateway.active_requests(), 1);
    let engine = Engine::start([]).await;
    routes.send_replace(common::table(vec![endpoint("a", &engine)]));
    assert_eq!(collect(held).await.tokens, expected(&[1, 7], 4), "what was held is served");
    gateway.idle().await;
}
