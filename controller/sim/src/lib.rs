//! A deterministic simulator around the very same `controller_core::tick` that runs live.
//!
//! One seed gives one run, bit for bit: a workload, a node with cores and memory, engines that take their
//! time to start and serve in batches, and faults. Nothing of the controller is imitated; what stands in
//! is the world around it: the gateway's queue, the actuator and the engines. Invariant checkers look at
//! every step, and name what broke and when.

pub mod check;
pub mod cluster;
pub mod engine;
pub mod faults;
pub mod fleet;
pub mod gateway;
pub mod plot;
pub mod policies;
pub mod random;
pub mod run;
pub mod score;
pub mod study;
pub mod trace;
pub mod workload;

pub use check::{Invariant, Violation};
pub use faults::Faults;
pub use run::{Planner, Report, Scenario, SimModel, run};
pub use workload::Workload;

/// Nanoseconds of one second.
pub(crate) const NS_PER_S: u64 = 1_000_000_000;
/// Nanoseconds of one millisecond.
pub(crate) const NS_PER_MS: u64 = 1_000_000;

/// Does the fits that are due, which a live controller has done beside its loop. Here they take no time.
pub(crate) fn refit(state: &mut controller_core::State) {
    while let Some((model, refit)) = state.refit_due() {
        state.refitted(&model, refit.fit());
    }
}

/// Seconds as nanoseconds; negative counts as 0.
pub fn ns(seconds: f64) -> u64 {
    (seconds.max(0.0) * NS_PER_S as f64) as u64
}
