//! The GPU view: what the driver's management library (NVML) says of each GPU and MIG instance, once a second,
//! beside everything else and in nobody's way.
//!
//! A driver can hang in any call, and a card can fall off the bus. So one thread of its own asks the driver and
//! nothing waits for it; a second one keeps what was heard, and marks it stale when the first falls silent.
//! Without the library that is said once, and nothing is watched.

mod export;
mod nvml;
mod owner;
mod reading;
mod source;

pub use owner::{Owner, Owners};
pub use reading::{GpmReading, GpuProcess, GpuReading};
pub use source::{GpuOptions, GpuSource, GpuView};
