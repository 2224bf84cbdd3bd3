//! What a forecast is made of, for people: its quantiles, which experts it follows, and how it has done.

use crate::experts::expert_name;
use crate::{Level, QUANTILES};
use serde::{Deserialize, Serialize};

/// Experts that are named.
const NAMED: usize = 3;

/// One horizon of one model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// End of the bin that is forecast, s from now, and its width, s.
    pub ahead_s: f64,
    pub bin_s: f64,
    /// [`QUANTILES`] of the rate in it, requests/s.
    pub per_s: Vec<f64>,
    /// The experts that count for most in the 0.9 quantile, in words with their weights, the heaviest first.
    pub experts: Vec<(String, f64)>,
    /// Of outcomes so far, the past discounted: the share at or below the 0.9 quantile that had been stated; none before
    /// there are any.
    pub coverage: Option<f64>,
    /// By which share the loss of stating it was above that of the expert that did best in hindsight. Below 0 where the
    /// mix beats every expert.
    pub regret: f64,
}

impl Level {
    /// The horizon at a place in the list given to [`Level::new`], in words.
    pub fn reading(&self, horizon: usize) -> Reading {
        let bin_s = self.bin_s();
        let one = self.horizon(horizon);
        let mut by_weight: Vec<(usize, f64)> = one.weights().into_iter().enumerate().collect();
        by_weight.sort_by(|a, b| b.1.total_cmp(&a.1));
        let named = |(expert, weight): (usize, f64)| (expert_name(expert), weight);
        let skill = one.skill();
        Reading {
            ahead_s: one.ahead as f64 * bin_s,
            bin_s,
            per_s: self.quantiles(horizon).iter().map(|count| count / bin_s).collect(),
            experts: by_weight.into_iter().take(NAMED).map(named).collect(),
            coverage: skill.map(|skill| skill.0),
            regret: skill.map_or(0.0, |skill| skill.1),
        }
    }
}

impl Reading {
    /// The rate at a quantile, requests/s.
    pub fn rate(&self, q: f64) -> f64 {
        if self.per_s.len() == QUANTILES.len() { crate::scenario::value_at(&self.per_s, q) } else { 0.0 }
    }
}
