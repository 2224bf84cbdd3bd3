//! The `Signal` seam: whatever can be observed, read without waiting, since the loop reads every Signal
//! between a held request and the engine that it needs.
//!
//! Live Signals are the gateway's counters ([`GatewaySignal`]), the kernel's ([`KernelSignal`]) and the
//! engines' telemetry ([`Fleet`](crate::fleet::Fleet)). What they say of the same requests is joined in one
//! place, [`reconcile`].

pub mod adapters;
pub mod engine_view;
pub mod outside;
pub mod reconcile;

use controller_core::Nanos;
use controller_core::snapshot::{InstanceId, InstanceView, ModelName, Turn};
use serde::Serialize;
use std::collections::BTreeMap;

/// Something that can be observed.
pub trait Signal: Send {
    /// Adds what it sees now. Never waits, does no I/O.
    fn observe(&mut self, now_ns: Nanos, observations: &mut Observations);
}

/// What all Signals saw at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observations {
    pub now_ns: Nanos,
    pub gateway: GatewayReading,
    /// None without probes.
    pub kernel: Option<KernelReading>,
    pub instances: BTreeMap<InstanceId, InstanceView>,
}

/// Running totals of the gateway, since it started.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GatewayReading {
    /// Every HTTP request whose head was read at the data port, of whatever path. None when the gateway
    /// does not count them: nothing can be said then about requests that it has not named yet.
    pub requests_seen_total: Option<u64>,
    pub models: BTreeMap<ModelName, ModelDemand>,
}

/// The gateway's counters of one model.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ModelDemand {
    pub arrivals_total: u64,
    pub held: u32,
    pub in_flight: u32,
    pub prompt_tokens_total: u64,
    pub output_tokens_total: u64,
    /// Turns of conversations, and the newest of them, oldest first.
    pub turns_total: u64,
    pub turns: Vec<Turn>,
}

/// Running totals of the kernel at the gateway's port, since the probes were attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KernelReading {
    /// HTTP requests that began.
    pub requests_total: u64,
    /// First attempts to connect, those that a full backlog dropped too, and connections that were made.
    pub syns_total: u64,
    pub connections_total: u64,
}

impl KernelReading {
    /// Load as it is offered: requests that began, and an attempt to connect that has led to nothing yet counts as
    /// the request that it was made for. Connections that were being made when the probes came have no attempt here,
    /// so the total may start below the requests; only its growth means something.
    pub fn offered_total(&self) -> i64 {
        let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        signed(self.requests_total) + signed(self.syns_total) - signed(self.connections_total)
    }
}

/// The gateway's counters as a Signal.
pub struct GatewaySignal<F>(pub F);

impl<F: FnMut() -> GatewayReading + Send> Signal for GatewaySignal<F> {
    fn observe(&mut self, _now_ns: Nanos, observations: &mut Observations) {
        observations.gateway = (self.0)();
    }
}

/// The kernel's counters as a Signal; none while no probe is attached.
pub struct KernelSignal<F>(pub F);

impl<F: FnMut() -> Option<KernelReading> + Send> Signal for KernelSignal<F> {
    fn observe(&mut self, _now_ns: Nanos, observations: &mut Observations) {
        observations.kernel = (self.0)();
    }
}
