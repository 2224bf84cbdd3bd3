//! The pure controller: what was observed goes in, actions and their reasons come out.
//!
//! No clock, randomness, await, environment or I/O: the simulator runs this very code. Collections are
//! ordered maps throughout, so the same state and snapshot give the same effects on every machine.

pub mod action;
mod burst;
pub mod capacity;
mod diff;
pub mod expect;
mod explain;
mod fleet;
pub mod forecast;
mod learn;
mod need;
mod outlook;
pub mod outside;
mod plan;
pub mod policy;
mod room;
mod silence;
pub mod snapshot;
pub mod spares;
mod staffing;
pub mod state;
mod step_fit;
pub mod tick;
mod tiers;
pub mod wake;

pub use expect::AVERAGED_S;
pub use policy::Policy;
pub use state::State;
pub use tick::tick;

/// CLOCK_MONOTONIC, nanoseconds, as the caller read it (or the simulator made it up).
pub type Nanos = u64;

/// Nanoseconds of one second.
pub(crate) const NS_PER_S: u64 = 1_000_000_000;
/// Nanoseconds of one millisecond.
pub(crate) const NS_PER_MS: u64 = 1_000_000;

/// So many seconds after a moment, none for less than 0 and no more than days.
pub(crate) fn after(at_ns: Nanos, s: f64) -> Nanos {
    at_ns.saturating_add((s.clamp(0.0, 1e6) * NS_PER_S as f64) as u64)
}

/// Seconds from `from` to `to`; 0 where time went backwards.
pub(crate) fn seconds_between(from: Nanos, to: Nanos) -> f64 {
    to.saturating_sub(from) as f64 / NS_PER_S as f64
}
