//! What a controller finds of its predecessor: engines to adopt, engines to stop, files of the dead.

use crate::stage::{Stage, is_alive};
use controller_daemon::actuate::control::ControlClient;
use controller_daemon::actuate::identity::{InstanceFile, InstancePaths, start_ticks};
use controller_daemon::actuate::{Applied, EngineEventKind, ExitReason};
use controller_witness::{Witness, WitnessOptions};
use std::process::{Child, Command};
use std::sync::Arc;

fn bystander() -> Child {
    Command::new("sleep").arg("60").spawn().unwrap()
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn a_running_engine_is_adopted_and_obeys_the_new_controller_alone() {
    let mut old = Stage::new(&["behaves"]);
    let Applied::Started { pid, .. } = old.start("i-1", "behaves").unwrap() else { panic!() };
    old.ready("i-1").await;
    let mut new = old.succeeded();
    let adopted = new.actuator.adopt().await.unwrap();
    assert_eq!(adopted.len(), 1);
    assert_eq!((adopted[0].pid, adopted[0].model.as_str()), (pid, "behaves"));
    assert_eq!(adopted[0].placement.bytes(), 2 << 20);
    assert!(adopted[0].port.is_some() && adopted[0].ready_at_ns.is_some());
    // The first report shows that the engine took the new epoch.
    new.next(|_, kind| matches!(kind, EngineEventKind::Telemetry(_)).then_some(())).await;
    let socket = InstancePaths::new(new.folder.path(), "i-1").socket;
    let mut ghost = ControlClient::connect(&socket).await.unwrap();
    let refused = ghost.drain(1, 0).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied, "{refused}");
    assert!(is_alive(pid));
    new.drain("i-1", 1_000).unwrap();
    assert_eq!(new.exit("i-1").await.reason, ExitReason::Drained);
    assert!(new.engine_files().is_empty());
}

#[tokio::test]
async fn a_controller_that_was_thought_dead_learns_that_it_is_not_in_charge() {
    let mut old = Stage::new(&["behaves"]);
    old.start("i-1", "behaves").unwrap();
    old.ready("i-1").await;
    let socket = InstancePaths::new(old.folder.path(), "i-1").socket;
    ControlClient::connect(&socket).await.unwrap().renew(9, 5_000).await.unwrap();
    let message = old
        .next(|_, kind| match kind {
            EngineEventKind::Fenced { message } => Some(message.clone()),
            _ => None,
        })
        .await;
    assert!(message.contains("epoch 1"), "{message}");
}

#[tokio::test]
async fn a_reused_pid_is_left_alone_and_its_stale_files_go() {
    let mut stage = Stage::new(&["behaves"]);
    let child = bystander();
    let paths = InstancePaths::new(stage.folder.path(), "i-1");
    let ticks = start_ticks(child.id()).unwrap();
    let file = InstanceFile::new("i-1", "behaves", "r", (child.id(), ticks + 1), vec![0], 1, 1);
    file.write(&paths.file).unwrap();
    std::fs::write(&paths.socket, "").unwrap();
    assert_eq!(stage.actuator.adopt().await.unwrap(), []);
    assert!(stage.engine_files().is_empty(), "{:?}", stage.engine_files());
    assert!(is_alive(child.id()));
    end(child);
}

#[tokio::test]
async fn files_that_belong_to_nobody_are_removed() {
    let mut stage = Stage::new(&["behaves"]);
    let engines = stage.folder.path().join("engines");
    std::fs::write(engines.join("torn.json"), "{\"version\": 1, ").unwrap();
    std::fs::write(engines.join("half.json.partial"), "").unwrap();
    std::fs::write(engines.join("orphan.sock"), "").unwrap();
    assert_eq!(stage.actuator.adopt().await.unwrap(), []);
    assert!(stage.engine_files().is_empty(), "{:?}", stage.engine_files());
}

#[tokio::test]
async fn an_engine_known_by_its_socket_alone_is_adopted() {
    let mut old = Stage::new(&["behaves"]);
    let Applied::Started { pid, .. } = old.start("i-1", "behaves").unwrap() else { panic!() };
    old.ready("i-1").await;
    std::fs::remove_file(InstancePaths::new(old.folder.path(), "i-1").file).unwrap();
    let mut new = old.succeeded();
    let adopted = new.actuator.adopt().await.unwrap();
    assert_eq!(adopted.iter().map(|engine| engine.pid).collect::<Vec<_>>(), [pid]);
    new.drain("i-1", 1_000).unwrap();
    new.exit("i-1").await;
}

#[tokio::test]
async fn an_engine_of_another_protocol_is_stopped() {
    let mut old = Stage::new(&["old"]);
    let Applied::Started { pid, .. } = old.start("i-1", "old").unwrap() else { panic!() };
    old.ready("i-1").await;
    let mut new = old.succeeded();
    let found = new.actuator.adopt().await.unwrap();
    assert_eq!(found.iter().map(|engine| engine.port).collect::<Vec<_>>(), [None]);
    assert_eq!(new.exit("i-1").await.reason, ExitReason::Drained);
    assert!(!is_alive(pid));
}

/// An engine that is nobody's child here, as after the controller that started it was killed.
fn orphan(stage: &Stage, instance: &str) -> u32 {
    let paths = InstancePaths::new(stage.folder.path(), instance);
    let script = format!(
        "{} engine --name behaves --instance {instance} --revision r --control {} --lease-ms 5000 --cores 0 \
         >/dev/null 2>&1 & echo $!",
        crate::stage::engine_exe().display(),
        paths.socket.display()
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    let pid = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    let file = InstanceFile::new(instance, "behaves", "r", (pid, start_ticks(pid).unwrap()), vec![0], 1, 1);
    file.write(&paths.file).unwrap();
    pid
}

#[tokio::test]
async fn how_an_adopted_engine_ended_is_told_by_the_kernel() {
    let witness = Arc::new(Witness::attach(WitnessOptions::default()).unwrap());
    println!("{}", witness.summary());
    let sees_exits = witness.probes().iter().any(|probe| probe.probe == "process_exit" && probe.attached);
    let mut stage = Stage::new(&["behaves"]);
    stage.actuator.set_witness(&witness);
    let pid = orphan(&stage, "i-1");
    assert_eq!(stage.actuator.adopt().await.unwrap().len(), 1);
    stage.next(|_, kind| matches!(kind, EngineEventKind::Telemetry(_)).then_some(())).await;
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    let begun = std::time::Instant::now();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let exit = stage.exit("i-1").await;
    println!("{exit:?} known after {:?}", begun.elapsed());
    // Without the probe an end that nobody asked for counts as a crash.
    let expected = if sees_exits { ExitReason::Killed } else { ExitReason::Crashed };
    assert_eq!(exit.reason, expected, "{exit:?}");
    assert!(stage.engine_files().is_empty());
}
