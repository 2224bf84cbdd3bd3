//! The whole loop, with the gateway's counters given by the test and everything else real.

use crate::stage::{PATIENCE, config, is_alive, record};
use controller_core::action::Reason;
use controller_daemon::actuate::control::ControlClient;
use controller_daemon::actuate::identity::InstancePaths;
use controller_daemon::{Daemon, DaemonConfig, DaemonError, GatewayReading, GatewaySignal, ModelDemand, Registry};
use controller_gateway::RouteTable;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

struct Running {
    demand: Arc<Mutex<ModelDemand>>,
    wake: Arc<Notify>,
    routes: watch::Receiver<Arc<RouteTable>>,
    view: controller_daemon::View,
    shutdown: oneshot::Sender<()>,
    task: JoinHandle<Result<(), DaemonError>>,
}

impl Running {
    async fn begin(config: DaemonConfig, model: &'static str) -> Self {
        let mut daemon = Daemon::start(config).await.unwrap();
        let demand = Arc::new(Mutex::new(ModelDemand::default()));
        let seen = demand.clone();
        daemon.add_signal(GatewaySignal(move || GatewayReading {
            requests_seen_total: None,
            models: [(model.to_owned(), seen.lock().unwrap().clone())].into(),
        }));
        let (shutdown, stopped) = oneshot::channel();
        let (wake, routes, view) = (daemon.wake(), daemon.routes(), daemon.view());
        let task = tokio::spawn(daemon.run(async move { drop(stopped.await) }));
        Self { demand, wake, routes, view, shutdown, task }
    }

    fn hold_one(&self) {
        let mut demand = self.demand.lock().unwrap();
        demand.arrivals_total += 1;
        demand.held = 1;
        self.wake.notify_one();
    }

    async fn until(&mut self, wanted: impl FnMut(&Arc<RouteTable>) -> bool) -> Arc<RouteTable> {
        timeout(PATIENCE, self.routes.wait_for(wanted)).await.expect("the route never came").unwrap().clone()
    }

    async fn end(self) {
        self.shutdown.send(()).unwrap();
        timeout(PATIENCE, self.task).await.expect("the shutdown never ended").unwrap().unwrap();
    }
}

fn register(state_dir: &Path, name: &str) {
    Registry::open(state_dir).unwrap().put_model(&record(state_dir, name)).unwrap();
}

fn is_ready(table: &Arc<RouteTable>, model: &str) -> bool {
    table.endpoints.get(model).is_some_and(|endpoints| endpoints.iter().any(|endpoint| endpoint.ready))
}

#[tokio::test]
async fn a_held_request_wakes_a_model_from_zero_and_shutdown_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    register(folder.path(), "behaves");
    let mut running = Running::begin(config(folder.path()), "behaves").await;
    assert!(running.routes.borrow().models.contains_key("behaves"));
    running.hold_one();
    running.until(|table| is_ready(table, "behaves")).await;
    let instances = running.view.instances();
    let pid = instances.values().next().unwrap().pid;
    assert!(is_alive(pid));
    let decisions = running.view.decisions(Some("behaves"), 100);
    assert!(decisions.iter().any(|decision| decision.want == 1 && !decision.actions.is_empty()), "{decisions:?}");
    running.end().await;
    assert!(!is_alive(pid));
    let registry = Registry::open(folder.path()).unwrap();
    assert!(!registry.decisions(Some("behaves"), 10).unwrap().is_empty());
    assert_eq!(registry.cold_starts().unwrap().len(), 1);
}

#[tokio::test]
async fn engines_left_to_their_lease_are_adopted_by_the_next_controller() {
    let folder = tempfile::tempdir().unwrap();
    register(folder.path(), "behaves");
    let mut leaving = config(folder.path());
    leaving.drain_on_shutdown = false;
    let mut running = Running::begin(leaving, "behaves").await;
    running.hold_one();
    running.until(|table| is_ready(table, "behaves")).await;
    let pid = running.view.instances().values().next().unwrap().pid;
    running.end().await;
    assert!(is_alive(pid));
    let mut running = Running::begin(config(folder.path()), "behaves").await;
    running.until(|table| is_ready(table, "behaves")).await;
    timeout(PATIENCE, async {
        while running.view.instances().values().next().is_none_or(|instance| instance.telemetry.is_none()) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the adopted engine never reported");
    let instances = running.view.instances();
    let adopted: Vec<_> = instances.values().map(|instance| (instance.pid, instance.adopted)).collect();
    assert_eq!(adopted, [(pid, true)]);
    running.end().await;
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn advice_decides_and_touches_nothing() {
    let folder = tempfile::tempdir().unwrap();
    register(folder.path(), "behaves");
    let mut advising = config(folder.path());
    advising.advise = true;
    let running = Running::begin(advising, "behaves").await;
    running.hold_one();
    timeout(PATIENCE, async {
        while running.view.decisions(Some("behaves"), 10).iter().all(|decision| decision.actions.is_empty()) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("no advice came");
    // Ticks go on while the request stays held; advice that nobody follows is neither repeated nor a failure.
    let seen_ns = |running: &Running| running.view.snapshot().map_or(0, |snapshot| snapshot.now_ns);
    let begun_ns = seen_ns(&running);
    timeout(PATIENCE, async {
        while seen_ns(&running) < begun_ns + 6_000_000_000 {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("the ticks ended");
    let reasons: Vec<_> = running.view.decisions(Some("behaves"), 10).iter().map(|decision| decision.reason).collect();
    assert_eq!(reasons, [Reason::HeldAtZero]);
    assert!(running.view.instances().is_empty());
    running.end().await;
    assert_eq!(std::fs::read_dir(folder.path().join("engines")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(folder.path().join("logs")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_model_registered_or_removed_by_another_process_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let mut running = Running::begin(config(folder.path()), "behaves").await;
    assert!(running.routes.borrow().models.is_empty());
    register(folder.path(), "behaves");
    running.until(|table| table.models.contains_key("behaves")).await;
    running.hold_one();
    running.until(|table| is_ready(table, "behaves")).await;
    let pid = running.view.instances().values().next().unwrap().pid;
    Registry::open(folder.path()).unwrap().remove_model("behaves").unwrap();
    running.until(|table| table.models.is_empty()).await;
    timeout(PATIENCE, async {
        while is_alive(pid) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the engine of a removed model lives on");
    running.end().await;
}

#[tokio::test]
async fn a_killed_engine_is_replaced_while_demand_lasts() {
    let folder = tempfile::tempdir().unwrap();
    register(folder.path(), "behaves");
    let mut running = Running::begin(config(folder.path()), "behaves").await;
    running.hold_one();
    let first = running.until(|table| is_ready(table, "behaves")).await.endpoints["behaves"][0].instance.clone();
    let pid = running.view.instances()[&first].pid;
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let is_other = |table: &Arc<RouteTable>| {
        let endpoints = table.endpoints.get("behaves").map(Vec::as_slice).unwrap_or_default();
        endpoints.iter().any(|endpoint| endpoint.ready && endpoint.instance != first)
    };
    running.until(is_other).await;
    running.end().await;
}

#[tokio::test]
async fn a_replaced_revision_is_drained_and_the_new_one_serves() {
    let folder = tempfile::tempdir().unwrap();
    register(folder.path(), "behaves");
    let mut running = Running::begin(config(folder.path()), "behaves").await;
    running.hold_one();
    let first = running.until(|table| is_ready(table, "behaves")).await.endpoints["behaves"][0].instance.clone();
    let mut other = record(folder.path(), "behaves");
    other.revision = "another".to_owned();
    Registry::open(folder.path()).unwrap().put_model(&other).unwrap();
    let table = running.until(|table| table.models["behaves"].revision == "another").await;
    let stale = table.endpoints.get("behaves").map(Vec::as_slice).unwrap_or_default();
    assert!(stale.iter().all(|endpoint| endpoint.instance != first), "token ids went to the old revision: {stale:?}");
    running.hold_one();
    running.until(|table| is_ready(table, "behaves")).await;
    let serving = running.view.instances();
    let ready = serving.values().filter(|instance| instance.revision == "another" && instance.ready_at_ns.is_some());
    assert_eq!(ready.count(), 1, "{serving:?}");
    running.end().await;
}

#[tokio::test]
async fn an_engine_that_a_person_drains_gets_no_more_requests() {
    let folder = tempfile::tempdir().unwrap();
    register(folder.path(), "behaves");
    let mut running = Running::begin(config(folder.path()), "behaves").await;
    running.hold_one();
    let first = running.until(|table| is_ready(table, "behaves")).await.endpoints["behaves"][0].instance.clone();
    let socket = InstancePaths::new(folder.path(), &first).socket;
    ControlClient::connect(&socket).await.unwrap().drain(1, 5_000).await.unwrap();
    let is_gone = |table: &Arc<RouteTable>| {
        let endpoints = table.endpoints.get("behaves").map(Vec::as_slice).unwrap_or_default();
        endpoints.iter().all(|endpoint| endpoint.instance != first)
    };
    running.until(is_gone).await;
    running.end().await;
}

#[tokio::test]
async fn one_serve_per_state_folder() {
    let folder = tempfile::tempdir().unwrap();
    let _first = Daemon::start(config(folder.path())).await.unwrap();
    let message = Daemon::start(config(folder.path())).await.err().unwrap().to_string();
    assert!(message.contains(&format!("pid {}", std::process::id())), "{message}");
    assert!(controller_daemon::ServeLock::is_held(folder.path()));
}

#[tokio::test]
async fn a_state_folder_too_deep_for_sockets_is_refused_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("x".repeat(100));
    let message = Daemon::start(config(&deep)).await.err().unwrap().to_string();
    assert!(message.contains("too long for control sockets"), "{message}");
    assert!(!deep.exists());
}
