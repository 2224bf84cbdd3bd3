//! The metric table, and what is generated from it: docs/metrics.md, the Grafana dashboard and the
//! alert rules. Code emits metrics by the constants here, so a name is spelled once.

pub mod table;
pub use table::*;
