//! Engines that are not ours as processes: a real HTTP server of Python's that has a file where the health path is.

use crate::stage::{Stage, is_alive, start_of};
use controller_daemon::actuate::{ActuateError, Applied, EngineEventKind, ExitReason};
use controller_daemon::foreign::{EngineAsk, EngineKind, EngineSpec};
use controller_gateway::EndpointLoad;
use engine_wire::control::EngineState;
use rustix::process::{Pid, Signal, kill_process_group};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn spec(command: &str) -> EngineSpec {
    let command = Some(command.to_owned());
    let ask = EngineAsk {
        kind: EngineKind::Custom,
        command,
        health: None,
        context_tokens: None,
        slots: Some(2),
        memory_bytes: None,
    };
    EngineSpec::new(&ask).unwrap()
}

/// A stage whose model `m` this command serves; `{folder}` in it is the state folder.
fn stage(command: &str) -> Stage {
    let mut stage = Stage::new(&["m"]);
    let command = command.replace("{folder}", &stage.folder.path().to_string_lossy());
    stage.models.get_mut("m").unwrap().engine = Some(spec(&command));
    stage
}

const SERVER: &str = "python3 -m http.server {port} --bind 127.0.0.1 --directory {folder}";

/// A stage whose engine answers its health path.
fn healthy() -> Stage {
    let stage = stage(SERVER);
    std::fs::write(stage.folder.path().join("health"), "ok").unwrap();
    stage
}

/// Ends a group that a failed test leaves behind.
struct Group(u32);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_raw(self.0 as i32).unwrap(), Signal::KILL);
    }
}

fn start(stage: &mut Stage) -> Group {
    match stage.start("i-1", "m").unwrap() {
        Applied::Started { pid, .. } => Group(pid),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn it_is_ready_by_its_health_and_ends_when_nothing_is_at_it() {
    let mut stage = healthy();
    let busy = Arc::new(AtomicBool::new(true));
    let load = busy.clone();
    let work = EndpointLoad { running: 3, busy: Duration::from_secs(2), output_tokens_total: 7, ..Default::default() };
    stage.actuator.set_load(Arc::new(move |_| load.load(Ordering::SeqCst).then_some(work)));
    let group = start(&mut stage);
    let port = stage
        .next(|_, kind| match kind {
            EngineEventKind::Listening { port } => Some(*port),
            _ => None,
        })
        .await;
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    stage.ready("i-1").await;
    let cores = std::fs::read_to_string(format!("/proc/{}/status", group.0)).unwrap();
    assert!(cores.lines().any(|line| line == "Cpus_allowed_list:\t0"), "{cores}");
    stage.drain("i-1", 20_000).unwrap();
    let told = |_: &str, kind: &EngineEventKind| match kind {
        EngineEventKind::Telemetry(told) if told.state == EngineState::Draining => Some(told.clone()),
        _ => None,
    };
    for _ in 0..3 {
        let told = stage.next(told).await;
        assert_eq!((told.running, told.waiting, told.output_tokens_total), (2, 1, 7));
        assert!(told.busy_ns_total == 2_000_000_000 && told.resident_bytes > 1 << 20, "{told:?}");
    }
    assert!(is_alive(group.0), "it was stopped with requests at it");
    busy.store(false, Ordering::SeqCst);
    assert_eq!(stage.exit("i-1").await.reason, ExitReason::Drained);
    assert!(stage.engine_files().is_empty(), "{:?}", stage.engine_files());
}

#[tokio::test]
async fn a_request_that_never_ends_ends_with_the_deadline() {
    let mut stage = healthy();
    stage.actuator.set_load(Arc::new(|_| Some(EndpointLoad { running: 1, ..Default::default() })));
    let _group = start(&mut stage);
    stage.ready("i-1").await;
    stage.drain("i-1", 100).unwrap();
    assert_eq!(stage.exit("i-1").await.reason, ExitReason::Drained);
}

#[tokio::test]
async fn the_next_controller_adopts_it() {
    let mut old = healthy();
    let group = start(&mut old);
    old.ready("i-1").await;
    let mut new = old.succeeded();
    let adopted = new.actuator.adopt().await.unwrap();
    assert_eq!((adopted.len(), adopted[0].pid, adopted[0].stopping), (1, group.0, false));
    new.ready("i-1").await;
    assert!(is_alive(group.0));
    new.drain("i-1", 5_000).unwrap();
    assert_eq!(new.exit("i-1").await.reason, ExitReason::Drained);
    assert!(!is_alive(group.0) && new.engine_files().is_empty());
}

#[tokio::test]
async fn its_workers_go_with_it() {
    let mut stage = stage(
        "sh -c 'sleep 60 & echo $! > {folder}/worker; exec python3 -m http.server {port} --bind 127.0.0.1 --directory {folder}'",
    );
    std::fs::write(stage.folder.path().join("health"), "ok").unwrap();
    let _group = start(&mut stage);
    stage.ready("i-1").await;
    let worker = std::fs::read_to_string(stage.folder.path().join("worker")).unwrap().trim().parse().unwrap();
    assert!(is_alive(worker));
    stage.drain("i-1", 5_000).unwrap();
    stage.exit("i-1").await;
    // It was told to end; the kernel may take a moment.
    for _ in 0..1_000 {
        if !is_alive(worker) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the worker was left behind");
}

#[tokio::test]
async fn one_that_never_is_ready_is_given_up_and_says_what_it_answered() {
    // Its health path is not there, so it answers 404 for ever.
    let mut stage = Stage::with_start_timeout_ms(&["m"], 1_000);
    let command = SERVER.replace("{folder}", &stage.folder.path().to_string_lossy());
    stage.models.get_mut("m").unwrap().engine = Some(spec(&command));
    let _group = start(&mut stage);
    let seen = Mutex::new(None);
    let exit = stage
        .next(|_, kind| match kind {
            EngineEventKind::Failed { message } => {
                *seen.lock().unwrap() = Some(message.clone());
                None
            }
            EngineEventKind::Exited(exit) => Some(exit.clone()),
            _ => None,
        })
        .await;
    let message = seen.into_inner().unwrap().expect("no word of why");
    assert!(message.contains("/health within 0.95 s (last: status 404)"), "{message}");
    assert_eq!((exit.reason, exit.detail.as_str()), (ExitReason::Crashed, "SIGKILL from us: it did not become ready"));
}

#[tokio::test]
async fn a_missing_program_is_named() {
    let mut stage = stage("no-such-engine --port {port}");
    let error = stage.apply("start", start_of("i-1", "m")).unwrap_err();
    assert!(matches!(error, ActuateError::NoProgram { .. }), "{error:?}");
    let message = error.to_string();
    assert!(message.contains("`no-such-engine` of the engine custom is not found"), "{message}");
    assert!(stage.engine_files().is_empty());
}
