//! Which instance gets a request, over which connection, and what the client's leaving does.

mod common;

use common::engine::{Engine, Move, expected};
use common::{Bench, collect, context, endpoint, eventually, loading, options, request};
use controller_gateway::{GatewayOptions, Outcome};
use engine_http::Backend;
use std::sync::atomic::Ordering;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn the_least_loaded_ready_instance_is_chosen() {
    let gates = || vec![Move::Gate; 16];
    let (a, b, c) = (Engine::start(gates()).await, Engine::start(gates()).await, Engine::start(gates()).await);
    let bench = Bench::new(options(), vec![loading("c", &c), endpoint("b", &b), endpoint("a", &a)]);
    let mut running = Vec::new();
    for (want_a, want_b) in [(1, 0), (1, 1), (2, 1), (2, 2), (3, 2)] {
        let gateway = bench.gateway.clone();
        running.push(tokio::spawn(async move {
            collect(gateway.generate(context(LONG), request(1, 2)).await.unwrap()).await
        }));
        eventually("routed", || (a.requests(), b.requests()) == (want_a, want_b)).await;
    }
    assert_eq!((c.requests(), bench.demand().in_flight), (0, 5), "one that loads comes last");
    for engine in [&a, &b] {
        engine.gate.add_permits(16);
    }
    for stream in running {
        assert_eq!(stream.await.unwrap().tokens, expected(&[1, 7], 2));
    }
}

#[tokio::test]
async fn a_full_instance_gets_no_more_until_it_has_room() {
    let engine = Engine::start([Move::Gate]).await;
    let bench = Bench::new(GatewayOptions { endpoint_in_flight_limit: 1, ..options() }, vec![endpoint("a", &engine)]);
    let (gateway, engine_) = (bench.gateway.clone(), engine.clone());
    let first =
        tokio::spawn(async move { collect(gateway.generate(context(LONG), request(1, 2)).await.unwrap()).await });
    eventually("first there", || engine_.requests() == 1).await;
    let second = bench.gateway.generate(context(LONG), request(2, 2)).await.unwrap();
    assert_eq!((bench.demand().held, engine.requests()), (1, 1));
    engine.gate.add_permits(1);
    assert_eq!(first.await.unwrap().tokens, expected(&[1, 7], 2));
    assert_eq!(collect(second).await.tokens, expected(&[2, 7], 2));
}

#[tokio::test]
async fn a_draining_instance_costs_the_client_nothing() {
    let (draining, other) = (Engine::start(vec![Move::Status(503); 9]).await, Engine::start([]).await);
    let options = GatewayOptions { quarantine: LONG, ..options() };
    let bench = Bench::new(options, vec![endpoint("a", &draining), endpoint("b", &other)]);
    for _ in 0..5 {
        let collected = bench.complete(1, 3).await.unwrap();
        assert_eq!((collected.tokens, collected.error, collected.waiting), (expected(&[1, 7], 3), None, 0));
    }
    assert_eq!((draining.requests(), other.requests()), (1, 5), "it is avoided after its first refusal");
}

#[tokio::test]
async fn an_unreachable_instance_is_passed_over() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut dead = common::endpoint("a", &*Engine::start([]).await);
    dead.addr = gone.local_addr().unwrap();
    drop(gone);
    let other = Engine::start([]).await;
    let bench = Bench::new(options(), vec![dead, endpoint("b", &other)]);
    let collected = bench.complete(1, 3).await.unwrap();
    assert_eq!((collected.tokens, collected.error), (expected(&[1, 7], 3), None));
    assert_eq!(bench.gateway.generation_records(1)[0].instances, ["b"]);
}

#[tokio::test]
async fn connections_are_used_again() {
    let engine = Engine::start([]).await;
    let bench = Bench::new(options(), vec![endpoint("a", &engine)]);
    for _ in 0..10 {
        bench.complete(1, 3).await.unwrap();
        bench.gateway.idle().await;
    }
    assert_eq!((engine.requests(), engine.connections.load(Ordering::SeqCst)), (10, 1));
}

#[tokio::test]
async fn a_connection_closed_while_idle_costs_nothing() {
    let engine = Engine::start([]).await;
    engine.hang_up.store(true, Ordering::SeqCst);
    let bench = Bench::new(options(), vec![endpoint("a", &engine)]);
    for _ in 0..10 {
        let collected = bench.complete(1, 3).await.unwrap();
        assert_eq!((collected.tokens, collected.error), (expected(&[1, 7], 3), None));
    }
    assert_eq!(bench.gateway.generation_records(10).iter().map(|record| record.instances.len()).sum::<usize>(), 10);
}

#[tokio::test]
async fn a_client_that_leaves_cancels_the_work() {
    let engine = Engine::start([Move::Stall(2), Move::Gate]).await;
    let bench = Bench::new(options(), vec![endpoint("a", &engine)]);
    // In the middle of a stream.
    let mut stream = bench.gateway.generate(context(LONG), request(1, 4)).await.unwrap();
    stream.events.recv().await.unwrap().unwrap();
    drop(stream);
    eventually("first cancelled", || engine.abandoned.load(Ordering::SeqCst) == 1).await;
    // Before the instance has answered at all.
    let gateway = bench.gateway.clone();
    let waiting = tokio::spawn(async move { gateway.generate(context(LONG), request(2, 4)).await.map(drop) });
    eventually("second there", || engine.requests() == 2).await;
    waiting.abort();
    eventually("second cancelled", || engine.abandoned.load(Ordering::SeqCst) == 2).await;
    bench.gateway.idle().await;
    assert_eq!((bench.demand().held, bench.demand().in_flight), (0, 0));
    let outcomes: Vec<Outcome> = bench.gateway.generation_records(9).iter().map(|record| record.outcome).collect();
    assert_eq!(outcomes, [Outcome::Cancelled, Outcome::Cancelled]);
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_frees_its_place() {
    let bench = Bench::new(options(), vec![]);
    let first = bench.gateway.generate(context(LONG), request(1, 1)).await.unwrap();
    let second = bench.gateway.generate(context(LONG), request(2, 1)).await.unwrap();
    drop(first);
    eventually("one left", || bench.demand().held == 1).await;
    let engine = Engine::start([]).await;
    bench.publish(vec![endpoint("a", &engine)]);
    assert_eq!(collect(second).await.tokens, expected(&[2, 7], 1));
    assert_eq!(*engine.seen.lock().unwrap(), [2]);
}

#[tokio::test]
async fn records_are_bounded_and_newest_first() {
    let engine = Engine::start([]).await;
    let bench = Bench::new(GatewayOptions { record_limit: 3, ..options() }, vec![endpoint("a", &engine)]);
    for max_tokens in 1..=5 {
        bench.complete(1, max_tokens).await.unwrap();
        bench.gateway.idle().await;
    }
    let lengths =
        |limit| bench.gateway.generation_records(limit).iter().map(|record| record.output_tokens).collect::<Vec<_>>();
    assert_eq!((lengths(10), lengths(1)), (vec![5, 4, 3], vec![5]));
    let json = serde_json::to_value(bench.gateway.generation_records(1)).unwrap();
    assert_eq!(json[0]["outcome"], "finished");
}
