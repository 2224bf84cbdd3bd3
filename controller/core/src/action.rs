//! What a tick wants done, and why. An action carries an epoch and an idempotency key, so applying it
//! twice changes nothing and a controller that was thought dead cannot act.

use crate::Nanos;
use crate::snapshot::{InstanceId, ModelName, Placement, Revision};
use serde::{Deserialize, Serialize};

/// The outcome of a tick.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effects {
    pub actions: Vec<Action>,
    /// When the next tick is due at the latest; an event may bring it forward.
    pub next_tick_ns: Nanos,
    /// One per model whose plan changed or that is worth a word; never empty when `actions` is not.
    pub decisions: Vec<Decision>,
    /// Weights in host memory that nobody uses, those first that are to go first when memory runs short.
    pub least_worth_first: Vec<Revision>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Action {
    pub epoch: u64,
    /// The same key never acts twice.
    pub key: String,
    pub kind: ActionKind,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum ActionKind {
    /// Start an engine under this identity.
    Start { instance: InstanceId, model: ModelName, revision: Revision, placement: Placement },
    /// Take it out of routing, let it finish, stop it; at the deadline stop it anyway.
    Drain { instance: InstanceId, deadline_ms: u64 },
    /// Read its weights from disk into host memory, for a start that is to come.
    Prefetch { model: ModelName, revision: Revision },
    /// Leave its weights on disk alone. What an instance maps stays for as long as it does.
    Forget { model: ModelName, revision: Revision },
}

/// A decision with its inputs and its reason: the log line, the metric and the API answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    pub at_ns: Nanos,
    pub epoch: u64,
    pub model: ModelName,
    pub seen: Seen,
    pub forecast: ForecastView,
    pub capacity: CapacityView,
    /// Instances that are ready or starting, and how many the plan wants.
    pub have: u32,
    pub want: u32,
    pub reason: Reason,
    /// The reason in words with its numbers, for people.
    pub why: String,
    pub actions: Vec<Action>,
}

/// Why the plan is what it is. Variants are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Requests are held and nothing serves the model.
    HeldAtZero,
    /// The forecast at the cold-start horizon exceeds what the instances can serve.
    ForecastAboveCapacity,
    /// No request is there, and one is expected about when an instance would be ready.
    CallExpected,
    /// Requests queue inside the engines or at the gateway beyond what the target allows.
    QueueAboveTarget,
    /// An instance died and its share is still needed.
    ReplaceLost,
    /// Expected cost of keeping it exceeds that of a later cold start.
    Idle,
    /// Fewer instances carry the forecast.
    ForecastBelowCapacity,
    /// The model was removed or its revision replaced.
    Unregistered,
    /// Wanted, but cores or memory are used by models that need them more.
    NoRoom,
    /// Given up for a model that needs the room more.
    Evicted,
    /// An instance did not become ready; the next try waits, longer each time.
    StartFailed,
    /// Its weights come into host memory, since a start is expected.
    Prefetched,
    /// Its weights leave host memory for instances, or for weights that are worth more there.
    Forgotten,
    /// Nothing changes.
    Steady,
}

/// What the tick saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    pub arrivals_total: u64,
    /// Over the time since the last tick, 1/s.
    pub arrival_rate_per_s: f64,
    pub unidentified: f64,
    pub held: u32,
    pub in_flight: u32,
    pub ready: u32,
    pub starting: u32,
    pub draining: u32,
    pub idle_s: f64,
}

/// A view of the scenarios at the horizon that matters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ForecastView {
    pub horizon_s: f64,
    pub requests_per_s_p50: f64,
    pub requests_per_s_p90: f64,
    pub scenarios: u32,
    /// What has been learned, horizon by horizon; empty while the model is not busy enough for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub horizons: Vec<HorizonView>,
    /// The experts that count for most at the horizon that matters, the heaviest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub experts: Vec<ExpertView>,
    /// Share of outcomes at or below the 90% quantile that had been planned for; none before there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coverage_p90: Option<f64>,
    /// Loss of the learned 90% quantile above that of the expert that did best in hindsight, as a share of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regret: Option<f64>,
    /// What one instance fewer, as many, and one more would cost under this forecast.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prices: Vec<PriceView>,
}

/// The learned quantiles at one horizon, requests/s.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HorizonView {
    pub ahead_s: f64,
    pub requests_per_s_p10: f64,
    pub requests_per_s_p50: f64,
    pub requests_per_s_p90: f64,
    pub requests_per_s_p99: f64,
}

/// An expert and its share of the weight.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExpertView {
    pub name: String,
    pub weight: f64,
}

/// What so many instances cost a second: by requests that they cannot take, and by being held.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PriceView {
    pub instances: u32,
    pub miss_cost_per_s: f64,
    pub holding_cost_per_s: f64,
}

/// What one instance can do and what a start costs, as measured (or assumed, while unmeasured).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CapacityView {
    pub requests_per_s_per_instance: f64,
    pub concurrency_per_instance: f64,
    pub cold_start_ms_p50: f64,
    pub cold_start_ms_p90: f64,
    /// Samples behind the service figures; 0 means assumed.
    pub samples: u32,
    /// Cold starts behind those figures; 0 means assumed.
    #[serde(default)]
    pub cold_start_samples: u32,
}
