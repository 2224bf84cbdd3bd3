//! How many spare processes are worth holding: as many as starts may come while another is made, of models that have no
//! instance. A start finds one ready, and the next one is made after it.

use crate::snapshot::{ModelName, Snapshot};
use crate::state::State;
use crate::{Nanos, seconds_between};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Chance that a start may find none left.
const SHORT: f64 = 0.01;
/// More are never held: each further start of a crowd waits for a core in any case.
const MOST: u32 = 8;

/// Models that a plan names at most: a spare process cannot read more ahead.
const NAMED: usize = 64;

/// What a spare process takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SpareCost {
    /// From its exec until it can adopt a model, s.
    pub made_in_s: f64,
    /// Resident memory, bytes.
    pub bytes: u64,
}

/// Spare processes to hold, and why.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SparePlan {
    pub wanted: u32,
    /// Models that a spare process may have to adopt, the likeliest first.
    pub models: Vec<ModelName>,
    /// Starts of models without an instance that are expected while a spare process is made.
    pub starts_expected: f64,
    pub why: String,
}

impl State {
    /// The spare processes to hold for the models that can be adopted.
    pub fn spares(&self, snapshot: &Snapshot, adoptable: impl Fn(&str) -> bool, cost: SpareCost) -> SparePlan {
        let up: BTreeSet<&ModelName> = snapshot.instances.values().map(|instance| &instance.model).collect();
        let names = snapshot.models.keys().filter(|name| adoptable(name));
        let mut chances: Vec<(bool, f64, &ModelName)> =
            names.map(|name| (up.contains(name), self.hazard_per_s(name, snapshot.now_ns), name)).collect();
        chances.sort_by(|a, b| (a.0.cmp(&b.0)).then(b.1.total_cmp(&a.1)).then(a.2.cmp(b.2)));
        let per_s = chances.iter().filter(|(is_up, ..)| !is_up).fold(0.0, |sum, (_, per_s, _)| sum + per_s);
        let used_bytes: u128 = snapshot.instances.values().map(|i| u128::from(i.placement.bytes())).sum();
        let free_bytes = u128::from(snapshot.node.memory_budget_bytes).saturating_sub(used_bytes);
        let fit = free_bytes.checked_div(u128::from(cost.bytes)).map_or(MOST, |fit| fit.min(u128::from(MOST)) as u32);
        let known = u32::try_from(chances.len()).unwrap_or(u32::MAX);
        let models = chances.into_iter().take(NAMED).map(|(.., name)| name.clone()).collect();
        SparePlan { models, ..plan(known, per_s * cost.made_in_s.max(0.0), fit) }
    }

    /// Rate at which a model is called next, given its silence so far, 1/s.
    fn hazard_per_s(&self, name: &str, now_ns: Nanos) -> f64 {
        let Some(model) = self.models.get(name) else { return 0.0 };
        let silent_s = model.needed_ns.first().map_or(f64::MAX, |at| seconds_between(*at, now_ns));
        let per_s = model.expected.silences.hazard_per_s(silent_s);
        if per_s.is_finite() { per_s.max(0.0) } else { 0.0 }
    }
}

/// The number for so many expected starts where `fit` have room.
fn plan(known: u32, starts_expected: f64, fit: u32) -> SparePlan {
    let enough = enough(starts_expected);
    let wanted = enough.min(known).min(fit);
    let limit = match wanted {
        0 if known == 0 => "no model is registered that one could adopt".to_owned(),
        _ if wanted == enough => format!("a start finds none left with a chance of at most {SHORT}"),
        _ if wanted == known => "no more models are registered".to_owned(),
        _ => "memory has no room for more".to_owned(),
    };
    let why = format!("{starts_expected:.3} starts are expected while one is made; {limit}");
    SparePlan { wanted, models: Vec::new(), starts_expected, why }
}

/// The least number, one at least, that a Poisson number of starts exceeds with a chance of at most [`SHORT`].
fn enough(expected: f64) -> u32 {
    let mut chance = (-expected).exp();
    let mut within = 0.0;
    for count in 0..MOST {
        within += chance;
        if count > 0 && 1.0 - within <= SHORT {
            return count;
        }
        chance *= expected / f64::from(count + 1);
    }
    MOST
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn none_without_models_and_one_is_enough_for_quiet_ones() {
        assert_eq!(plan(0, 0.0, 8).wanted, 0);
        assert_eq!(plan(1, 0.0, 8).wanted, 1);
        assert_eq!(plan(50, 0.1, 8).wanted, 1);
        assert_eq!(plan(50, 0.5, 8).wanted, 3);
        assert_eq!(plan(2, 0.5, 8).wanted, 2);
        assert_eq!(plan(50, 0.5, 0).wanted, 0);
        assert!(plan(50, 0.5, 0).why.ends_with("memory has no room for more"));
        assert_eq!(plan(50, 1e9, 64).wanted, MOST);
    }

    proptest! {
        #[test]
        fn more_starts_models_and_room_never_want_fewer(
            starts in 0.0..20.0f64, more in 0.0..20.0f64, models in 0..20u32, fit in 0..20u32
        ) {
            let least = plan(models, starts, fit).wanted;
            prop_assert!(least <= models && least <= fit && least <= MOST);
            prop_assert!(plan(models, starts + more, fit).wanted >= least);
            prop_assert!(plan(models + 1, starts, fit).wanted >= least);
            prop_assert!(plan(models, starts, fit + 1).wanted >= least);
            // The promise itself, where neither models nor memory bind.
            let enough = enough(starts);
            if enough < MOST {
                let term = |n: u32| (1..=n).fold((-starts).exp(), |term, k| term * starts / f64::from(k));
                prop_assert!(1.0 - (0..=enough).map(term).sum::<f64>() <= SHORT + 1e-9);
            }
        }
    }
}
