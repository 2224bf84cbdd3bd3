//! Putting the daemon together: lock, database, epoch, adoption. What the binary has to bring along are
//! the Signals and whoever watches ports; what it gets are the routes, the admin API's view and the loop.

use crate::actuate::{ActuateError, EngineEvent, LoadOf, ProcessActuator};
use crate::catalog::CatalogWatch;
use crate::clock::monotonic_ns;
use crate::config::{ConfigError, DaemonConfig};
use crate::fits::{Fits, Keeping};
use crate::fleet::Fleet;
use crate::lock::{LockError, ServeLock};
use crate::measure::Gauges;
use crate::observe::Signal;
use crate::observe::adapters::AdapterDemand;
use crate::observe::engine_view::EngineViews;
use crate::observe::reconcile::Reconciler;
use crate::registry::{HistoryWriter, Registry, RegistryError};
use crate::starts::ColdStarts;
use crate::tiers;
use crate::view::{View, ViewPublisher};
use crate::weights::Keeper;
use controller_core::State;
use controller_core::action::Reason;
use controller_core::snapshot::ModelName;
use controller_gateway::RouteTable;
use controller_witness::{PortRole, Witness};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use thiserror::Error;
use tokio::sync::{Notify, mpsc, watch};

/// Events of engines that may wait for the loop.
const EVENT_QUEUE: usize = 1_024;
/// Bytes that a Unix socket's path may have (`sun_path` less its final zero).
const SOCKET_PATH_LIMIT_BYTES: usize = 107;

/// Why the daemon did not start, or stopped.
#[derive(Debug, Error)]
pub enum DaemonError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Actuate(#[from] ActuateError),
    #[error("the path of the state folder {} is too long for control sockets by {excess} bytes; choose a shorter one with --state", path.display())]
    StatePathTooLong { path: PathBuf, excess: usize },
    #[error("an engine obeys a newer controller ({message}); this one stops and touches nothing more")]
    Fenced { message: String },
}

/// Who counts at ports: the kernel witness, where there is one.
pub trait PortWatch: Send {
    /// An engine listens on this port.
    fn watch(&mut self, port: u16, role: PortRole);
    /// It does no more.
    fn unwatch(&mut self, port: u16);
}

/// The kernel witness watches them.
struct WitnessPorts(Arc<Witness>);

impl PortWatch for WitnessPorts {
    fn watch(&mut self, port: u16, role: PortRole) {
        if let Err(error) = self.0.watch(port, role) {
            tracing::warn!(port, %error, "an engine's port is not watched");
        }
    }

    fn unwatch(&mut self, port: u16) {
        self.0.unwatch(port);
    }
}

/// Watches nothing: no probes.
pub struct NoPortWatch;

impl PortWatch for NoPortWatch {
    fn watch(&mut self, _port: u16, _role: PortRole) {}
    fn unwatch(&mut self, _port: u16) {}
}

/// The controller of one node. [`Daemon::run`] is its loop.
pub struct Daemon {
    pub(crate) config: Arc<DaemonConfig>,
    pub(crate) epoch: u64,
    pub(crate) state: State,
    pub(crate) fits: Fits,
    pub(crate) keeping: Keeping,
    pub(crate) fleet: Fleet,
    pub(crate) actuator: ProcessActuator,
    pub(crate) events: mpsc::Receiver<EngineEvent>,
    pub(crate) catalog: CatalogWatch,
    pub(crate) signals: Vec<Box<dyn Signal>>,
    pub(crate) ports: Box<dyn PortWatch>,
    pub(crate) reconciler: Reconciler,
    pub(crate) adapter_demand: AdapterDemand,
    pub(crate) engine_views: EngineViews,
    pub(crate) cold_starts: ColdStarts,
    pub(crate) history: HistoryWriter,
    pub(crate) gauges: Gauges,
    pub(crate) routes: watch::Sender<Arc<RouteTable>>,
    pub(crate) wake: Arc<Notify>,
    pub(crate) publisher: ViewPublisher,
    /// In advisory mode: what stands advised, instances wanted and why.
    pub(crate) advised: BTreeMap<ModelName, (u32, Reason)>,
    /// None in advisory mode, which touches nothing.
    pub(crate) keeper: Option<Keeper>,
    // Last, so that it is given back when everything else is done.
    _lock: ServeLock,
}

impl Daemon {
    /// Takes the state folder, opens the database, and adopts the engines that an earlier controller left.
    /// Signals may be added before [`Daemon::run`].
    ///
    /// # Errors
    /// When the configuration cannot work, another serve runs here, or the state folder cannot be used.
    pub async fn start(config: DaemonConfig) -> Result<Self, DaemonError> {
        config.validate()?;
        check_socket_path(&config)?;
        // The folder first: the lock is a file in it.
        std::fs::create_dir_all(&config.state_dir)
            .map_err(|source| RegistryError::StateFolder { path: config.state_dir.clone(), source })?;
        let lock = ServeLock::acquire(&config.state_dir)?;
        let mut registry = Registry::open(&config.state_dir)?;
        let epoch = registry.next_epoch()?;
        let decisions = registry.decisions(None, crate::view::DECISIONS_SHOWN)?;
        let starts = registry.starts(None, crate::view::STARTS_SHOWN)?;
        let cold_starts = ColdStarts::new(registry.cold_starts()?, &starts);
        let mut state = State::new(config.policy.clone());
        for kept in registry.forecasts()? {
            state.restore(&kept.model, kept.predictor, kept.unseen_s);
        }
        let history = HistoryWriter::start(&config.state_dir)?;
        let catalog = CatalogWatch::start(&config.state_dir)?;
        let config = Arc::new(config);
        let (event_sender, events) = mpsc::channel(EVENT_QUEUE);
        let mut actuator = ProcessActuator::new(config.clone(), epoch, event_sender)?;
        let mut fleet = Fleet::default();
        if !config.advise {
            let now_ns = monotonic_ns();
            for engine in actuator.adopt().await? {
                tracing::info!(instance = engine.instance, model = engine.model, pid = engine.pid, "engine adopted");
                fleet.adopted(&engine, now_ns);
            }
        }
        let wake = Arc::new(Notify::new());
        let keeper = match config.advise {
            true => None,
            false => Keeper::start(tiers::places(&config), tiers::revisions(&catalog.models().borrow()), wake.clone())
                .inspect_err(|error| tracing::warn!(%error, "weights in shared memory are not looked after"))
                .ok(),
        };
        let (routes, _) = watch::channel(Arc::new(fleet.routes(&catalog.models().borrow())));
        Ok(Self {
            epoch,
            state,
            keeping: Keeping::default(),
            fits: Fits::default(),
            fleet,
            actuator,
            events,
            catalog,
            signals: Vec::new(),
            ports: Box::new(NoPortWatch),
            reconciler: Reconciler::default(),
            adapter_demand: AdapterDemand::default(),
            engine_views: EngineViews::default(),
            cold_starts,
            history,
            gauges: Gauges::default(),
            routes,
            wake,
            publisher: ViewPublisher::new(decisions, starts),
            advised: BTreeMap::new(),
            config,
            keeper,
            _lock: lock,
        })
    }

    /// Where requests go, for the gateway.
    pub fn routes(&self) -> watch::Receiver<Arc<RouteTable>> {
        self.routes.subscribe()
    }

    /// Wakes the loop at once: for the gateway, when a request is held.
    pub fn wake(&self) -> Arc<Notify> {
        self.wake.clone()
    }

    /// Adds something to observe.
    pub fn add_signal(&mut self, signal: impl Signal + 'static) {
        self.signals.push(Box::new(signal));
    }

    /// Tells this watcher of engine ports; adopted engines' at once.
    pub fn set_port_watch(&mut self, ports: impl PortWatch + 'static) {
        self.ports = Box::new(ports);
        for (id, instance) in self.fleet.instances() {
            if let Some(port) = instance.port {
                self.ports.watch(port, PortRole::Engine { model: instance.model.clone(), instance: id.clone() });
            }
        }
    }

    /// Lets the kernel witness watch the engines' ports and processes, and tell how these end, which a pidfd
    /// alone does not always tell of adopted ones. Must be called inside a tokio runtime.
    pub fn set_witness(&mut self, witness: &Arc<Witness>) {
        self.actuator.set_witness(witness);
        for instance in self.fleet.instances().values() {
            watch_process(witness, instance.pid);
        }
        self.set_port_watch(WitnessPorts(witness.clone()));
        tokio::spawn(self.engine_views.clone().watch(witness.clone(), self.view()));
    }

    /// Lets the gateway tell of the work at engines that are not ours.
    pub fn set_load(&mut self, load: LoadOf) {
        self.actuator.set_load(load);
    }

    /// What the admin API shows.
    pub fn view(&self) -> View {
        self.publisher.view()
    }

    /// The engines' processes as the kernel serves them.
    pub fn engine_views(&self) -> EngineViews {
        self.engine_views.clone()
    }

    /// The registry as the loop sees it, and a way to make it look again.
    pub fn catalog(&self) -> CatalogWatch {
        self.catalog.clone()
    }

    /// This controller's epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The state folder.
    pub fn state_dir(&self) -> &std::path::Path {
        &self.config.state_dir
    }
}

/// Without it, an engine's end is known all the same; only its reason may not be.
pub(crate) fn watch_process(witness: &Witness, pid: u32) {
    if let Err(error) = witness.watch_pid(pid) {
        tracing::warn!(pid, %error, "the kernel will not tell how this engine ends");
    }
}

/// A path that is too long would only fail at the first engine's start, as a puzzle.
fn check_socket_path(config: &DaemonConfig) -> Result<(), DaemonError> {
    let longest = config.state_dir.as_os_str().len() + "/engines/".len() + crate::actuate::STEM_LIMIT + ".sock".len();
    if longest <= SOCKET_PATH_LIMIT_BYTES {
        return Ok(());
    }
    let excess = longest - SOCKET_PATH_LIMIT_BYTES;
    Err(DaemonError::StatePathTooLong { path: config.state_dir.clone(), excess })
}
