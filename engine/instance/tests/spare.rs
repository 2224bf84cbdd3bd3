//! A spare process: what it is before it has a model, how it becomes an engine, and that it does so once.

mod common;

use common::{Controller, MODEL, PATIENCE, TestEngine, loaded, options, reason, request};
use engine_instance::{EngineError, SpareOptions, run_spare_with};
use engine_wire::control::{Command, EngineState, HeadSpec, PROTOCOL, Reply};
use engine_wire::hop::FinishReason;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::task::JoinHandle;

const LEASE: Duration = Duration::from_secs(600);

/// A spare process in this one. It becomes the engine of `common::options` on the argument `digest`.
struct Spare {
    dir: TempDir,
    task: JoinHandle<Result<(), EngineError>>,
}

impl Spare {
    async fn start(lease: Duration) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let control = dir.path().join("spare.sock");
        let spare = SpareOptions { instance: "spare-1".into(), control: control.clone(), lease };
        let folder = dir.path().to_path_buf();
        let parse = move |args: &[String]| match args {
            [word] if word == "digest" => Ok(options(&folder)),
            [word] if word == "alone" => Ok(engine_instance::EngineOptions { supervision: None, ..options(&folder) }),
            _ => Err(format!("what is {args:?}?")),
        };
        let load = |_: &_, _: &[u32]| Ok(loaded(Duration::ZERO));
        let task = tokio::spawn(run_spare_with(spare, Box::new(parse), Box::new(load)));
        let began = Instant::now();
        while !control.exists() {
            assert!(began.elapsed() < PATIENCE && !task.is_finished(), "it does not start");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Self { dir, task }
    }

    fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("spare.sock")
    }

    async fn controller(&self) -> Controller {
        Controller::connect(&self.socket()).await
    }

    async fn ended(self) {
        let socket = self.socket();
        let ended = tokio::time::timeout(PATIENCE, self.task).await.expect("it ends").expect("no panic");
        assert!(ended.is_ok(), "{ended:?}");
        assert!(!socket.exists(), "its socket is left behind");
    }
}

fn adopt(word: &str) -> Command {
    Command::Adopt { epoch: 1, args: vec![word.to_owned()] }
}

fn is_refused(reply: &Reply, why: &str) -> bool {
    matches!(reply, Reply::Refused { message } if message.contains(why))
}

#[tokio::test]
async fn it_waits_and_becomes_an_engine_once() {
    let spare = Spare::start(LEASE).await;
    let mut controller = spare.controller().await;
    let Reply::Hello(hello) = controller.send(&Command::Hello { protocol: PROTOCOL }).await else { panic!("no hello") };
    assert!(hello.spare && hello.instance == "spare-1" && hello.model.is_empty() && hello.port != 0);
    let renew = Command::Renew { epoch: 1, lease_ms: 600_000 };
    assert!(matches!(controller.send(&renew).await, Reply::Spare(report) if report.resident_bytes > 0));
    // Heads that are not there are no reason to end.
    let head = HeadSpec { store: spare.dir.path().join("store"), revision: "none".into() };
    assert_eq!(controller.send(&Command::Prepare { epoch: 1, heads: vec![head] }).await, Reply::Done);
    assert!(is_refused(&controller.send(&Command::Adapters { epoch: 1, adapters: vec![] }).await, "no model"));
    // What cannot be taken leaves it as it was, and so does a controller of the past.
    assert!(is_refused(&controller.send(&adopt("nonsense")).await, "what is"));
    assert!(is_refused(&controller.send(&adopt("alone")).await, "--control"));
    let late = Command::Adopt { epoch: 0, args: vec!["digest".into()] };
    assert!(is_refused(&controller.send(&late).await, "epoch 1"));
    assert_eq!(controller.send(&adopt("digest")).await, Reply::Done);

    let Spare { dir, task } = spare;
    assert!(!dir.path().join("spare.sock").exists(), "it is still found as a spare process");
    let engine = TestEngine { socket: dir.path().join("one.sock"), dir, port: hello.port, task };
    let known = engine.hello().await;
    assert_eq!(
        (known.instance.as_str(), known.model.as_str(), known.port, known.spare),
        ("one", MODEL, hello.port, false)
    );
    let telemetry = engine.until(|telemetry| telemetry.state == EngineState::Ready).await;
    assert!(telemetry.phases.spare && telemetry.phases.began_at_ns > hello.started_at_ns);
    let (tokens, end) = engine.generate(&request(&[1, 2, 3], 8)).await.collect().await;
    assert_eq!((tokens.len(), reason(&end)), (8, Some(FinishReason::Length)));
    assert!(is_refused(&controller.send(&adopt("digest")).await, "no spare"));
    assert!(is_refused(&engine.command(&Command::Prepare { epoch: 9, heads: vec![] }).await, "no spare"));
    assert_eq!(engine.command(&Command::Drain { epoch: 9, deadline_ms: 60_000 }).await, Reply::Done);
    let socket = engine.socket.clone();
    assert!(engine.ended().await.is_ok());
    assert!(!socket.exists(), "the engine's socket is left behind");
}

#[tokio::test]
async fn without_a_controller_it_ends_with_its_lease() {
    Spare::start(Duration::from_millis(50)).await.ended().await;
}

#[tokio::test]
async fn it_ends_when_it_is_told_to() {
    let spare = Spare::start(LEASE).await;
    let drain = Command::Drain { epoch: 1, deadline_ms: 0 };
    assert_eq!(spare.controller().await.send(&drain).await, Reply::Done);
    spare.ended().await;
}

#[tokio::test]
async fn a_socket_that_somebody_answers_at_is_not_taken() {
    let spare = Spare::start(LEASE).await;
    let taken = spare.dir.path().join("one.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&taken).expect("bound");
    assert!(is_refused(&spare.controller().await.send(&adopt("digest")).await, "another engine"));
    assert!(Path::new(&spare.socket()).exists());
    assert!(matches!(
        spare.controller().await.send(&Command::Hello { protocol: PROTOCOL }).await,
        Reply::Hello(hello) if hello.spare
    ));
    spare.task.abort();
}
