//! Demand on an adapter is demand on its base: what the gateway counts by the adapters' names is added to the model
//! whose instances serve them, so that the planner sees one model.
//!
//! Totals must not fall when an adapter is removed, or a fall would look like a gateway that began anew; so
//! what was counted stays in the sum.

use crate::actuate::Models;
use controller_core::snapshot::{Demand, ModelName};
use std::collections::BTreeMap;

/// Totals of one name at one base.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    arrivals: u64,
    prompt_tokens: u64,
    output_tokens: u64,
    turns: u64,
}

impl Counted {
    fn of(demand: &Demand) -> Self {
        Self {
            arrivals: demand.arrivals_total,
            prompt_tokens: demand.prompt_tokens_total,
            output_tokens: demand.output_tokens_total,
            turns: demand.turns_total,
        }
    }
}

/// The join's memory: (first seen, last seen) by base and adapter.
#[derive(Clone, Debug, Default)]
pub struct AdapterDemand(BTreeMap<(ModelName, ModelName), (Counted, Counted)>);

impl AdapterDemand {
    /// Takes demand by name, adapters' names among them; answers it by base.
    pub fn fold(&mut self, mut demand: BTreeMap<ModelName, Demand>, models: &Models) -> BTreeMap<ModelName, Demand> {
        for (base, record) in models {
            for adapter in &record.adapters {
                let Some(own) = demand.remove(&adapter.name) else { continue };
                let now = Counted::of(&own);
                let key = (base.clone(), adapter.name.clone());
                if !self.0.contains_key(&key) {
                    // A name that served another base begins here with what it has.
                    let moved = self.0.keys().any(|(_, name)| *name == adapter.name);
                    self.0.insert(key.clone(), (if moved { now } else { Counted::default() }, now));
                }
                if let Some((_, last)) = self.0.get_mut(&key) {
                    *last = now;
                }
                let whole = demand.entry(base.clone()).or_insert_with(|| Demand {
                    observed_at_ns: own.observed_at_ns,
                    fidelity: own.fidelity,
                    ..Demand::default()
                });
                whole.held += own.held;
                whole.in_flight += own.in_flight;
                whole.unidentified += own.unidentified;
                whole.unnamed_total += own.unnamed_total;
                whole.connections_total += own.connections_total;
                whole.turns.extend(&own.turns);
                whole.turns.sort_by_key(|turn| turn.at_ns);
            }
        }
        for ((base, _), (first, last)) in &self.0 {
            let Some(whole) = demand.get_mut(base) else { continue };
            whole.arrivals_total += last.arrivals.saturating_sub(first.arrivals);
            whole.prompt_tokens_total += last.prompt_tokens.saturating_sub(first.prompt_tokens);
            whole.turns_total += last.turns.saturating_sub(first.turns);
            whole.output_tokens_total += last.output_tokens.saturating_sub(first.output_tokens);
        }
        demand
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{AdapterRecord, ModelRecord};

    fn models(adapters: &[(&str, &str)]) -> Models {
        let model = |name: &str| {
            let adapters = adapters.iter().filter(|(base, _)| *base == name).map(|(base, name)| AdapterRecord {
                name: (*name).to_owned(),
                base: (*base).to_owned(),
                path: "/a".into(),
                digest: "d".to_owned(),
                created_unix_s: 1,
                parameters: 1,
                rank: 1,
            });
            let record = ModelRecord {
                name: name.to_owned(),
                path: "/m".into(),
                revision: "r".to_owned(),
                created_unix_s: 1,
                file_bytes: 1,
                modified_unix_ns: 1,
                architecture: "llama".to_owned(),
                parameters: 1,
                context_tokens: 1,
                instance_bytes: 1,
                quantise: None,
                head: None,
                engine: None,
                adapters: adapters.collect(),
            };
            (name.to_owned(), record)
        };
        ["m", "n"].map(model).into()
    }

    /// (arrivals, held) of m and n.
    fn check(fold: &mut AdapterDemand, models: &Models, rows: &[(&str, u64, u32)], expected: [(u64, u32); 2]) {
        let demand = |(name, arrivals_total, held): &(&str, u64, u32)| {
            let (arrivals_total, held) = (*arrivals_total, *held);
            (
                (*name).to_owned(),
                Demand { arrivals_total, held, prompt_tokens_total: arrivals_total, ..Demand::default() },
            )
        };
        let folded = fold.fold(rows.iter().map(demand).collect(), models);
        assert_eq!(folded.keys().map(String::as_str).collect::<Vec<_>>(), ["m", "n"]);
        let found = ["m", "n"].map(|name| (folded[name].arrivals_total, folded[name].held));
        assert_eq!(found, expected, "{rows:?}");
        assert!(folded.values().all(|demand| demand.prompt_tokens_total == demand.arrivals_total));
    }

    #[test]
    fn an_adapters_demand_is_its_bases_and_never_falls() {
        let mut fold = AdapterDemand::default();
        let both = models(&[("m", "a"), ("m", "b")]);
        check(&mut fold, &both, &[("m", 3, 0), ("n", 1, 1), ("a", 5, 2), ("b", 0, 1)], [(8, 3), (1, 1)]);
        check(&mut fold, &both, &[("m", 3, 0), ("n", 1, 0), ("a", 6, 0), ("b", 4, 0)], [(13, 0), (1, 0)]);
        let one = models(&[("m", "b")]);
        check(&mut fold, &one, &[("m", 4, 0), ("n", 1, 0), ("b", 4, 0)], [(14, 0), (1, 0)]);
        // The name comes back, and later serves another base.
        check(&mut fold, &both, &[("m", 4, 0), ("n", 1, 0), ("a", 7, 0), ("b", 4, 0)], [(15, 0), (1, 0)]);
        let moved = models(&[("n", "a"), ("m", "b")]);
        check(&mut fold, &moved, &[("m", 4, 0), ("n", 1, 0), ("a", 7, 1), ("b", 4, 0)], [(15, 0), (1, 1)]);
        check(&mut fold, &moved, &[("m", 4, 0), ("n", 1, 0), ("a", 9, 0), ("b", 4, 0)], [(15, 0), (3, 0)]);
    }
}
