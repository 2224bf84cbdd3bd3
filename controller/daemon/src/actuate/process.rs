//! The live Actuator: engines as processes of this node.

use super::adopt::{self, Adopted};
use super::become_engine::{Order, become_engine};
use super::identity::{InstancePaths, ProcessHandle};
use super::spares::{Spares, SparesView};
use super::spawn::{self, Start};
use super::supervise::{DrainOrder, Driven, Link, Reach, supervise};
use super::tend::{LoadOf, Tended};
use super::{ActuateError, Actuator, Applied, EngineEvent, Models, adapter_specs};
use crate::clock::monotonic_ns;
use crate::config::DaemonConfig;
use crate::daemon::watch_process;
use controller_core::Nanos;
use controller_core::action::{Action, ActionKind};
use controller_core::snapshot::{InstanceId, ModelName, Revision};
use controller_witness::Witness;
use engine_wire::control::{AdapterSpec, HeadSpec};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Keys remembered against being applied twice. An instance that exists is known by its identity too, so
/// forgetting the oldest keys is harmless.
const KEYS_KEPT: usize = 4_096;
/// From SIGTERM to SIGKILL for an engine that cannot be asked.
const STRANGER_GRACE: Duration = Duration::from_secs(10);

/// Starts, adopts, drains and watches engine processes. Dropping it leaves them running on their lease.
pub struct ProcessActuator {
    config: Arc<DaemonConfig>,
    epoch: u64,
    events: mpsc::Sender<EngineEvent>,
    /// Ends with its engine: the receiver inside the supervising task is dropped then.
    drains: BTreeMap<InstanceId, watch::Sender<Option<DrainOrder>>>,
    adapters: BTreeMap<InstanceId, Offer>,
    applied: AppliedKeys,
    tasks: JoinSet<()>,
    /// Set once at most, possibly after engines were adopted, whose tasks then find it.
    witness: Arc<OnceLock<Arc<Witness>>>,
    /// The same for the gateway's knowledge of the work at engines that tell nothing themselves.
    load: Arc<OnceLock<LoadOf>>,
    spares: Spares,
}

impl ProcessActuator {
    /// An Actuator of one epoch, whose instances report to `events`.
    ///
    /// # Errors
    /// When the state folder cannot be written.
    pub fn new(config: Arc<DaemonConfig>, epoch: u64, events: mpsc::Sender<EngineEvent>) -> Result<Self, ActuateError> {
        spawn::prepare_folders(&config.state_dir)?;
        let path = || config.state_dir.clone();
        let spares =
            Spares::new(config.clone(), epoch).map_err(|source| ActuateError::StateFolder { path: path(), source })?;
        Ok(Self {
            spares,
            config,
            epoch,
            events,
            drains: BTreeMap::new(),
            adapters: BTreeMap::new(),
            applied: AppliedKeys::default(),
            tasks: JoinSet::new(),
            witness: Arc::default(),
            load: Arc::default(),
        })
    }

    /// Lets the kernel witness tell how engines end. Only the first one counts.
    pub fn set_witness(&mut self, witness: &Arc<Witness>) {
        let _ = self.witness.set(witness.clone());
    }

    /// Lets the gateway tell of the work at engines that are not ours. Only the first one counts.
    pub fn set_load(&mut self, load: LoadOf) {
        let _ = self.load.set(load);
    }

    /// Takes over the engines that an earlier controller left in the state folder, and cleans up after
    /// those that are gone. One that does not speak this protocol is stopped.
    ///
    /// # Errors
    /// When the state folder cannot be read.
    pub async fn adopt(&mut self) -> Result<Vec<Adopted>, ActuateError> {
        let found = adopt::scan(&self.config.state_dir).await?;
        let mut adopted = Vec::new();
        for (engine, process, reach) in found {
            let paths = InstancePaths::new(&self.config.state_dir, &engine.instance);
            let offer = Offer::new(&engine.model, &engine.revision, Vec::new());
            if let Err(error) = self.watch((&engine.instance, engine.spawned_at_ns), process, paths, reach, offer) {
                tracing::warn!(instance = engine.instance, %error, "an engine cannot be adopted");
                continue;
            }
            if engine.stopping {
                let order = DrainOrder { deadline: Instant::now() + STRANGER_GRACE, by_signal: true };
                self.order_drain(&engine.instance, order);
            }
            adopted.push(engine);
        }
        self.spares.adopt().await;
        Ok(adopted)
    }

    /// Holds so many spare processes from now on, which read these heads ahead. Where a start is on its way none is made.
    pub fn keep_spares(&self, wanted: u32, may_make: bool, heads: Vec<HeadSpec>) {
        self.spares.keep(wanted, may_make, heads);
    }

    /// What a spare process takes: time until it is ready, and memory, bytes.
    pub fn spare_cost(&self) -> (Duration, u64) {
        self.spares.cost()
    }

    /// The spare processes.
    pub fn spares(&self) -> SparesView {
        self.spares.view()
    }

    /// Ends the spare processes.
    pub async fn end_spares(&self) {
        self.spares.end().await;
    }

    fn start(&mut self, start: &Start<'_>, models: &Models) -> Result<Applied, ActuateError> {
        if self.drains.contains_key(start.instance) {
            return Ok(Applied::Nothing);
        }
        if let Some(started) = self.start_spare(start, models)? {
            return Ok(started);
        }
        let spawned = spawn::spawn(&self.config, start, models)?;
        let pid = spawned.process.pid;
        let specs = adapter_specs(models, start.model, start.revision);
        let offer = Offer::new(start.model, start.revision, specs);
        let reach = match spawned.outside {
            None => Reach::Own { stdout: spawned.stdout, client: None },
            Some(outside) => Reach::Outside(outside),
        };
        let spawned_at_ns = spawned.spawned_at_ns;
        self.watch((start.instance, spawned_at_ns), spawned.process, spawned.paths, reach, offer)?;
        Ok(Applied::Started { pid, spawned_at_ns })
    }

    /// The same by a spare process; none when there is none, or it could not do.
    fn start_spare(&mut self, start: &Start<'_>, models: &Models) -> Result<Option<Applied>, ActuateError> {
        let record = spawn::record_of(start, models)?;
        let paths = InstancePaths::new(&self.config.state_dir, start.instance);
        let args = match &record.engine {
            None => spawn::args(&self.config, start, record, &paths.socket),
            Some(_) => None,
        };
        let Some((args, spare)) = args.and_then(|args| Some((args, self.spares.take()?))) else { return Ok(None) };
        let (pid, spawned_at_ns) = (spare.process.pid, monotonic_ns());
        if let Some(witness) = self.witness.get() {
            watch_process(witness, pid);
        }
        let order = Order {
            config: self.config.clone(),
            model: start.model.to_owned(),
            revision: start.revision.to_owned(),
            placement: start.placement.clone(),
            spawned_at_ns,
            args,
            models: Models::from([(start.model.to_owned(), record.clone())]),
        };
        let specs = adapter_specs(models, start.model, start.revision);
        let link = self.link(start.instance, paths, Offer::new(start.model, start.revision, specs));
        self.tasks.spawn(become_engine(link, spare, order));
        Ok(Some(Applied::Started { pid, spawned_at_ns }))
    }

    /// Puts a process under supervision.
    fn watch(
        &mut self,
        (instance, spawned_at_ns): (&str, Nanos),
        process: ProcessHandle,
        paths: InstancePaths,
        reach: Reach,
        offer: Offer,
    ) -> Result<(), ActuateError> {
        let describe = |source| ActuateError::Spawn { program: PathBuf::from(&self.config.engine_exe), source };
        let pidfd = process.fd.try_clone().map_err(describe)?;
        if let Some(witness) = self.witness.get() {
            watch_process(witness, process.pid);
        }
        let driven = match reach {
            Reach::Own { stdout, client } => {
                let notices = stdout.map(pipe::Receiver::from_owned_fd).transpose().map_err(describe)?;
                Driven::Own { notices, client }
            }
            Reach::Outside(outside) => {
                let start_limit = self.config.start_limit();
                Driven::Outside(Tended { outside, pid: process.pid, spawned_at_ns, start_limit })
            }
        };
        let link = self.link(instance, paths, offer);
        self.tasks.spawn(supervise(link, process, pidfd, driven));
        Ok(())
    }

    /// What the tasks of an instance know of it.
    fn link(&mut self, instance: &str, paths: InstancePaths, offer: Offer) -> Link {
        let (drain_sender, drain) = watch::channel(None);
        let link = Link {
            instance: instance.to_owned(),
            epoch: self.epoch,
            lease_ms: self.config.lease_ms,
            renew_every: self.config.renew_every(),
            paths,
            events: self.events.clone(),
            drain,
            adapters: offer.specs.subscribe(),
            witness: self.witness.clone(),
            load: self.load.clone(),
            broke: Arc::default(),
        };
        // Engines that have ended are swept here, so both collections stay as small as the fleet.
        self.drains.retain(|_, drain| !drain.is_closed());
        while self.tasks.try_join_next().is_some() {}
        self.adapters.retain(|_, offer| !offer.specs.is_closed());
        self.drains.insert(instance.to_owned(), drain_sender);
        self.adapters.insert(instance.to_owned(), offer);
        link
    }

    /// Tells every instance which adapters to serve beside its model, where that has changed.
    pub fn offer_adapters(&self, models: &Models) {
        for offer in self.adapters.values() {
            let wanted = adapter_specs(models, &offer.model, &offer.revision);
            offer.specs.send_if_modified(|specs| {
                let changed = *specs != wanted;
                *specs = wanted;
                changed
            });
        }
    }

    fn order_drain(&mut self, instance: &str, order: DrainOrder) -> Applied {
        let Some(drain) = self.drains.get(instance) else { return Applied::Nothing };
        // The first order stands: its deadline was promised to the streams.
        let sent = drain.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                *current = Some(order);
            }
            first
        });
        if sent && !drain.is_closed() { Applied::Draining } else { Applied::Nothing }
    }
}

impl Actuator for ProcessActuator {
    fn apply(&mut self, action: &Action, models: &Models) -> Result<Applied, ActuateError> {
        if action.epoch != self.epoch {
            return Err(ActuateError::Fenced { action: action.epoch, own: self.epoch });
        }
        if self.applied.contains(&action.key) {
            return Ok(Applied::Nothing);
        }
        let applied = match &action.kind {
            ActionKind::Start { instance, model, revision, placement } => {
                self.start(&Start { instance, model, revision, placement }, models)?
            }
            ActionKind::Drain { instance, deadline_ms } => {
                let deadline = Instant::now() + Duration::from_millis(*deadline_ms);
                self.order_drain(instance, DrainOrder { deadline, by_signal: false })
            }
            // No instance has a part in these: the keeper of weights carries them out.
            ActionKind::Prefetch { .. } | ActionKind::Forget { .. } => Applied::Nothing,
        };
        self.applied.insert(&action.key);
        Ok(applied)
    }
}

/// The adapters that one instance is to serve.
struct Offer {
    model: ModelName,
    revision: Revision,
    specs: watch::Sender<Vec<AdapterSpec>>,
}

impl Offer {
    /// One that the instance knows already.
    fn new(model: &str, revision: &str, specs: Vec<AdapterSpec>) -> Self {
        Self { model: model.to_owned(), revision: revision.to_owned(), specs: watch::Sender::new(specs) }
    }
}

/// The newest keys, for look-up and in order of age.
#[derive(Default)]
struct AppliedKeys {
    known: BTreeSet<String>,
    by_age: VecDeque<String>,
}

impl AppliedKeys {
    fn contains(&self, key: &str) -> bool {
        self.known.contains(key)
    }

    fn insert(&mut self, key: &str) {
        if !self.known.insert(key.to_owned()) {
            return;
        }
        self.by_age.push_back(key.to_owned());
        if self.by_age.len() > KEYS_KEPT
            && let Some(oldest) = self.by_age.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}
