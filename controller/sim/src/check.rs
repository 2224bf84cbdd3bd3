//! The invariants, and what is told when one is broken.

use std::fmt;

/// What must hold in every run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Invariant {
    /// No core is given to two instances, nor one that the node does not have.
    CoresGivenOnce,
    /// The instances together stay within the memory budget.
    MemoryWithinBudget,
    /// No device of a fleet is given to two instances, nor one that it does not have.
    DeviceGivenOnce,
    /// Every request of a fleet is held, at one instance, or ended.
    NothingLostOrDoubled,
    /// A request is answered at most once.
    AnsweredOnce,
    /// The gateway's queue stays within its bound.
    HeldQueueBounded,
    /// No request waits without end for its first instance.
    NobodyStarves,
    /// Under steady load and without faults what is drained is not, but by chance, started again within a cold start.
    NoFlapping,
    /// The same snapshot again asks for nothing more.
    Idempotent,
    /// What is stated as a 0.9 quantile of load is one, but for what faults hide.
    CoverageHolds,
    /// Every action stands in a decision with a reason in words.
    EveryActionExplained,
    /// When the load has ended, every request was answered or refused.
    EveryRequestAnswered,
    /// When the load has ended, the models go back to zero.
    BackToZero,
}

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub struct Violation {
    pub invariant: Invariant,
    pub at_s: f64,
    /// What was seen.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} broken at {:.3} s: {}", self.invariant, self.at_s, self.detail)
    }
}

/// Judges one condition.
pub(crate) fn ensure(
    holds: bool,
    invariant: Invariant,
    at_ns: u64,
    detail: impl FnOnce() -> String,
) -> Result<(), Violation> {
    if holds {
        return Ok(());
    }
    Err(Violation { invariant, at_s: at_ns as f64 / crate::NS_PER_S as f64, detail: detail() })
}
