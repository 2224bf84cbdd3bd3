//! The `Actuator` seam: whatever can start and stop instances. Live, it is processes of this node
//! ([`process::ProcessActuator`]); a cluster comes in behind the same two actions.

pub mod adopt;
mod become_engine;
pub mod control;
pub mod exit;
pub mod identity;
pub mod process;
mod spares;
mod spawn;
mod supervise;
mod tend;

pub use exit::{Exit, ExitReason};
pub(crate) use identity::STEM_LIMIT;
pub use process::ProcessActuator;
pub use spares::{SpareView, SparesView};
pub use tend::{LoadOf, Outside};

use crate::foreign::{EngineError, EngineKind};
use crate::registry::ModelRecord;
use controller_core::Nanos;
use controller_core::action::Action;
use controller_core::snapshot::{InstanceId, ModelName};
use engine_wire::control::{AdapterSpec, Telemetry};
use std::collections::BTreeMap;
use std::path::PathBuf;
use thiserror::Error;

/// Registered models by name: what a start needs to know of them.
pub type Models = BTreeMap<ModelName, ModelRecord>;

/// The adapters that instances of a model's revision serve beside it.
pub(crate) fn adapter_specs(models: &Models, model: &str, revision: &str) -> Vec<AdapterSpec> {
    let record = models.get(model).filter(|record| record.revision == revision);
    record.into_iter().flat_map(|record| record.adapters.iter().map(|adapter| adapter.spec(record))).collect()
}

/// Carries out what a tick asked for.
pub trait Actuator: Send {
    /// Applies one action and returns at once; what comes of it arrives as [`EngineEvent`]s. The same key
    /// applied again changes nothing.
    ///
    /// # Errors
    /// When the action cannot be carried out; nothing was changed then.
    fn apply(&mut self, action: &Action, models: &Models) -> Result<Applied, ActuateError>;
}

/// What applying an action did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    Started {
        pid: u32,
        spawned_at_ns: Nanos,
    },
    Draining,
    /// Its key was applied before, or the instance is in the wanted state already.
    Nothing,
}

/// Why an action was not carried out.
#[derive(Debug, Error)]
pub enum ActuateError {
    #[error("action of epoch {action} refused: this controller has epoch {own}")]
    Fenced { action: u64, own: u64 },
    #[error("model `{0}` is not registered in the revision that was to be started")]
    UnknownModel(ModelName),
    #[error("the checkpoint {} has changed since it was registered; add it again as before (`foreshock models add {model} {}`)", path.display(), path.display())]
    CheckpointChanged { model: ModelName, path: PathBuf },
    #[error("the checkpoint {} of model `{model}` cannot be read: {source}", path.display())]
    Checkpoint { model: ModelName, path: PathBuf, source: std::io::Error },
    #[error(
        "the program `{program}` of the engine {engine} is not found; install it, put it on the PATH that serve has, or give its whole path in --engine-command"
    )]
    NoProgram { program: String, engine: EngineKind },
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("no port is free for an engine: {0}")]
    NoPort(std::io::Error),
    #[error("no engine could be started with {}: {source}", program.display())]
    Spawn { program: PathBuf, source: std::io::Error },
    #[error("the state folder cannot be written at {}: {source}", path.display())]
    StateFolder { path: PathBuf, source: std::io::Error },
}

/// What an instance reports.
#[derive(Debug)]
pub struct EngineEvent {
    pub instance: InstanceId,
    pub kind: EngineEventKind,
}

/// What happened to an instance.
#[derive(Debug)]
pub enum EngineEventKind {
    /// Its port is bound: requests may be sent and wait inside.
    Listening {
        port: u16,
    },
    Ready {
        at_ns: Nanos,
    },
    /// The process that was to become it is lost; another was started in its place.
    Respawned {
        pid: u32,
        spawned_at_ns: Nanos,
    },
    /// The start failed, in the engine's words; its exit follows.
    Failed {
        message: String,
    },
    Telemetry(Box<Telemetry>),
    /// It took this list of adapters.
    Adapters(Vec<AdapterSpec>),
    Exited(Exit),
    /// The engine obeys a controller of a higher epoch: this one is no longer in charge.
    Fenced {
        message: String,
    },
}
