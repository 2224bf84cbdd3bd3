//! Kernel counts and times as metrics, under the names of the metric table.

use crate::attach::ProbeStatus;
use crate::record::{PortRole, RequestEnd, RequestRecord};
use crate::witness::{PortSnapshot, Shared, locked};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use telemetry::{
    ITL_SECONDS, KERNEL_ACCEPT_QUEUE, KERNEL_ACCEPT_WAIT_SECONDS, KERNEL_CONNECTIONS_TOTAL, KERNEL_EVENTS_LOST_TOTAL,
    KERNEL_PROTOCOL_CONNECTIONS_TOTAL, KERNEL_REQUESTS_TOTAL, KERNEL_RESETS_TOTAL, KERNEL_RETRANSMITS_TOTAL,
    KERNEL_SYNS_TOTAL, PROBES_ATTACHED, TTFT_SECONDS,
};

const EXPORT_EVERY: Duration = Duration::from_secs(1);
const ROLES: [&str; 2] = ["gateway", "engine"];
const PROTOCOLS: [&str; 4] = ["http1", "http2", "tls", "other"];

/// Counts of ports that are no longer watched: totals may not fall.
static RETIRED: Mutex<Option<HashMap<&'static str, Totals>>> = Mutex::new(None);

#[derive(Clone, Copy, Default)]
struct Totals {
    syns: u64,
    connections: u64,
    requests: u64,
    accept_queue: u64,
    resets_sent: u64,
    resets_received: u64,
    retransmits: u64,
    /// Connections of HTTP/1, HTTP/2, TLS and others.
    protocols: [u64; 4],
}

impl Totals {
    fn add(&mut self, port: &PortSnapshot) {
        self.syns += port.syns;
        self.connections += port.connections;
        self.requests += port.requests;
        self.accept_queue += u64::from(port.accept_queue);
        self.resets_sent += port.resets_sent;
        self.resets_received += port.resets_received;
        self.retransmits += port.retransmits;
        let protocols = port.protocols;
        let connections = [protocols.http1, protocols.http2, protocols.tls, protocols.other];
        self.protocols.iter_mut().zip(connections).for_each(|(sum, connections)| *sum += connections);
    }
}

/// Writes the metrics once a second.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut every = tokio::time::interval(EXPORT_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        every.tick().await;
        export(&shared);
    }
}

fn export(shared: &Shared) {
    let Some(maps) = &shared.maps else { return };
    metrics::counter!(KERNEL_EVENTS_LOST_TOTAL.name).absolute(locked(maps).lost());
    // Held until the counts are read, so that a port that is being retired is in one place only.
    let mut retired = locked(&RETIRED);
    let mut totals = retired.get_or_insert_default().clone();
    let ports = locked(&shared.reassembly).ports();
    for port in ports.into_iter().filter_map(|port| shared.counters(port)) {
        totals.entry(port.role.label()).or_default().add(&port);
    }
    drop(retired);
    for role in ROLES {
        let sum = totals.get(role).copied().unwrap_or_default();
        metrics::counter!(KERNEL_SYNS_TOTAL.name, "port_role" => role).absolute(sum.syns);
        metrics::counter!(KERNEL_CONNECTIONS_TOTAL.name, "port_role" => role).absolute(sum.connections);
        metrics::counter!(KERNEL_REQUESTS_TOTAL.name, "port_role" => role).absolute(sum.requests);
        metrics::counter!(KERNEL_RETRANSMITS_TOTAL.name, "port_role" => role).absolute(sum.retransmits);
        for (sender, resets) in [("client", sum.resets_received), ("server", sum.resets_sent)] {
            metrics::counter!(KERNEL_RESETS_TOTAL.name, "port_role" => role, "sender" => sender).absolute(resets);
        }
        for (protocol, connections) in PROTOCOLS.into_iter().zip(sum.protocols) {
            let labels = [("port_role", role), ("protocol", protocol)];
            metrics::counter!(KERNEL_PROTOCOL_CONNECTIONS_TOTAL.name, &labels).absolute(connections);
        }
        metrics::gauge!(KERNEL_ACCEPT_QUEUE.name, "port_role" => role).set(sum.accept_queue as f64);
    }
}

impl Shared {
    /// Keeps the counts of a port that is about to be unwatched.
    pub(crate) fn retire(&self, port: u16) {
        let mut retired = locked(&RETIRED);
        let Some(mut snapshot) = self.counters(port) else { return };
        snapshot.accept_queue = 0;
        retired.get_or_insert_default().entry(snapshot.role.label()).or_default().add(&snapshot);
    }
}

/// One gauge per probe.
pub(crate) fn probes_attached(probes: &[ProbeStatus]) {
    for probe in probes {
        metrics::gauge!(PROBES_ATTACHED.name, "probe" => probe.probe).set(f64::from(u8::from(probe.attached)));
    }
}

/// Times of one request, and those of a stream at an engine's port.
pub(crate) fn observe(record: &RequestRecord) {
    let seconds = |ns: u64| ns as f64 / 1e9;
    if record.sequence == 0 && record.accept_wait_ns != 0 {
        metrics::histogram!(KERNEL_ACCEPT_WAIT_SECONDS.name, "port_role" => record.role.label())
            .record(seconds(record.accept_wait_ns));
    }
    let PortRole::Engine { model, .. } = &record.role else { return };
    if record.first_token_ns == 0 || record.end == RequestEnd::Lost {
        return;
    }
    let ttft = seconds(record.first_token_ns.saturating_sub(record.start_ns));
    metrics::histogram!(TTFT_SECONDS.name, "model" => model.clone(), "vantage" => "kernel").record(ttft);
    if record.itl_ns_mean != 0 {
        metrics::histogram!(ITL_SECONDS.name, "model" => model.clone(), "vantage" => "kernel")
            .record(seconds(record.itl_ns_mean));
    }
}
