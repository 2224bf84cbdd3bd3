//! Fleets of 1 to 10,000 devices as a discrete-event simulation, fast enough that policies can be compared over whole
//! traces: requests against engines that are cost models, cold starts that load checkpoints through shared links, and
//! faults. What decides is a [`Policy`]: the controller's own tick, or a baseline beside it.
//!
//! A device holds one instance. Runs are told apart by their seed and are the same on every machine, and the checkers
//! of [`Invariant`](crate::Invariant) look at every tick: broken ones end a run that is [`Config::strict`], and are
//! counted by name in any other.

mod chaos;
mod checks;
mod coverage;
pub mod engine;
mod lifecycle;
mod link;
mod report;
mod requests;
mod view;
mod world;

pub use chaos::{Fault, FaultPlan};
pub use engine::{EngineCost, Engines};
pub use report::{Moment, Report, Summary, quantile};
pub use view::{ModelSight, REVISION, View, Wanted, on_device};
pub use world::{run, run_watched};

use crate::trace::Arrival;
use serde::Serialize;

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Config {
    pub seed: u64,
    pub devices: u32,
    pub devices_per_node: u32,
    pub engine: EngineCost,
    pub engines: Engines,
    pub cold_start: ColdStart,
    pub storage: Storage,
    pub slo: Slo,
    pub faults: FaultPlan,
    /// Time that the run may go on after the load has ended, s.
    pub settle_s: f64,
    /// Requests held for one model before further ones are refused.
    pub held_max: usize,
    /// Longest that a request may be held, s.
    pub starve_limit_s: f64,
    /// Whether a broken invariant ends the run.
    pub strict: bool,
    /// Requests before this are served and not measured, s: policies learn from them.
    pub measure_from_s: f64,
    /// Whether what the policy states of the time to come is held against what comes.
    pub coverage: bool,
}

/// What arrives: requests in order of time, of models by their number, over a stretch of time.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    /// Names in alphabetical order.
    pub models: &'a [String],
    pub arrivals: &'a [Arrival],
    pub duration_ns: u64,
}

/// What starting an instance takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ColdStart {
    /// Median time of everything but the weights, s.
    pub process_s: f64,
    /// Spread of that time: standard deviation of its logarithm.
    pub spread: f64,
    /// Weights to load, bytes.
    pub weights_bytes: u64,
}

/// Where checkpoints are, and how fast they come from there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Storage {
    /// Host memory of a node that keeps checkpoints used last, bytes; 0 for none.
    pub host_bytes: u64,
    /// From host memory to a device, bytes/s, shared with nobody.
    pub host_bytes_per_s: f64,
    /// A node's disk, bytes/s, shared by its loads.
    pub disk_bytes_per_s: f64,
    /// The store that has what a node's disk does not, bytes/s, shared by all.
    pub remote_bytes_per_s: f64,
    /// Whether every disk has every checkpoint at the beginning; else a node's first load of a model is remote.
    pub on_disk: bool,
}

/// What a request is held to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Slo {
    /// Time to first token, ms.
    pub ttft_ms: f64,
    /// Mean time between tokens of the request, ms.
    pub itl_ms: f64,
}

/// What is done about a fleet. Policies see it through a [`View`] alone.
pub trait Policy {
    /// Its name on the command line.
    fn name(&self) -> &'static str;
    /// Looks, and says what it wants and when it wants to look again.
    fn tick(&mut self, view: &View<'_>) -> Tick;
    /// Whether it is told at once of a request that finds its model with nothing, not only at its next tick.
    fn eager(&self) -> bool {
        false
    }
    /// Whether it reads [`View::instances`], whose totals are then brought up to date before each look.
    fn detailed(&self) -> bool {
        false
    }
    /// The 0.9 quantile of a model's requests per second, averaged over the last [`AVERAGED_S`](controller_core::AVERAGED_S) of a
    /// horizon; none from what states nothing.
    fn quantile_per_s(&self, _model: &str, _horizon_s: f64) -> Option<f64> {
        None
    }
    /// The controller's process is replaced: memory that is not kept outside of it is lost.
    fn restart(&mut self) {}
    /// Whether looking again at once, with nothing changed, asks for nothing more.
    fn idempotent(&mut self, _view: &View<'_>) -> bool {
        true
    }
}

/// What a policy wants.
#[derive(Clone, Debug, PartialEq)]
pub struct Tick {
    pub wanted: Wanted,
    /// When it looks again, ns.
    pub next_ns: u64,
    /// An action without a reason, if there is one.
    pub unexplained: Option<String>,
}

impl Tick {
    /// So many instances of each model that is named, and a look again after a while.
    pub fn counts(counts: Vec<(u32, u32)>, next_ns: u64) -> Self {
        Self { wanted: Wanted::Counts(counts), next_ns, unexplained: None }
    }
}

impl Config {
    /// A fleet of so many devices without faults whose median cold start from disk, alone on its link, is `cold_start_s`.
    pub fn new(devices: u32, cold_start_s: f64) -> Self {
        let weights_bytes = 16 << 30;
        Self {
            seed: 1,
            devices: devices.clamp(1, 10_000),
            devices_per_node: 8,
            engine: EngineCost::default(),
            engines: Engines::default(),
            cold_start: ColdStart { process_s: 0.6 * cold_start_s, spread: 0.2, weights_bytes },
            storage: Storage {
                host_bytes: 0,
                host_bytes_per_s: 25e9,
                disk_bytes_per_s: weights_bytes as f64 / (0.4 * cold_start_s.max(1e-3)),
                remote_bytes_per_s: 10e9,
                on_disk: true,
            },
            slo: Slo { ttft_ms: 2_000.0, itl_ms: 60.0 },
            faults: FaultPlan::none(),
            settle_s: 1_200.0,
            held_max: 100_000,
            starve_limit_s: 600.0,
            strict: false,
            measure_from_s: 0.0,
            coverage: false,
        }
    }

    /// Median cold start from disk by itself, s.
    pub fn cold_start_s(&self) -> f64 {
        self.cold_start.process_s + self.cold_start.weights_bytes as f64 / self.storage.disk_bytes_per_s
    }
}
