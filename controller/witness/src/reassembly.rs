//! Turns events into request records. Pure: no clock, no I/O; the same events give the same records.
//!
//! One connection carries one request at a time. Events may be missing (the ring was full), so nothing
//! waits for a particular one: each carries its request's timeline so far, and a later request on the same
//! connection, its closing, or want of room ends what is still open. Memory is bounded by the number of
//! connections that are kept.

use crate::answer::Framing;
use crate::open::OpenRequest;
use crate::record::{FlowSample, PortRole, RequestEnd, RequestRecord};
use ebpf_types::{Event, FLAG_RESET, FLAG_TERMINATOR, FlowEvent, FlowKey, TokenEvent};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;

/// A connection that carried a request.
struct Connection {
    /// Number of its latest request.
    request: u32,
    /// That request, until its record is finished.
    open: Option<OpenRequest>,
    /// The kernel's number of it, 0 where unknown.
    flow: u64,
    /// Time of the latest event, ns.
    touched_ns: u64,
}

/// Samples that wait to be taken; beyond, the newest are dropped.
const SAMPLES_LIMIT: usize = 16384;

/// Totals of one port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortTotals {
    pub in_flight: u64,
    pub ended: u64,
}

/// The state machine.
pub struct Reassembly {
    roles: HashMap<u16, PortRole>,
    totals: HashMap<u16, PortTotals>,
    connections: HashMap<FlowKey, Connection>,
    /// Connections by the kernel's number.
    flows: HashMap<u64, FlowKey>,
    capacity: usize,
    /// Requests seen so far: the latest one's number.
    numbered: u64,
    samples: Vec<FlowSample>,
    /// Key of the fingerprints.
    key: RandomState,
}

impl Reassembly {
    /// Keeps at most `capacity` connections (at least 8).
    pub fn new(capacity: usize) -> Self {
        Self {
            roles: HashMap::new(),
            totals: HashMap::new(),
            connections: HashMap::new(),
            flows: HashMap::new(),
            capacity: capacity.max(8),
            numbered: 0,
            samples: Vec::new(),
            key: RandomState::new(),
        }
    }

    /// Events of a port are dropped until its role is known.
    pub fn watch(&mut self, port: u16, role: PortRole) {
        self.roles.insert(port, role);
        self.totals.entry(port).or_default();
    }

    /// Forgets a port; its open requests are finished as lost.
    pub fn unwatch(&mut self, port: u16, finished: &mut Vec<RequestRecord>) {
        let keys: Vec<FlowKey> = self.connections.keys().filter(|key| key.server_port == port).copied().collect();
        for key in keys {
            self.drop_connection(&key, finished);
        }
        self.roles.remove(&port);
        self.totals.remove(&port);
    }

    pub fn role(&self, port: u16) -> Option<&PortRole> {
        self.roles.get(&port)
    }

    /// Watched ports in order.
    pub fn ports(&self) -> Vec<u16> {
        let mut ports: Vec<u16> = self.roles.keys().copied().collect();
        ports.sort_unstable();
        ports
    }

    pub fn totals(&self, port: u16) -> PortTotals {
        self.totals.get(&port).copied().unwrap_or_default()
    }

    /// Requests that are going on.
    pub fn in_flight(&self) -> u64 {
        self.totals.values().map(|totals| totals.in_flight).sum()
    }

    /// What happened on requests since the last call, in the order of its events.
    pub fn take_samples(&mut self) -> Vec<FlowSample> {
        std::mem::take(&mut self.samples)
    }

    /// Connections kept now.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Applies one event; finished records are appended.
    pub fn apply(&mut self, event: &Event<'_>, finished: &mut Vec<RequestRecord>) {
        match event {
            Event::Request(flow, text) => self.request(flow, text, finished),
            Event::Body(flow, text) => self.body(flow, text),
            Event::Token(token) => self.token(token),
            Event::Response(flow, text) => self.response(flow, text, finished),
            Event::Closed(flow) => self.closed(flow, finished),
            Event::Syn(_) | Event::Established(_) | Event::Exit(_) => {}
        }
    }

    /// The record of a request that is going on.
    pub fn open_record(&self, client: SocketAddr, sequence: u32) -> Option<RequestRecord> {
        self.connections
            .iter()
            .filter(|(key, connection)| connection.request == sequence && key.client_addr() == client)
            .find_map(|(_, connection)| connection.open.as_ref().map(|open| open.record.clone()))
    }

    /// Finishes, as lost, what has seen no event since `before_ns`: its closing was lost.
    pub fn sweep(&mut self, before_ns: u64, finished: &mut Vec<RequestRecord>) {
        let stale: Vec<FlowKey> =
            self.connections.iter().filter(|(_, c)| c.touched_ns < before_ns).map(|(key, _)| *key).collect();
        for key in stale {
            self.drop_connection(&key, finished);
        }
    }

    fn request(&mut self, flow: &FlowEvent, text: &[u8], finished: &mut Vec<RequestRecord>) {
        if let Some(connection) = self.connections.get_mut(&flow.key)
            && let Some(open) = connection.open.take()
        {
            // The client goes on, so it has the answer before; unless that never began, or it is a new
            // connection on the same ports whose predecessor's closing was lost.
            let answered = open.record.first_byte_ns != 0 && flow.request == connection.request.wrapping_add(1);
            self.finish(open, if answered { RequestEnd::Complete } else { RequestEnd::Lost }, finished);
        }
        self.begin(flow, text, finished);
    }

    /// More of a request whose beginning was seen.
    fn body(&mut self, flow: &FlowEvent, text: &[u8]) {
        let Some(connection) = self.connections.get_mut(&flow.key) else { return };
        if connection.request != flow.request || connection.flow != flow.flow {
            return;
        }
        connection.touched_ns = flow.header.at_ns;
        if let Some(open) = connection.open.as_mut() {
            open.more(flow, text, &mut self.samples);
        }
    }

    fn token(&mut self, token: &TokenEvent) {
        let Some(connection) = self.flows.get(&token.flow).and_then(|key| self.connections.get_mut(key)) else {
            return;
        };
        if connection.request != token.request {
            return;
        }
        connection.touched_ns = token.header.at_ns;
        if let Some(open) = connection.open.as_mut() {
            open.token(token, &mut self.samples);
        }
        self.samples.truncate(SAMPLES_LIMIT);
    }

    fn response(&mut self, flow: &FlowEvent, text: &[u8], finished: &mut Vec<RequestRecord>) {
        let known = self.connections.get(&flow.key).is_some_and(|connection| connection.request >= flow.request);
        if !known {
            self.request(flow, b"", finished);
        }
        let Some(connection) = self.connections.get_mut(&flow.key) else { return };
        connection.touched_ns = flow.header.at_ns;
        if connection.request != flow.request {
            return;
        }
        let Some(open) = connection.open.as_mut() else { return };
        open.advance(flow);
        open.read(flow, text, &mut self.samples);
        if open.answer.complete(flow.response_bytes, flow.header.flags & FLAG_TERMINATOR != 0)
            && let Some(open) = connection.open.take()
        {
            self.finish(open, RequestEnd::Complete, finished);
        }
    }

    fn closed(&mut self, flow: &FlowEvent, finished: &mut Vec<RequestRecord>) {
        let Some(connection) = self.remove(&flow.key) else { return };
        let Some(mut open) = connection.open else { return };
        if connection.request != flow.request {
            return self.finish(open, RequestEnd::Lost, finished);
        }
        open.advance(flow);
        let terminated = flow.header.flags & FLAG_TERMINATOR != 0;
        let reset = flow.header.flags & FLAG_RESET != 0;
        // A reset is no regular end of a body that only the end of its connection delimits.
        let complete = flow.first_byte_ns != 0
            && if reset {
                open.answer.complete(flow.response_bytes, terminated)
            } else {
                open.answer.complete_at_close(flow.response_bytes, terminated)
            };
        let head_missed = flow.first_byte_ns != 0 && open.answer.framing == Framing::Unknown;
        let end = match (complete, head_missed) {
            (true, _) => RequestEnd::Complete,
            (false, true) => RequestEnd::Lost,
            (false, false) if reset => RequestEnd::Reset,
            (false, false) => RequestEnd::Aborted,
        };
        self.finish(open, end, finished);
    }

    /// Opens a request. Its port must be watched.
    fn begin(&mut self, flow: &FlowEvent, text: &[u8], finished: &mut Vec<RequestRecord>) {
        let Some(role) = self.roles.get(&flow.key.server_port).cloned() else { return };
        if self.connections.len() >= self.capacity && !self.connections.contains_key(&flow.key) {
            self.make_room(finished);
        }
        self.remove(&flow.key);
        self.numbered += 1;
        let mut open = OpenRequest::new(self.numbered, flow, role, text, self.key.build_hasher());
        open.more(flow, text, &mut self.samples);
        self.totals.entry(flow.key.server_port).or_default().in_flight += 1;
        let (request, touched_ns) = (flow.request, flow.header.at_ns);
        self.connections.insert(flow.key, Connection { request, open: Some(open), flow: flow.flow, touched_ns });
        if flow.flow != 0 {
            self.flows.insert(flow.flow, flow.key);
        }
    }

    fn remove(&mut self, key: &FlowKey) -> Option<Connection> {
        let connection = self.connections.remove(key)?;
        // The number may be another's, where events are wrong.
        if self.flows.get(&connection.flow) == Some(key) {
            self.flows.remove(&connection.flow);
        }
        Some(connection)
    }

    /// Drops the eighth of the connections that were quiet longest; in one go, so that a flood of new ones
    /// costs each of them little.
    fn make_room(&mut self, finished: &mut Vec<RequestRecord>) {
        let mut by_age: Vec<(u64, FlowKey)> = self.connections.iter().map(|(key, c)| (c.touched_ns, *key)).collect();
        by_age.sort_unstable();
        for (_, key) in by_age.into_iter().take((self.capacity / 8).max(1)) {
            self.drop_connection(&key, finished);
        }
    }

    fn drop_connection(&mut self, key: &FlowKey, finished: &mut Vec<RequestRecord>) {
        if let Some(open) = self.remove(key).and_then(|connection| connection.open) {
            self.finish(open, RequestEnd::Lost, finished);
        }
    }

    fn finish(&mut self, open: OpenRequest, end: RequestEnd, finished: &mut Vec<RequestRecord>) {
        let totals = self.totals.entry(open.record.port).or_default();
        totals.in_flight = totals.in_flight.saturating_sub(1);
        totals.ended += 1;
        finished.push(open.into_record(end, &mut self.samples));
        self.samples.truncate(SAMPLES_LIMIT);
    }
}

#[cfg(test)]
#[path = "reassembly_tests.rs"]
mod tests;
