//! The kernel as witness: loads the probes, reads their events and rebuilds each request's timeline.

pub mod record;
pub use record::RequestRecord;
