//! The kernel as witness: loads the probes, reads their events and rebuilds each request's timeline.
//!
//! It measures any engine, ours or not, without its help, and counts demand while user space is stalled.
//! What the kernel or the permissions do not allow is said once ([`Witness::summary`]) and left out.

mod answer;
mod attach;
pub mod body;
mod btf;
mod connection;
mod cuda;
pub mod exit;
mod export;
mod gaps;
mod maps;
mod open;
mod permission;
mod reader;
pub mod reassembly;
pub mod record;
mod unix;
mod witness;

pub use attach::ProbeStatus;
pub use body::BodyFacts;
pub use cuda::{CudaError, CudaWatch};
pub use ebpf_types::CudaCounters;
pub use exit::ExitReason;
pub use record::{Fidelity, FlowSample, Hop, PortRole, RequestEnd, RequestRecord, Vantage};
pub use unix::{UnixListener, unix_listeners};
pub use witness::{PortSnapshot, ProbeError, Protocols, Witness, WitnessOptions};
