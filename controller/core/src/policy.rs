//! What things cost. The planner compares costs and has no timers of its own: an idle instance is given
//! up when holding it has cost as much as losing it would, and demand that moves to and fro moves nothing
//! unless the gain exceeds the price of the switch.
//!
//! The unit of cost is arbitrary; only ratios matter. By default it is one core held for one second.

use crate::outside::Slo;
use serde::{Deserialize, Serialize};

/// Prices and limits of the planner. `Default` suits a small node with models that start within seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// What requests are held to. The time between tokens bounds how full an instance is to be.
    pub slo: Slo,
    /// Cost of holding one core idle for a second.
    pub idle_cost_per_s: f64,
    /// Cost of holding one GiB idle for a second.
    pub memory_cost_per_gib_s: f64,
    /// Cost of a request that finds its model at zero, beside the time that it waits.
    pub miss_cost: f64,
    /// Cost of a request waiting for one second.
    pub wait_cost_per_s: f64,
    /// Cost of the work of one start: what it takes from the neighbours.
    pub start_cost: f64,
    /// Most instances of one model, whatever the demand.
    pub max_instances: u32,
    /// Cost of an answer that comes late because its instance has more requests than it is useful to fill it with.
    pub late_cost: f64,
    /// How full an instance may be, as a share of that number.
    pub target_fill: f64,
    /// Queueing time that is always acceptable, s. A queue that clears within a cold start is also accepted,
    /// since another instance could not help it.
    pub queue_target_s: f64,
    /// Of the time that two models share one slot, the share that may be lost to switching, 0..1.
    pub switching_share: f64,
    /// A started instance that is not seen within this time was not started, ms.
    pub pending_expiry_ms: u64,
    /// An instance that has not become ready within this time is given up, ms.
    pub start_timeout_ms: u64,
    /// Wait after the first failed start, doubled by each further one, ms.
    pub backoff_ms: u64,
    /// Most that the wait grows to, ms.
    pub backoff_cap_ms: u64,
    /// Time a drained instance has for finishing its streams, ms.
    pub drain_deadline_ms: u64,
    /// What decides which weights lie in host memory while nobody uses them.
    pub tiers: TierRule,
    /// Weights are worth keeping there for the starts expected within this time, s.
    pub tier_horizon_s: f64,
}

/// How weights that nobody uses share host memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TierRule {
    /// By what they are expected to save.
    #[default]
    Planned,
    /// Those used last stay, and so do instances: for comparison.
    Lru,
    /// None of them stay: for comparison.
    None,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            slo: Slo::default(),
            idle_cost_per_s: 1.0,
            memory_cost_per_gib_s: 0.2,
            miss_cost: 20.0,
            wait_cost_per_s: 5.0,
            start_cost: 10.0,
            max_instances: 64,
            late_cost: 2.0,
            target_fill: 1.0,
            queue_target_s: 0.5,
            switching_share: 0.2,
            pending_expiry_ms: 5_000,
            start_timeout_ms: 120_000,
            backoff_ms: 500,
            backoff_cap_ms: 60_000,
            drain_deadline_ms: 30_000,
            tiers: TierRule::Planned,
            tier_horizon_s: 60.0,
        }
    }
}

/// Bytes of one GiB.
const GIB_BYTES: f64 = 1_073_741_824.0;

impl Policy {
    /// Cost of holding one instance idle for a second. Never 0, so that it may divide.
    pub fn holding_cost_per_s(&self, cores: u32, bytes: u64) -> f64 {
        let cost = price(self.idle_cost_per_s) * f64::from(cores)
            + price(self.memory_cost_per_gib_s) * bytes as f64 / GIB_BYTES;
        cost.max(1e-9)
    }

    /// Cost of not having the first instance when so many requests come together: the miss of each, the wait of the
    /// first for a cold start and of the others for half of one, and what the instance holds while it starts and serves
    /// nobody.
    pub fn miss_cost_of(&self, cold_start_s: f64, holding_cost_per_s: f64, together: f64) -> f64 {
        let waited_s = cold_start_s * (1.0 + together) / 2.0;
        price(self.miss_cost) * together + price(self.wait_cost_per_s) * waited_s + holding_cost_per_s * cold_start_s
    }

    /// Cost of not having a further instance when it is wanted again: the start, and the wait of those whom the others do
    /// not serve in time meanwhile.
    pub fn restart_cost_of(&self, cold_start_s: f64, holding_cost_per_s: f64) -> f64 {
        price(self.start_cost) + (price(self.wait_cost_per_s) * 0.5 + holding_cost_per_s) * cold_start_s
    }

    /// What so much shorter a start saves those who wait for it, when so many come together.
    pub fn saved_cost_of(&self, saved_s: f64, together: f64) -> f64 {
        price(self.wait_cost_per_s) * saved_s * (1.0 + together) / 2.0
    }

    /// `target_fill`, made safe.
    pub(crate) fn usable_share(&self) -> f64 {
        if self.target_fill.is_finite() { self.target_fill.clamp(0.05, 4.0) } else { 1.0 }
    }

    /// The wait before the next try after so many failed starts in a row, ns.
    pub(crate) fn backoff_ns(&self, failures: u32) -> u64 {
        let doubled = self.backoff_ms.saturating_mul(1u64 << failures.saturating_sub(1).min(32));
        doubled.min(self.backoff_cap_ms).saturating_mul(crate::NS_PER_MS)
    }
}

/// A configured price, made safe: negative or not-a-number count as 0.
pub(crate) fn price(configured: f64) -> f64 {
    if configured.is_finite() { configured.clamp(0.0, 1e12) } else { 0.0 }
}
