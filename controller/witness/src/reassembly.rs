//! Turns events into request records. Pure: no clock, no I/O; the same events give the same records.
//!
//! One connection carries one request at a time, or several in their order. Events may be missing (the ring was full), so nothing
//! waits for a particular one: each carries its request's timeline so far, and a later request on the same
//! connection, its closing, or want of room ends what is still open. Memory is bounded by the number of
//! connections that are kept.

use crate::answer::Framing;
use crate::connection::{Connection, OPEN_LIMIT};
use crate::open::OpenRequest;
use crate::record::{FlowSample, PortRole, RequestEnd, RequestRecord};
use ebpf_types::{Event, FLAG_AGAIN, FLAG_RESET, FLAG_TERMINATOR, FlowEvent, FlowKey, TokenEvent, is_method};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;

/// Samples that wait to be taken; beyond, the newest are dropped.
const SAMPLES_LIMIT: usize = 16384;

/// Totals of one port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortTotals {
    pub in_flight: u64,
    pub ended: u64,
    /// Requests that the kernel did not count, since they were sent before the answer to the one before began.
    pub pipelined: u64,
    /// What the kernel counted as requests and was pieces of others.
    pub misread: u64,
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
            Event::Body(flow, text) => self.body(flow, text, finished),
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
            .filter(|(key, _)| key.client_addr() == client)
            .flat_map(|(_, connection)| &connection.open)
            .find(|open| open.record.sequence == sequence)
            .map(|open| open.record.clone())
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
        let mut sent_ahead = false;
        if let Some(connection) = self.connections.get_mut(&flow.key) {
            let follows = flow.request == connection.request.wrapping_add(1) && flow.flow == connection.flow;
            if follows && connection.goes_on() {
                connection.misread(flow);
                self.totals.entry(flow.key.server_port).or_default().misread += 1;
                return self.read_on(flow, text, finished);
            }
            sent_ahead = follows && connection.owes_answers();
            if !sent_ahead {
                // The client goes on, so it has the answer before; unless that never began, or it is a new
                // connection on the same ports whose predecessor's closing was lost.
                for open in std::mem::take(&mut connection.open) {
                    let answered = open.record.first_byte_ns != 0 && follows;
                    self.finish(open, if answered { RequestEnd::Complete } else { RequestEnd::Lost }, finished);
                }
            }
        }
        self.begin(flow, text, sent_ahead, finished);
    }

    /// More of a request whose beginning was seen.
    fn body(&mut self, flow: &FlowEvent, text: &[u8], finished: &mut Vec<RequestRecord>) {
        let Some(connection) = self.connections.get_mut(&flow.key) else { return };
        if connection.request != flow.request || connection.flow != flow.flow {
            return;
        }
        connection.seen(flow);
        if flow.header.flags & FLAG_AGAIN == 0 {
            return self.read_on(flow, text, finished);
        }
        let begins_at = flow.request_bytes.saturating_sub(flow.segment_bytes.into());
        if connection.ends_at().is_some_and(|at| Some(at) == i64::try_from(begins_at).ok()) {
            connection.stray = false;
            connection.rest.clear();
            self.open(flow, text, begins_at, finished);
        }
    }

    /// Reads on in the last request of a connection, and in those that follow it in the same text.
    fn read_on(&mut self, flow: &FlowEvent, text: &[u8], finished: &mut Vec<RequestRecord>) {
        let Some(connection) = self.connections.get_mut(&flow.key) else { return };
        let text_at = flow.request_bytes.saturating_sub(flow.segment_bytes.into());
        let mut joined = std::mem::take(&mut connection.rest);
        let waited = joined.len();
        let left = if waited > 0 {
            joined.extend_from_slice(text);
            joined
        } else {
            let taken = match connection.open.back_mut() {
                Some(last) => last.more(flow, text, &mut self.samples),
                // It has its answer already, and is still being sent.
                None => connection.left_of_last(text_at).min(text.len()),
            };
            connection.last_read();
            text[taken..].to_vec()
        };
        let begins_at = (text_at + text.len() as u64).saturating_sub(left.len() as u64);
        let blank = left.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        let (left, begins_at) = (&left[blank..], begins_at + blank as u64);
        if left.is_empty() || connection.stray {
            return;
        }
        match left.first_chunk::<4>() {
            None => connection.rest = left.to_vec(),
            Some(begin) if is_method(*begin) => self.open(flow, left, begins_at, finished),
            Some(_) => connection.stray = true,
        }
    }

    /// Opens a request that the kernel did not number, behind the others of its connection.
    fn open(&mut self, flow: &FlowEvent, text: &[u8], begins_at: u64, finished: &mut Vec<RequestRecord>) {
        let Some(role) = self.roles.get(&flow.key.server_port).cloned() else { return };
        let Some(connection) = self.connections.get_mut(&flow.key) else { return };
        connection.pipelined = connection.pipelined.wrapping_add(1);
        self.numbered += 1;
        let begun = FlowEvent {
            start_ns: flow.header.at_ns,
            request: flow.request.wrapping_add(connection.pipelined),
            first_byte_ns: 0,
            last_byte_ns: 0,
            response_bytes: 0,
            data_segments: 0,
            ..*flow
        };
        let mut open = OpenRequest::new(self.numbered, &begun, role, text, self.key.build_hasher());
        open.begins_at(begins_at);
        let totals = self.totals.entry(flow.key.server_port).or_default();
        totals.in_flight += 1;
        totals.pipelined += 1;
        connection.open.push_back(open);
        if connection.open.len() > OPEN_LIMIT {
            let all = std::mem::take(&mut connection.open);
            return all.into_iter().for_each(|open| self.finish(open, RequestEnd::Lost, finished));
        }
        // The text reaches to the end of what is told of the segment.
        let rest =
            FlowEvent { segment_bytes: text.len() as u32, request_bytes: begins_at + text.len() as u64, ..*flow };
        self.read_on(&rest, text, finished);
    }

    fn token(&mut self, token: &TokenEvent) {
        let Some(connection) = self.flows.get(&token.flow).and_then(|key| self.connections.get_mut(key)) else {
            return;
        };
        if connection.request != token.request {
            return;
        }
        connection.touched_ns = token.header.at_ns;
        let token = connection.token_of_first(token);
        if let Some(open) = connection.open.front_mut() {
            open.token(&token, &mut self.samples);
        }
        self.samples.truncate(SAMPLES_LIMIT);
    }

    fn response(&mut self, flow: &FlowEvent, text: &[u8], finished: &mut Vec<RequestRecord>) {
        let known = self.connections.get(&flow.key).is_some_and(|connection| connection.request >= flow.request);
        if !known {
            self.request(flow, b"", finished);
        }
        let mut left = Some((*flow, text));
        while let Some((flow, text)) = left.take() {
            let Some(connection) = self.connections.get_mut(&flow.key) else { return };
            connection.seen(&flow);
            if connection.request != flow.request {
                return;
            }
            let ((event, own), rest) = connection.cut(&flow, text);
            let Some(open) = connection.open.front_mut() else { return };
            open.advance(&event);
            open.read(&event, own, &mut self.samples);
            let terminated = flow.header.flags & FLAG_TERMINATOR != 0;
            if rest.is_some() || open.answer.complete(event.response_bytes, terminated) {
                let rest_bytes = rest.map_or(0, |(rest, _)| rest.segment_bytes);
                if let Some(open) = connection.first_answered(&flow, rest_bytes) {
                    self.finish(open, RequestEnd::Complete, finished);
                }
            }
            left = rest;
        }
    }

    fn closed(&mut self, flow: &FlowEvent, finished: &mut Vec<RequestRecord>) {
        let Some(mut connection) = self.remove(&flow.key) else { return };
        if connection.request != flow.request {
            return connection.open.into_iter().for_each(|open| self.finish(open, RequestEnd::Lost, finished));
        }
        let event = connection.of_first(flow);
        let Some(mut open) = connection.open.pop_front() else { return };
        open.advance(&event);
        let terminated = flow.header.flags & FLAG_TERMINATOR != 0;
        let reset = flow.header.flags & FLAG_RESET != 0;
        // A reset is no regular end of a body that only the end of its connection delimits.
        let complete = event.first_byte_ns != 0
            && if reset {
                open.answer.complete(event.response_bytes, terminated)
            } else {
                open.answer.complete_at_close(event.response_bytes, terminated)
            };
        let head_missed = event.first_byte_ns != 0 && open.answer.framing == Framing::Unknown;
        let cut = if reset { RequestEnd::Reset } else { RequestEnd::Aborted };
        let end = match (complete, head_missed) {
            (true, _) => RequestEnd::Complete,
            (false, true) => RequestEnd::Lost,
            (false, false) => cut,
        };
        self.finish(open, end, finished);
        connection.open.into_iter().for_each(|open| self.finish(open, cut, finished));
    }

    /// Opens a request, behind others that wait for their answers if it was sent ahead of those. Its port must be watched.
    fn begin(&mut self, flow: &FlowEvent, text: &[u8], sent_ahead: bool, finished: &mut Vec<RequestRecord>) {
        let Some(role) = self.roles.get(&flow.key.server_port).cloned() else { return };
        if self.connections.len() >= self.capacity && !self.connections.contains_key(&flow.key) {
            self.make_room(finished);
        }
        let mut connection = Connection::new(flow);
        if let Some(before) = self.remove(&flow.key).filter(|before| before.flow == flow.flow) {
            connection.pipelined = before.pipelined;
            if sent_ahead {
                connection.take_over(before);
            }
        }
        connection.seen(flow);
        self.numbered += 1;
        let numbered = FlowEvent { request: flow.request.wrapping_add(connection.pipelined), ..*flow };
        connection.open.push_back(OpenRequest::new(self.numbered, &numbered, role, text, self.key.build_hasher()));
        self.totals.entry(flow.key.server_port).or_default().in_flight += 1;
        self.connections.insert(flow.key, connection);
        if flow.flow != 0 {
            self.flows.insert(flow.flow, flow.key);
        }
        self.read_on(flow, text, finished);
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
        let open = self.remove(key).map(|connection| connection.open).unwrap_or_default();
        open.into_iter().for_each(|open| self.finish(open, RequestEnd::Lost, finished));
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
