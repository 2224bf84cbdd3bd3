//! What the tests share: a state folder, a registered model, and engines that end with the test.

use controller_core::action::{Action, ActionKind};
use controller_core::snapshot::{DeviceSlice, Placement, Shard};
use controller_daemon::actuate::{
    ActuateError, Actuator, Applied, EngineEvent, EngineEventKind, Models, ProcessActuator,
};
use controller_daemon::{ComputeMode, DaemonConfig, ModelRecord};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};
use tempfile::TempDir;
use tokio::sync::mpsc;

/// Longest that anything in these tests may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The scripted engine, built beside the tests.
pub fn engine_exe() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let exe = tests.parent().unwrap().parent().unwrap().join("examples/scripted_engine");
    assert!(exe.exists(), "{} is missing: run `cargo test`, which builds it", exe.display());
    exe
}

pub fn config(state_dir: &Path) -> DaemonConfig {
    DaemonConfig {
        state_dir: state_dir.to_path_buf(),
        cores: vec![0, 1],
        cores_per_instance: 1,
        memory_budget_bytes: 8 << 30,
        segments: state_dir.join("segments"),
        kernel_layout: "any".to_owned(),
        idle_weights_bytes: 1 << 30,
        kv_bytes: 1 << 20,
        // Short, so that engines which a failed test leaves behind end by themselves.
        lease_ms: 5_000,
        drain_deadline_ms: 1_000,
        engine_exe: engine_exe(),
        compute: ComputeMode::Fast,
        kv_type: None,
        spares: Some(0),
        advise: false,
        drain_on_shutdown: true,
        policy: controller_core::Policy::default(),
    }
}

/// A registry row for a file that only has to exist: the scripted engine opens none.
pub fn record(state_dir: &Path, name: &str) -> ModelRecord {
    let path = state_dir.join(format!("{}.gguf", name.replace('/', "-")));
    std::fs::write(&path, name).unwrap();
    let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
    ModelRecord {
        name: name.to_owned(),
        revision: format!("revision-of-{name}"),
        created_unix_s: 1,
        file_bytes: name.len() as u64,
        modified_unix_ns: modified.duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64,
        architecture: "llama".to_owned(),
        parameters: 1,
        context_tokens: 128,
        instance_bytes: 1 << 20,
        adapters: Vec::new(),
        quantise: None,
        head: None,
        engine: None,
        path,
    }
}

/// An Actuator on its own, with the events of its engines.
pub struct Stage {
    pub folder: Arc<TempDir>,
    pub actuator: ProcessActuator,
    pub events: mpsc::Receiver<EngineEvent>,
    pub models: Models,
    pub epoch: u64,
}

impl Stage {
    pub fn new(scripts: &[&str]) -> Self {
        Self::in_folder(Arc::new(tempfile::tempdir().unwrap()), 1, scripts)
    }

    pub fn in_folder(folder: Arc<TempDir>, epoch: u64, scripts: &[&str]) -> Self {
        let config = config(folder.path());
        Self::configured(folder, epoch, scripts, config)
    }

    /// One whose engines have so long for becoming ready.
    pub fn with_start_timeout_ms(scripts: &[&str], start_timeout_ms: u64) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let mut config = config(folder.path());
        config.policy.start_timeout_ms = start_timeout_ms;
        Self::configured(folder, 1, scripts, config)
    }

    fn configured(folder: Arc<TempDir>, epoch: u64, scripts: &[&str], config: DaemonConfig) -> Self {
        let (sender, events) = mpsc::channel(64);
        let actuator = ProcessActuator::new(Arc::new(config), epoch, sender).unwrap();
        let models = scripts.iter().map(|name| ((*name).to_owned(), record(folder.path(), name))).collect();
        Self { folder, actuator, events, models, epoch }
    }

    /// The same folder under the next controller, as after a kill -9: this one's tasks are gone, its engines live.
    pub fn succeeded(self) -> Self {
        let scripts: Vec<String> = self.models.keys().cloned().collect();
        let Self { folder, actuator, epoch, .. } = self;
        drop(actuator);
        Self::in_folder(folder, epoch + 1, &scripts.iter().map(String::as_str).collect::<Vec<_>>())
    }

    pub fn apply(&mut self, key: &str, kind: ActionKind) -> Result<Applied, ActuateError> {
        self.actuator.apply(&Action { epoch: self.epoch, key: key.to_owned(), kind }, &self.models)
    }

    pub fn start(&mut self, instance: &str, script: &str) -> Result<Applied, ActuateError> {
        self.apply(&format!("start-{instance}"), start_of(instance, script))
    }

    pub fn drain(&mut self, instance: &str, deadline_ms: u64) -> Result<Applied, ActuateError> {
        self.apply(&format!("drain-{instance}"), ActionKind::Drain { instance: instance.to_owned(), deadline_ms })
    }

    /// The next event that `wanted` makes something of; others are passed over.
    pub async fn next<T>(&mut self, wanted: impl Fn(&str, &EngineEventKind) -> Option<T>) -> T {
        let search = async {
            while let Some(event) = self.events.recv().await {
                if let Some(found) = wanted(&event.instance, &event.kind) {
                    return found;
                }
            }
            panic!("the events ended");
        };
        tokio::time::timeout(PATIENCE, search).await.expect("the event never came")
    }

    pub async fn ready(&mut self, instance: &str) {
        self.next(|id, kind| (id == instance && matches!(kind, EngineEventKind::Ready { .. })).then_some(())).await;
    }

    pub async fn exit(&mut self, instance: &str) -> controller_daemon::actuate::Exit {
        let exit = |id: &str, kind: &EngineEventKind| match kind {
            EngineEventKind::Exited(exit) if id == instance => Some(exit.clone()),
            _ => None,
        };
        self.next(exit).await
    }

    pub fn engine_files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path().join("engines")).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

pub fn start_of(instance: &str, script: &str) -> ActionKind {
    ActionKind::Start {
        instance: instance.to_owned(),
        model: script.to_owned(),
        revision: format!("revision-of-{script}"),
        placement: Placement { shards: vec![Shard { device: DeviceSlice::Cores(vec![0]), bytes: 2 << 20 }] },
    }
}

/// Whether a process is there and not a zombie.
pub fn is_alive(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
}
