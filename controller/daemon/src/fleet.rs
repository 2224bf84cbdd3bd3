//! The engines of this node as the loop knows them, built from their events alone. It is the engines'
//! [`Signal`], and the source of the route table.

use crate::actuate::adopt::Adopted;
use crate::actuate::{EngineEventKind, Exit, Models};
use crate::clock::unix_s;
use crate::measure;
use crate::observe::{Observations, Signal};
use crate::registry::{AdapterRecord, ModelRecord};
use crate::timeline::StartRecord;
use controller_core::Nanos;
use controller_core::snapshot::{InstanceId, InstanceState, InstanceView, ModelName, Placement, Revision};
use controller_gateway::{BaseRoute, Endpoint, ModelRoute, RouteTable};
use engine_wire::control::{AdapterSpec, EngineState, Telemetry};
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

/// One engine.
#[derive(Clone, Debug, Serialize)]
pub struct Instance {
    pub model: ModelName,
    pub revision: Revision,
    pub pid: u32,
    pub port: Option<u16>,
    pub state: InstanceState,
    /// Found running when the controller started.
    pub adopted: bool,
    pub placement: Placement,
    /// When the tick that started it was taken, ns.
    pub decided_at_ns: Nanos,
    pub spawned_at_ns: Nanos,
    pub listening_at_ns: Option<Nanos>,
    pub ready_at_ns: Option<Nanos>,
    pub last_used_at_ns: Nanos,
    pub observed_at_ns: Nanos,
    /// Why its start failed, in its own words.
    pub failure: Option<String>,
    pub telemetry: Option<Telemetry>,
    /// Whether its start has been recorded.
    #[serde(skip)]
    pub recorded: bool,
    /// The adapters that it is known to serve, with their revisions.
    pub adapters: BTreeMap<ModelName, Revision>,
}

/// What an event means for the loop.
#[derive(Debug, PartialEq)]
pub enum Change {
    /// New figures only: the next tick will see them.
    None,
    /// It takes requests, which wait inside until it is ready.
    Listening {
        port: u16,
        model: ModelName,
    },
    /// It can compute; for one started here, how long that took since the decision.
    Ready {
        model: ModelName,
        revision: Revision,
        cold_start_ms: Option<f64>,
    },
    Exited {
        model: ModelName,
        port: Option<u16>,
        exit: Exit,
    },
    /// It serves other adapters than before, or is not where it was: routes change.
    Adapters,
    /// It was told to drain by somebody else: an earlier controller, or a person's SIGTERM.
    Draining,
    Fenced {
        message: String,
    },
}

/// All engines, by identity.
#[derive(Debug, Default)]
pub struct Fleet {
    instances: BTreeMap<InstanceId, Instance>,
    /// Starts that are whole and have not been taken yet.
    starts: Vec<StartRecord>,
}

impl Fleet {
    /// An engine was started.
    pub fn started(
        &mut self,
        instance: &str,
        (model, revision): (&str, &str),
        placement: &Placement,
        pid: u32,
        (decided_at_ns, spawned_at_ns): (Nanos, Nanos),
    ) {
        self.instances.insert(
            instance.to_owned(),
            Instance {
                model: model.to_owned(),
                revision: revision.to_owned(),
                pid,
                port: None,
                state: InstanceState::Starting,
                adopted: false,
                placement: placement.clone(),
                decided_at_ns,
                spawned_at_ns,
                listening_at_ns: None,
                ready_at_ns: None,
                last_used_at_ns: spawned_at_ns,
                observed_at_ns: spawned_at_ns,
                failure: None,
                telemetry: None,
                recorded: false,
                adapters: BTreeMap::new(),
            },
        );
    }

    /// An engine was found running. Since when it was idle is not known, so it counts as used now.
    pub fn adopted(&mut self, engine: &Adopted, now_ns: Nanos) {
        let state = match engine.ready_at_ns {
            _ if engine.stopping => InstanceState::Draining,
            Some(_) => InstanceState::Ready,
            None => InstanceState::Starting,
        };
        self.instances.insert(
            engine.instance.clone(),
            Instance {
                model: engine.model.clone(),
                revision: engine.revision.clone(),
                pid: engine.pid,
                port: engine.port,
                state,
                adopted: true,
                placement: engine.placement.clone(),
                decided_at_ns: engine.spawned_at_ns,
                spawned_at_ns: engine.spawned_at_ns,
                listening_at_ns: None,
                ready_at_ns: engine.ready_at_ns,
                last_used_at_ns: now_ns,
                observed_at_ns: now_ns,
                failure: None,
                telemetry: None,
                // The earlier controller's to record.
                recorded: true,
                adapters: BTreeMap::new(),
            },
        );
    }

    /// It was told to serve these adapters, and no others.
    pub fn serves_adapters(&mut self, instance: &str, adapters: Vec<AdapterSpec>) {
        if let Some(instance) = self.instances.get_mut(instance) {
            instance.adapters = adapters.into_iter().map(|adapter| (adapter.name, adapter.revision)).collect();
        }
    }

    /// It is being drained: no new request goes there.
    pub fn draining(&mut self, instance: &str) {
        if let Some(instance) = self.instances.get_mut(instance) {
            instance.state = InstanceState::Draining;
        }
    }

    /// Takes in an event of an engine; one of an engine that is gone changes nothing.
    pub fn take(&mut self, id: &str, kind: EngineEventKind, now_ns: Nanos) -> Change {
        let Some(instance) = self.instances.get_mut(id) else { return Change::None };
        instance.observed_at_ns = now_ns;
        match kind {
            EngineEventKind::Listening { port } => instance.listening(port, now_ns),
            EngineEventKind::Ready { at_ns } => instance.ready(at_ns),
            EngineEventKind::Respawned { pid, spawned_at_ns } => {
                (instance.pid, instance.spawned_at_ns) = (pid, spawned_at_ns);
                (instance.port, instance.listening_at_ns) = (None, None);
                Change::Adapters
            }
            EngineEventKind::Failed { message } => {
                tracing::error!(instance = id, model = instance.model, message, "an engine failed to start");
                instance.failure = Some(message);
                Change::None
            }
            EngineEventKind::Telemetry(telemetry) => {
                let change = instance.report(*telemetry, now_ns);
                if !instance.recorded
                    && let Some(start) = StartRecord::of(id, instance, unix_s())
                {
                    instance.recorded = true;
                    self.starts.push(start);
                }
                change
            }
            EngineEventKind::Adapters(adapters) => {
                self.serves_adapters(id, adapters);
                Change::Adapters
            }
            EngineEventKind::Fenced { message } => Change::Fenced { message },
            EngineEventKind::Exited(exit) => {
                let (model, port) = (instance.model.clone(), instance.port);
                self.instances.remove(id);
                Change::Exited { model, port, exit }
            }
        }
    }

    /// Models and the endpoints that take new requests. Only engines of the registered revision count:
    /// token ids of one revision mean nothing to another.
    pub fn routes(&self, models: &Models) -> RouteTable {
        let mut table = RouteTable::default();
        for (name, record) in models {
            let route = ModelRoute {
                name: name.clone(),
                revision: record.revision.clone(),
                path: record.served_path().to_owned(),
                created_unix_s: record.created_unix_s,
                context_tokens: record.context_tokens,
                base: None,
                engine: record.engine.as_ref().map(|engine| engine.kind.to_string()),
            };
            for adapter in &record.adapters {
                table.models.insert(adapter.name.clone(), Arc::new(adapter_route(adapter, record)));
            }
            table.models.insert(name.clone(), Arc::new(route));
        }
        for (id, instance) in &self.instances {
            let current = models.get(&instance.model).is_some_and(|record| record.revision == instance.revision);
            let (Some(port), true) = (instance.port, current && instance.state != InstanceState::Draining) else {
                continue;
            };
            let endpoint = Endpoint {
                instance: id.clone(),
                addr: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
                ready: instance.state == InstanceState::Ready,
            };
            for (adapter, revision) in &instance.adapters {
                if table.models.get(adapter).is_some_and(|route| route.revision == *revision) {
                    table.endpoints.entry(adapter.clone()).or_default().push(endpoint.clone());
                }
            }
            table.endpoints.entry(instance.model.clone()).or_default().push(endpoint);
        }
        table
    }

    /// Starts that have become whole since they were last asked for.
    pub(crate) fn take_starts(&mut self) -> Vec<StartRecord> {
        std::mem::take(&mut self.starts)
    }

    pub fn instances(&self) -> &BTreeMap<InstanceId, Instance> {
        &self.instances
    }
}

fn adapter_route(adapter: &AdapterRecord, base: &ModelRecord) -> ModelRoute {
    ModelRoute {
        name: adapter.name.clone(),
        revision: adapter.revision(base),
        path: base.served_path().to_owned(),
        created_unix_s: adapter.created_unix_s,
        context_tokens: base.context_tokens,
        base: Some(BaseRoute {
            name: base.name.clone(),
            revision: base.revision.clone(),
            root: adapter.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        }),
        engine: None,
    }
}

impl Signal for Fleet {
    fn observe(&mut self, _now_ns: Nanos, observations: &mut Observations) {
        observations.instances = self.instances.iter().map(|(id, instance)| (id.clone(), instance.view())).collect();
    }
}

impl Instance {
    fn listening(&mut self, port: u16, now_ns: Nanos) -> Change {
        if self.port == Some(port) {
            return Change::None;
        }
        self.port = Some(port);
        self.listening_at_ns = Some(now_ns);
        Change::Listening { port, model: self.model.clone() }
    }

    fn ready(&mut self, at_ns: Nanos) -> Change {
        if self.ready_at_ns.is_some() {
            return Change::None;
        }
        self.ready_at_ns = Some(at_ns);
        self.last_used_at_ns = at_ns;
        if self.state == InstanceState::Starting {
            self.state = InstanceState::Ready;
        }
        // An adopted engine's start was the earlier controller's to time.
        let cold_start_ms = (!self.adopted).then(|| at_ns.saturating_sub(self.decided_at_ns) as f64 / 1e6);
        Change::Ready { model: self.model.clone(), revision: self.revision.clone(), cold_start_ms }
    }

    fn report(&mut self, telemetry: Telemetry, now_ns: Nanos) -> Change {
        measure::telemetry(&self.model, self.telemetry.as_ref(), &telemetry);
        let served = self.telemetry.as_ref().map_or(0, |last| last.requests_total);
        if telemetry.running + telemetry.waiting > 0 || telemetry.requests_total > served {
            self.last_used_at_ns = now_ns;
        }
        let began_draining = telemetry.state == EngineState::Draining && self.state != InstanceState::Draining;
        let change = match telemetry.ready_at_ns {
            _ if began_draining => {
                self.state = InstanceState::Draining;
                Change::Draining
            }
            Some(at_ns) => self.ready(at_ns),
            None => Change::None,
        };
        self.telemetry = Some(telemetry);
        change
    }

    fn view(&self) -> InstanceView {
        let telemetry = self.telemetry.as_ref();
        let figure = |of: fn(&Telemetry) -> u64| telemetry.map_or(0, of);
        InstanceView {
            observed_at_ns: self.observed_at_ns,
            model: self.model.clone(),
            revision: self.revision.clone(),
            state: self.state,
            placement: self.placement.clone(),
            spawned_at_ns: self.spawned_at_ns,
            ready_at_ns: self.ready_at_ns,
            running: telemetry.map_or(0, |telemetry| telemetry.running),
            waiting: telemetry.map_or(0, |telemetry| telemetry.waiting),
            prefill_tokens_total: figure(|telemetry| telemetry.prefill_tokens_total),
            decode_tokens_total: figure(|telemetry| telemetry.decode_tokens_total),
            requests_total: figure(|telemetry| telemetry.requests_total),
            busy_ns_total: figure(|telemetry| telemetry.busy_ns_total),
            steps_total: figure(|telemetry| telemetry.steps_total),
            last_used_at_ns: self.last_used_at_ns,
            resident_bytes: figure(|telemetry| telemetry.resident_bytes),
            disturbed: false,
        }
    }
}
