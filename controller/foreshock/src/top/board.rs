//! What one frame shows, as plain values made of the admin port's answers. Fields that an answer lacks, as one of
//! another version may, are shown as unknown instead of failing the view.

use super::series::{Histogram, Series};
use serde_json::Value;
use telemetry::{ACTUAL_REQUESTS_PER_SECOND, ITL_SECONDS, TTFT_SECONDS};

/// Who measures latencies, in the order in which they are shown.
pub const VANTAGES: [&str; 3] = ["kernel", "gateway", "engine"];

/// One frame.
#[derive(Clone, Debug, Default)]
pub struct Board {
    /// The admin port.
    pub address: String,
    /// Why nothing else is known.
    pub trouble: Option<String>,
    /// What the latencies were counted over: `last 30 s`.
    pub window: String,
    pub paused: bool,
    /// Index of the model whose details are shown.
    pub selected: usize,
    pub models: Vec<Model>,
    pub instances: Vec<Instance>,
    pub gpu_summary: String,
    pub gpus: Vec<Gpu>,
    pub decisions: Vec<Decision>,
}

/// A model and its demand.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    pub name: String,
    pub arrivals_per_s: Option<f64>,
    pub held: u64,
    pub in_flight: u64,
    /// Requests that the kernel saw and nobody has named yet.
    pub unidentified: f64,
    /// Instances by state.
    pub ready: usize,
    pub starting: usize,
    pub draining: usize,
    /// By vantage, as in [`VANTAGES`].
    pub latencies: [Latency; 3],
}

/// Quantiles at one vantage, seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Latency {
    pub streams: f64,
    pub ttft_s: [Option<f64>; 2],
    pub itl_s: [Option<f64>; 2],
}

/// An engine instance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Instance {
    pub id: String,
    pub model: String,
    pub state: String,
    pub cores: String,
    pub running: u64,
    pub waiting: u64,
    pub resident_bytes: u64,
}

/// A GPU or MIG instance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gpu {
    pub gpu: String,
    pub name: String,
    pub busy_ratio: Option<f64>,
    pub memory_used_bytes: Option<f64>,
    pub memory_bytes: Option<f64>,
    pub power_watts: Option<f64>,
    pub temperature_celsius: Option<f64>,
    /// Throttle reasons, Xid errors, or why the figures are old.
    pub remarks: String,
}

/// A decision of the controller.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// Before the snapshot that it is shown with, seconds.
    pub age_s: f64,
    pub model: String,
    pub have: u64,
    pub want: u64,
    pub why: String,
}

/// The admin port's answers.
pub struct Answers {
    /// `/v1/foreshock/snapshot`; null before the first tick.
    pub snapshot: Value,
    pub decisions: Value,
    pub gpus: Value,
    /// The metrics page, and an earlier one.
    pub series: Vec<Series>,
    pub earlier: Vec<Series>,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("?").to_owned()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn rows(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

impl Board {
    /// A frame of these answers.
    pub fn new(address: String, window: String, answers: &Answers) -> Self {
        let snapshot = &answers.snapshot;
        let instances: Vec<Instance> = snapshot["instances"].as_object().into_iter().flatten().map(instance).collect();
        let models = snapshot["models"].as_object().into_iter().flatten();
        Self {
            address,
            window,
            models: models.map(|(name, view)| model(name, view, &instances, answers)).collect(),
            instances,
            gpu_summary: answers.gpus["summary"].as_str().unwrap_or_default().to_owned(),
            gpus: rows(&answers.gpus["gpus"]).map(gpu).collect(),
            decisions: rows(&answers.decisions["data"]).map(|row| decision(row, number(&snapshot["now_ns"]))).collect(),
            ..Self::default()
        }
    }

    /// A frame that only says why there is nothing to show.
    pub fn without(address: String, trouble: String) -> Self {
        Self { address, trouble: Some(trouble), ..Self::default() }
    }

    /// Chooses a model; one beyond the last is the last. Answers the one chosen.
    pub fn select(&mut self, model: usize, paused: bool) -> usize {
        self.selected = model.min(self.models.len().saturating_sub(1));
        self.paused = paused;
        self.selected
    }
}

fn model(name: &str, view: &Value, instances: &[Instance], answers: &Answers) -> Model {
    let demand = &view["demand"];
    let in_state = |state: &str| instances.iter().filter(|one| one.model == name && one.state == state).count();
    let is_its = |one: &&Series| {
        one.name == ACTUAL_REQUESTS_PER_SECOND.name && one.labels.get("model").is_some_and(|model| model == name)
    };
    Model {
        name: name.to_owned(),
        arrivals_per_s: answers.series.iter().find(is_its).map(|one| one.value),
        held: number(&demand["held"]),
        in_flight: number(&demand["in_flight"]),
        unidentified: demand["unidentified"].as_f64().unwrap_or(0.0),
        ready: in_state("ready"),
        starting: in_state("starting"),
        draining: in_state("draining"),
        latencies: VANTAGES.map(|vantage| latency(name, vantage, answers)),
    }
}

fn latency(model: &str, vantage: &str, answers: &Answers) -> Latency {
    let counted = |metric: &str| {
        let now = Histogram::of(&answers.series, metric, model, vantage);
        now.since(&Histogram::of(&answers.earlier, metric, model, vantage))
    };
    let (ttft, itl) = (counted(TTFT_SECONDS.name), counted(ITL_SECONDS.name));
    let quantiles = |histogram: &Histogram| [histogram.quantile_s(0.5), histogram.quantile_s(0.99)];
    Latency { streams: ttft.count(), ttft_s: quantiles(&ttft), itl_s: quantiles(&itl) }
}

fn instance((id, view): (&String, &Value)) -> Instance {
    let shards = rows(&view["placement"]["shards"]);
    let cores: Vec<String> =
        shards.flat_map(|shard| rows(&shard["device"]["cores"])).map(std::string::ToString::to_string).collect();
    Instance {
        id: id.clone(),
        model: text(&view["model"]),
        state: if view["disturbed"] == true { "disturbed".to_owned() } else { text(&view["state"]) },
        cores: cores.join(","),
        running: number(&view["running"]),
        waiting: number(&view["waiting"]),
        resident_bytes: number(&view["resident_bytes"]),
    }
}

fn gpu(row: &Value) -> Gpu {
    let mut remarks: Vec<String> = rows(&row["throttled_by"]).map(text).collect();
    if let Some(xid) = row["xid_last"].as_u64() {
        remarks.push(format!("Xid {xid}"));
    }
    match row["trouble"].as_str() {
        Some(trouble) => remarks.insert(0, trouble.to_owned()),
        None if row["stale"] == true => remarks.insert(0, "stale".to_owned()),
        None => {}
    }
    Gpu {
        gpu: text(&row["gpu"]),
        name: text(&row["name"]),
        busy_ratio: row["busy_ratio"].as_f64().or_else(|| row["gpm"]["busy_ratio"].as_f64()),
        memory_used_bytes: row["memory_used_bytes"].as_f64(),
        memory_bytes: row["memory_bytes"].as_f64(),
        power_watts: row["power_watts"].as_f64(),
        temperature_celsius: row["temperature_celsius"].as_f64(),
        remarks: remarks.join(", "),
    }
}

fn decision(row: &Value, now_ns: u64) -> Decision {
    Decision {
        age_s: now_ns.saturating_sub(number(&row["at_ns"])) as f64 / 1e9,
        model: text(&row["model"]),
        have: number(&row["have"]),
        want: number(&row["want"]),
        why: text(&row["why"]),
    }
}
