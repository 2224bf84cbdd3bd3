//! The life of an engine under control: hello, fencing, lease, drain, failures at the start.

mod common;

use common::{Controller, MODEL, TestEngine, loaded, options, reason, request};
use engine_instance::{EngineError, run_with};
use engine_wire::control::{Command, EngineState, PROTOCOL, Reply};
use engine_wire::hop::{FinishReason, HopEvent};
use std::time::Duration;

const PACE: Duration = Duration::from_millis(5);

fn lease(lease_ms: u64) -> impl FnOnce(&mut engine_instance::EngineOptions) {
    move |options| {
        if let Some(supervision) = &mut options.supervision {
            supervision.lease = Duration::from_millis(lease_ms);
        }
    }
}

#[tokio::test]
async fn hello_says_who_it_is() {
    let engine = TestEngine::start(Duration::ZERO, |_| {}).await;
    let Reply::Hello(hello) = engine.command(&Command::Hello { protocol: 99 }).await else { panic!("no hello") };
    assert_eq!((hello.protocol, hello.instance.as_str(), hello.model.as_str()), (PROTOCOL, "one", MODEL));
    assert_eq!((hello.revision.as_str(), hello.pid, hello.port), ("r1", std::process::id(), engine.port));
    assert!(!hello.cores.is_empty() && hello.ready_at_ns.is_some_and(|at_ns| at_ns > hello.started_at_ns));
}

#[tokio::test]
async fn a_controller_of_the_past_is_refused() {
    let engine = TestEngine::start(Duration::ZERO, |_| {}).await;
    let mut old = Controller::connect(&engine.socket).await;
    let mut new = Controller::connect(&engine.socket).await;
    let renew = |epoch| Command::Renew { epoch, lease_ms: 60_000 };
    assert!(matches!(old.send(&renew(4)).await, Reply::Telemetry(_)));
    assert!(matches!(new.send(&renew(5)).await, Reply::Telemetry(_)));
    assert!(matches!(old.send(&renew(4)).await, Reply::Refused { message } if message.contains("epoch 5")));
    let drain = Command::Drain { epoch: 4, deadline_ms: 0 };
    assert!(matches!(old.send(&drain).await, Reply::Refused { .. }));
    assert!(matches!(old.send_line("{\"command\":\"dance\"}").await, Reply::Refused { .. }));
    assert!(matches!(old.send_line("\u{0}").await, Reply::Refused { .. }));
    let Reply::Telemetry(telemetry) = new.send(&renew(5)).await else { panic!("it still serves") };
    assert_eq!(telemetry.state, EngineState::Ready);
}

#[tokio::test]
async fn an_endless_line_is_cut() {
    let engine = TestEngine::start(Duration::ZERO, |_| {}).await;
    let mut controller = Controller::connect(&engine.socket).await;
    let line = "x".repeat(512 * 1024 + 1);
    assert!(matches!(controller.send_line(&line).await, Reply::Refused { message } if message.contains("too long")));
    assert_eq!(engine.telemetry().await.state, EngineState::Ready);
}

#[tokio::test]
async fn a_drain_finishes_what_it_has_and_takes_nothing_more() {
    let engine = TestEngine::start(PACE, |_| {}).await;
    let mut stream = engine.generate(&request(&[1, 2, 3], 60)).await;
    assert!(matches!(stream.next().await, Some(HopEvent::Tokens(_))));
    assert_eq!(engine.command(&Command::Drain { epoch: 2, deadline_ms: 60_000 }).await, Reply::Done);
    let refused = engine.generate(&request(&[1, 2, 3], 8)).await;
    assert_eq!(refused.status, 503);
    let (tokens, end) = stream.collect().await;
    assert_eq!((tokens.len(), reason(&end)), (59, Some(FinishReason::Length)));
    let socket = engine.socket.clone();
    assert!(engine.ended().await.is_ok());
    assert!(!socket.exists(), "the socket's path is removed");
}

#[tokio::test]
async fn a_drain_ends_at_its_deadline() {
    let engine = TestEngine::start(Duration::from_millis(50), |_| {}).await;
    let mut stream = engine.generate(&request(&[1, 2, 3], 90)).await;
    assert!(matches!(stream.next().await, Some(HopEvent::Tokens(_))));
    assert_eq!(engine.command(&Command::Drain { epoch: 2, deadline_ms: 60_000 }).await, Reply::Done);
    assert_eq!(engine.command(&Command::Drain { epoch: 2, deadline_ms: 1 }).await, Reply::Done);
    let (tokens, end) = stream.collect().await;
    assert!(tokens.len() < 89);
    assert!(matches!(end, Some(HopEvent::Failed { status: 503, .. })), "{end:?}");
    assert!(engine.ended().await.is_ok());
}

#[tokio::test]
async fn an_orphan_finishes_its_streams_and_ends() {
    let engine = TestEngine::start_with(lease(300), || Ok(loaded(PACE))).await;
    let stream = engine.generate(&request(&[1, 2, 3], 90)).await;
    let (tokens, end) = stream.collect().await;
    assert_eq!((tokens.len(), reason(&end)), (90, Some(FinishReason::Length)));
    assert!(engine.ended().await.is_ok());
}

#[tokio::test]
async fn a_renewed_lease_keeps_it_alive() {
    let engine = TestEngine::start_with(lease(1_000), || Ok(loaded(PACE))).await;
    engine.telemetry().await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(!engine.task.is_finished());
    let command = Command::Renew { epoch: 1, lease_ms: 1 };
    assert!(matches!(engine.command(&command).await, Reply::Telemetry(_)));
    assert!(engine.ended().await.is_ok());
}

#[tokio::test]
async fn failures_at_the_start_have_their_exit_codes() {
    let dir = tempfile::tempdir().expect("a folder");
    let check = async |options, loader: engine_instance::Loader, code: u8, expected: &str| {
        let error = run_with(options, loader).await.expect_err("it cannot start");
        assert!(error.exit_code() == code && error.to_string().contains(expected), "{}: {error}", error.exit_code());
        assert!(!error.to_string().contains('\n'), "one line");
    };
    let good = || -> engine_instance::Loader { Box::new(|_, _| Ok(loaded(Duration::ZERO))) };

    let mut missing = options(dir.path());
    missing.model = dir.path().join("nothing.gguf");
    check(missing, good(), 2, "nothing.gguf").await;

    let corrupt: engine_instance::Loader = Box::new(|options, _| {
        Err(EngineError::Model { path: options.model.clone(), message: "tensor output.weight is cut off".into() })
    });
    check(options(dir.path()), corrupt, 2, "output.weight is cut off").await;

    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let mut used = options(dir.path());
    used.port = taken.local_addr().expect("bound").port();
    check(used, good(), 3, "is in use").await;

    let engine = TestEngine::start(Duration::ZERO, |_| {}).await;
    let mut second = options(dir.path());
    if let Some(supervision) = &mut second.supervision {
        supervision.control = engine.socket.clone();
    }
    check(second, good(), 1, "another engine answers there").await;
    assert_eq!(engine.telemetry().await.state, EngineState::Ready, "the first one is not disturbed");

    let panics: engine_instance::Loader = Box::new(|_, _| panic!("as a bug would"));
    check(options(dir.path()), panics, 1, "step thread").await;
}

#[tokio::test]
async fn a_stale_socket_is_replaced() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bindable"));
    assert!(path.exists());
    let engine = TestEngine::start_with(
        |options| {
            if let Some(supervision) = &mut options.supervision {
                supervision.control = dir.path().join("fresh.sock");
            }
        },
        || Ok(loaded(Duration::ZERO)),
    )
    .await;
    drop(engine);
    let mut options = options(dir.path());
    if let Some(supervision) = &mut options.supervision {
        supervision.control = path.clone();
        supervision.lease = Duration::from_millis(1);
    }
    let run = run_with(options, Box::new(|_, _| Ok(loaded(Duration::ZERO))));
    assert!(run.await.is_ok());
    assert!(!path.exists());
}
