//! The loop's share in spare processes: asks the planner how many, has them made when nothing else starts, and shows them.

use crate::actuate::{Models, SparesView};
use crate::daemon::Daemon;
use crate::model_store::store_root;
use controller_core::snapshot::{InstanceState, Snapshot};
use controller_core::spares::{SpareCost, SparePlan};
use engine_wire::control::{HEADS_MAX, HeadSpec};
use metrics::gauge;
use serde::Serialize;

/// Spare processes as the admin API shows them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SparesSeen {
    pub wanted: u32,
    pub starts_expected: f64,
    pub why: String,
    #[serde(flatten)]
    pub spares: SparesView,
}

impl Daemon {
    /// After a tick: what it started goes first.
    pub(crate) fn keep_spares(&mut self, snapshot: &Snapshot, models: &Models) {
        let plan = self.spare_plan(snapshot, models);
        if !self.config.advise {
            let spec = |name: &String| {
                let record = models.get(name).filter(|record| record.head.is_some() && record.quantise.is_none())?;
                Some(HeadSpec { store: store_root(&self.config.state_dir), revision: record.revision.clone() })
            };
            let mut heads: Vec<HeadSpec> = plan.models.iter().filter_map(spec).take(HEADS_MAX).collect();
            heads.sort();
            self.actuator.keep_spares(plan.wanted, is_quiet(snapshot), heads);
        }
        let spares = self.actuator.spares();
        gauge!(telemetry::SPARES.name, "state" => "wanted").set(f64::from(plan.wanted));
        gauge!(telemetry::SPARES.name, "state" => "ready").set(spares.ready.len() as f64);
        gauge!(telemetry::SPARES.name, "state" => "making").set(f64::from(spares.making));
        let bytes: u64 = spares.ready.iter().map(|spare| spare.resident_bytes).sum();
        gauge!(telemetry::SPARES_BYTES.name).set(bytes as f64);
        let SparePlan { wanted, starts_expected, why, .. } = plan;
        self.publisher.spares(SparesSeen { wanted, starts_expected, why, spares });
    }

    fn spare_plan(&self, snapshot: &Snapshot, models: &Models) -> SparePlan {
        let (made_in, bytes) = self.actuator.spare_cost();
        let cost = SpareCost { made_in_s: made_in.as_secs_f64(), bytes };
        let adoptable = |name: &str| models.get(name).is_some_and(|record| record.engine.is_none());
        let plan = self.state.spares(snapshot, adoptable, cost);
        match self.config.spares {
            Some(wanted) => SparePlan { wanted, why: "fixed by --spares".to_owned(), ..plan },
            None => plan,
        }
    }
}

/// Whether nothing starts and nobody waits for a start.
fn is_quiet(snapshot: &Snapshot) -> bool {
    let starting = snapshot.instances.values().any(|instance| instance.state == InstanceState::Starting);
    !starting && snapshot.models.values().all(|model| model.demand.held == 0)
}
