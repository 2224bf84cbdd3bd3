//! The pure controller: what was observed goes in, actions and their reasons come out.
//!
//! No clock, randomness, await, environment or I/O: the simulator runs this very code.

pub mod action;
pub mod snapshot;

/// CLOCK_MONOTONIC, nanoseconds, as the caller read it (or the simulator made it up).
pub type Nanos = u64;
