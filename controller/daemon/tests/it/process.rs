//! The process Actuator: starts, drains, escalates, and never acts twice or out of turn.

use crate::stage::{Stage, is_alive, start_of};
use controller_core::action::Action;
use controller_daemon::actuate::{ActuateError, Actuator, Applied, EngineEventKind, ExitReason};

fn pid_of(applied: Applied) -> u32 {
    match applied {
        Applied::Started { pid, .. } => pid,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_engine_starts_serves_drains_and_leaves_nothing_behind() {
    let mut stage = Stage::new(&["behaves"]);
    let pid = pid_of(stage.start("i-1", "behaves").unwrap());
    let port = stage
        .next(|_, kind| match kind {
            EngineEventKind::Listening { port } => Some(*port),
            _ => None,
        })
        .await;
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    stage.ready("i-1").await;
    let resident = stage
        .next(|_, kind| match kind {
            EngineEventKind::Telemetry(telemetry) => Some(telemetry.resident_bytes),
            _ => None,
        })
        .await;
    assert_eq!(resident, 1 << 20);
    assert_eq!(stage.engine_files(), ["i-1.json", "i-1.sock"]);
    assert_eq!(stage.drain("i-1", 5_000).unwrap(), Applied::Draining);
    assert_eq!(stage.exit("i-1").await.reason, ExitReason::Drained);
    assert!(!is_alive(pid) && !std::path::Path::new(&format!("/proc/{pid}")).exists(), "a zombie was left");
    assert!(stage.engine_files().is_empty(), "{:?}", stage.engine_files());
    let log = std::fs::read_to_string(stage.folder.path().join("logs/i-1.log")).unwrap();
    assert_eq!(log, "scripted engine: behaves\n");
}

#[tokio::test]
async fn applying_twice_changes_nothing() {
    let mut stage = Stage::new(&["behaves"]);
    let pid = pid_of(stage.start("i-1", "behaves").unwrap());
    assert_eq!(stage.start("i-1", "behaves").unwrap(), Applied::Nothing);
    // The same instance under another key is known by its identity.
    assert_eq!(stage.apply("other", start_of("i-1", "behaves")).unwrap(), Applied::Nothing);
    stage.ready("i-1").await;
    assert_eq!(stage.drain("i-1", 5_000).unwrap(), Applied::Draining);
    assert_eq!(stage.drain("i-1", 1).unwrap(), Applied::Nothing);
    stage.exit("i-1").await;
    assert_eq!(stage.start("i-1", "behaves").unwrap(), Applied::Nothing, "a late repetition revives nothing");
    assert_eq!(stage.drain("never-seen", 1).unwrap(), Applied::Nothing);
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn only_the_own_epoch_acts() {
    let mut stage = Stage::new(&["behaves"]);
    for epoch in [0, 2] {
        let action = Action { epoch, key: "k".to_owned(), kind: start_of("i-1", "behaves") };
        let refused = stage.actuator.apply(&action, &stage.models).unwrap_err();
        assert!(matches!(refused, ActuateError::Fenced { .. }), "{refused}");
    }
    assert!(stage.engine_files().is_empty());
}

#[tokio::test]
async fn a_stubborn_engine_is_killed_at_its_deadline() {
    let mut stage = Stage::new(&["stubborn"]);
    let pid = pid_of(stage.start("i-1", "stubborn").unwrap());
    stage.ready("i-1").await;
    stage.drain("i-1", 50).unwrap();
    let exit = stage.exit("i-1").await;
    assert_eq!(exit.reason, ExitReason::Drained);
    assert!(exit.detail.contains("SIGKILL"), "{exit:?}");
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn exits_say_why() {
    let mut stage = Stage::new(&["fails", "crashes", "behaves"]);
    stage.start("f-1", "fails").unwrap();
    let message = stage
        .next(|_, kind| match kind {
            EngineEventKind::Failed { message } => Some(message.clone()),
            _ => None,
        })
        .await;
    assert_eq!(message, "tensor blk.0.attn_q.weight is truncated");
    assert_eq!(stage.exit("f-1").await.reason, ExitReason::Crashed);
    stage.start("c-1", "crashes").unwrap();
    let exit = stage.exit("c-1").await;
    assert_eq!((exit.reason, exit.detail.as_str()), (ExitReason::Crashed, "exit code 7"));
    let pid = pid_of(stage.start("b-1", "behaves").unwrap());
    stage.ready("b-1").await;
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert_eq!(stage.exit("b-1").await.reason, ExitReason::Killed);
    assert!(stage.engine_files().is_empty());
}

#[tokio::test]
async fn a_start_that_cannot_be_is_refused_in_words() {
    let mut stage = Stage::new(&["behaves"]);
    let unknown = stage.start("i-1", "absent").unwrap_err().to_string();
    assert!(unknown.contains("`absent` is not registered"), "{unknown}");
    let path = stage.models["behaves"].path.clone();
    std::fs::write(&path, "other content").unwrap();
    let changed = stage.start("i-2", "behaves").unwrap_err().to_string();
    assert!(changed.contains("has changed since it was registered"), "{changed}");
    std::fs::remove_file(&path).unwrap();
    let missing = stage.start("i-3", "behaves").unwrap_err().to_string();
    assert!(missing.contains("cannot be read"), "{missing}");
    assert!(stage.engine_files().is_empty());
}
