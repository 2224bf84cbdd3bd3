//! How often models are called in the long run: what is expected after the next call, of which the forecast knows more.

use crate::snapshot::{ModelName, Snapshot};
use crate::{Nanos, seconds_between};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Horizons over which calls are forgotten.
const KEPT_HORIZONS: f64 = 10.0;

/// Calls of all models, the newest counting most.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Calls {
    seen_ns: Option<Nanos>,
    /// Time that they were counted over, s.
    over_s: f64,
    /// The total when it was last seen, and the calls.
    models: BTreeMap<ModelName, (u64, f64)>,
}

impl Calls {
    /// Takes in what has been called since the last look.
    pub(super) fn see(&mut self, snapshot: &Snapshot, horizon_s: f64) {
        let since_ns = self.seen_ns.replace(snapshot.now_ns).unwrap_or(snapshot.now_ns);
        let passed_s = seconds_between(since_ns, snapshot.now_ns);
        let kept = (-passed_s / (KEPT_HORIZONS * horizon_s)).exp();
        self.over_s = self.over_s * kept + passed_s;
        self.models.retain(|name, _| snapshot.models.contains_key(name));
        for (name, view) in &snapshot.models {
            let total = view.demand.arrivals_total;
            match self.models.get_mut(name) {
                Some((last, calls)) => {
                    // A total that fell is that of a gateway that has begun anew.
                    let new = if total < *last { total } else { total - *last };
                    (*last, *calls) = (total, (*calls * kept + new as f64).min(1e9));
                }
                // What was before the first look was before this controller.
                None => drop(self.models.insert(name.clone(), (total, 0.0))),
            }
        }
    }

    /// Calls per second of one model, over no less than the horizon.
    pub(super) fn per_s(&self, model: &str, horizon_s: f64) -> f64 {
        self.models.get(model).map_or(0.0, |(_, calls)| calls / self.over_s.max(horizon_s))
    }
}
