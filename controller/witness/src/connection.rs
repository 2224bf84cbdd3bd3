//! The requests of one connection, in order. Mostly there is one at a time. A client may also send on before it has
//! its answers (pipelining): the kernel, which does not know where a body ends, numbers only a request that begins
//! once the answer before it has begun. The others are found here, by the announced lengths of those before them, and
//! the answers, which come in the same order, are cut where each ends.

use crate::answer::Framing;
use crate::open::OpenRequest;
use ebpf_types::{EVENT_RESPONSE, FlowEvent, TokenEvent};
use std::collections::VecDeque;

/// Requests of one connection that may wait for their answers; with more of them answers are told apart no longer.
pub(crate) const OPEN_LIMIT: usize = 128;

/// A connection that carried a request.
pub(crate) struct Connection {
    /// The kernel's number of its latest request.
    pub request: u32,
    /// The kernel's number of the connection, 0 where unknown.
    pub flow: u64,
    /// Time of the latest event, ns.
    pub touched_ns: u64,
    /// Requests so far that the kernel did not number, less those of its numbers that were none; modulo 2^32.
    pub pipelined: u32,
    /// Bytes of the kernel's request so far, and whether that was told as their total, as the kernel does before it
    /// begins the next one.
    request_bytes: u64,
    is_total: bool,
    /// Where in the kernel's request its last one ends, where that was announced.
    ends_at: Option<i64>,
    /// Those without a whole answer; the first is being answered.
    pub open: VecDeque<OpenRequest>,
    /// First bytes of what may be the next request, while they are too few to tell.
    pub rest: Vec<u8>,
    /// What follows the last request cannot be read.
    pub stray: bool,
    /// Where the answer of the first begins in the kernel's figures, if not where these begin.
    base: Option<Base>,
}

/// A position in the kernel's figures of one request; below 0 where that request began in the middle of an answer.
#[derive(Clone, Copy)]
struct Base {
    bytes: i64,
    data_segments: i64,
}

/// An event and its text.
pub(crate) type Part<'a> = (FlowEvent, &'a [u8]);

/// What a total is from a position on, which may lie before its beginning.
pub(crate) fn less(total: u64, base: i64) -> u64 {
    i64::try_from(total).unwrap_or(i64::MAX).saturating_sub(base).try_into().unwrap_or(0)
}

impl Connection {
    pub fn new(flow: &FlowEvent) -> Self {
        Self {
            request: flow.request,
            flow: flow.flow,
            touched_ns: flow.header.at_ns,
            pipelined: 0,
            request_bytes: 0,
            is_total: false,
            ends_at: None,
            open: VecDeque::new(),
            rest: Vec::new(),
            stray: false,
            base: None,
        }
    }

    /// Whether the kernel's next request was sent before the answers to those that are open.
    pub fn owes_answers(&self) -> bool {
        let Some(first) = self.open.front() else { return false };
        first.record.first_byte_ns != 0 && matches!(first.answer.framing, Framing::Length(_) | Framing::Chunked)
    }

    /// The requests of the kernel's request before, in the middle of whose answers this one begins.
    pub fn take_over(&mut self, mut before: Self) {
        before.count_on();
        self.open = before.open;
        self.base = before.base;
    }

    /// Keeps how far the client has come, by an event of the kernel's current request.
    pub fn seen(&mut self, flow: &FlowEvent) {
        self.touched_ns = flow.header.at_ns;
        if flow.request == self.request {
            self.request_bytes = self.request_bytes.max(flow.request_bytes);
            self.is_total = flow.header.kind == EVENT_RESPONSE && flow.segment_bytes == 0;
        }
    }

    /// Keeps where the last request ends.
    pub fn last_read(&mut self) {
        if let Some(last) = self.open.back() {
            self.ends_at = last.ends_at();
        }
    }

    /// Where in the kernel's request the last one ends, where that was announced.
    pub fn ends_at(&self) -> Option<i64> {
        self.ends_at
    }

    /// How many bytes from this one of the kernel's request on are the last request's.
    pub fn left_of_last(&self, byte: u64) -> usize {
        let Some(ends_at) = self.ends_at else { return usize::MAX };
        usize::try_from(ends_at.saturating_sub(i64::try_from(byte).unwrap_or(i64::MAX))).unwrap_or(0)
    }

    /// Whether the last request has, by what it announced, not come to its end yet.
    pub fn goes_on(&self) -> bool {
        let came_to = i64::try_from(self.request_bytes).unwrap_or(i64::MAX);
        self.is_total && self.ends_at.is_some_and(|ends_at| ends_at > came_to)
    }

    /// What the kernel took for the beginning of its next request is a piece of the last one.
    pub fn misread(&mut self, flow: &FlowEvent) {
        let came_to = self.request_bytes;
        self.count_on();
        self.ends_at = self.ends_at.map(|at| at.saturating_sub(i64::try_from(came_to).unwrap_or(i64::MAX)));
        self.request = flow.request;
        self.request_bytes = flow.request_bytes;
        self.pipelined = self.pipelined.wrapping_sub(1);
    }

    /// The kernel counts from nothing, for its next request, in the middle of what is being answered.
    pub fn count_on(&mut self) {
        let came_to = self.request_bytes;
        self.open.iter_mut().for_each(|open| open.count_from(came_to));
        if let Some(first) = self.open.front() {
            let bytes = -i64::try_from(first.record.response_bytes).unwrap_or(i64::MAX);
            self.base = Some(Base { bytes, data_segments: -i64::from(first.kernel_segments()) });
        }
    }

    /// An event as it is for the first of the open requests alone.
    pub fn of_first(&self, flow: &FlowEvent) -> FlowEvent {
        let mut event = *flow;
        // With several the kernel's count spans them.
        if self.open.len() > 1 || self.base.is_some() {
            event.request_bytes = 0;
        }
        let Some(base) = self.base else { return event };
        event.response_bytes = less(flow.response_bytes, base.bytes);
        event.data_segments = less(flow.data_segments.into(), base.data_segments) as u32;
        event.first_byte_ns = match self.open.front() {
            Some(first) if first.record.first_byte_ns != 0 => first.record.first_byte_ns,
            _ if flow.segment_bytes > 0 => flow.header.at_ns,
            _ => 0,
        };
        event
    }

    /// The same of a token.
    pub fn token_of_first(&self, token: &TokenEvent) -> TokenEvent {
        let mut event = *token;
        if let Some(base) = self.base {
            event.data_segments = less(token.data_segments.into(), base.data_segments) as u32;
            event.response_bytes = less(token.response_bytes.into(), base.bytes) as u32;
        }
        event
    }

    /// Cuts the first part off an answer's segment, which belongs to the first of several open requests, and gives
    /// the event of that part, its text, and what is left of both; nothing is left where it is all the first's.
    pub fn cut<'a>(&self, flow: &FlowEvent, text: &'a [u8]) -> (Part<'a>, Option<Part<'a>>) {
        let event = self.of_first(flow);
        let several = self.open.len() > 1;
        let boundary = self.open.front().filter(|_| several && flow.segment_bytes > 0).and_then(|first| {
            first.answer.boundary(text, flow.segment_bytes, event.response_bytes).filter(|&at| at < flow.segment_bytes)
        });
        let Some(own) = boundary else { return ((event, text), None) };
        let rest_bytes = flow.segment_bytes - own;
        let (own_text, rest_text) = text.split_at(text.len().min(own as usize));
        let mut head = event;
        head.segment_bytes = own;
        head.response_bytes = event.response_bytes.saturating_sub(rest_bytes.into());
        // Where a segment holds several answers the kernel counts it once, for the last of them.
        head.data_segments = self.open.front().map_or(0, OpenRequest::kernel_segments);
        let mut rest = *flow;
        rest.segment_bytes = rest_bytes;
        ((head, own_text), Some((rest, rest_text)))
    }

    /// The first has its answer, which ends `rest_bytes` before the end of this event's segment.
    pub fn first_answered(&mut self, flow: &FlowEvent, rest_bytes: u32) -> Option<OpenRequest> {
        let first = self.open.pop_front();
        let bytes = i64::try_from(flow.response_bytes).unwrap_or(i64::MAX) - i64::from(rest_bytes);
        let told = i64::from(flow.data_segments) - i64::from(rest_bytes > 0 && flow.data_segments > 0);
        self.base = (!self.open.is_empty()).then_some(Base { bytes, data_segments: told });
        first
    }
}
