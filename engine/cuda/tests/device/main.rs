//! The device behind the `Forward` seam, on the emulated GPU: real and tiny models, invariance, graphs, faults.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/tiny.rs"]
mod tiny;

mod architectures;
mod choosing;
mod faults;
mod golden;
mod invariance;
