//! A request that is going on: takes the kernel's figures over, reads the texts, and counts tokens.

use crate::answer::Answer;
use crate::body::Request;
use crate::connection::less;
use crate::gaps::Gaps;
use crate::record::{Fidelity, FlowSample, PortRole, RequestEnd, RequestRecord, Vantage};
use ebpf_types::{FlowEvent, LINE_BYTES, TokenEvent};
use std::hash::DefaultHasher;

/// One request until its end.
pub(crate) struct OpenRequest {
    pub record: RequestRecord,
    pub answer: Answer,
    /// The beginning of the request, as much as its line is told of.
    line: Vec<u8>,
    number: u64,
    request: Request,
    /// Where in the kernel's request it begins.
    begins_at: i64,
    /// Its start was told.
    started: bool,
    /// `data:` segments that the kernel did not count, since something else stood before them.
    hidden_segments: u32,
    kernel_segments: u32,
    segments_at_token: u32,
    last_token_ns: u64,
    gaps: Gaps,
}

impl OpenRequest {
    /// `text` is the beginning of the request; empty where it was missed.
    pub fn new(number: u64, flow: &FlowEvent, role: PortRole, text: &[u8], keyed: DefaultHasher) -> Self {
        let record = RequestRecord {
            port: flow.key.server_port,
            vantage: Vantage { hop: role.hop(), net_namespace: flow.key.net_namespace, cookie: flow.cookie },
            role,
            client: flow.key.client_addr(),
            sequence: flow.request,
            line: String::new(),
            syn_ns: flow.syn_ns,
            accept_wait_ns: flow.accept_wait_ns,
            start_ns: flow.start_ns,
            first_byte_ns: flow.first_byte_ns,
            first_token_ns: 0,
            last_byte_ns: flow.last_byte_ns,
            status: 0,
            request_bytes: flow.request_bytes,
            response_bytes: flow.response_bytes,
            retransmits: flow.retransmits,
            data_segments: flow.data_segments,
            itl_ns_mean: 0,
            tokens: 0,
            itl_ns_p50: 0,
            itl_ns_p99: 0,
            itl_ns_max: 0,
            body: None,
            fingerprint: 0,
            fidelity: if text.is_empty() { Fidelity::Bytes } else { Fidelity::Counted },
            end: RequestEnd::InProgress,
        };
        Self {
            record,
            answer: Answer::new(),
            line: Vec::new(),
            number,
            begins_at: 0,
            request: Request::new(keyed),
            started: false,
            hidden_segments: 0,
            kernel_segments: 0,
            segments_at_token: 0,
            last_token_ns: 0,
            gaps: Gaps::default(),
        }
    }

    /// Reads on in the request, and says how much of the text is its own.
    pub fn more(&mut self, flow: &FlowEvent, text: &[u8], samples: &mut Vec<FlowSample>) -> usize {
        let taken = self.request.push(text);
        self.came_to(flow);
        let text = &text[..taken];
        let room = LINE_BYTES.saturating_sub(self.line.len());
        if room > 0 && !text.is_empty() {
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            self.record.line = request_line(&self.line);
        }
        // A segment that is told in part has reached the bound.
        if self.request.done() || text.len() < flow.segment_bytes as usize {
            self.known(samples);
        }
        taken
    }

    /// Begins at this byte of the kernel's request, in which others were sent before it.
    pub fn begins_at(&mut self, byte: u64) {
        self.begins_at = i64::try_from(byte).unwrap_or(i64::MAX);
        self.record.request_bytes = 0;
    }

    /// The kernel's next request, from whose beginning it counts, begins at this byte of the one before.
    pub fn count_from(&mut self, byte: u64) {
        self.begins_at = self.begins_at.saturating_sub(i64::try_from(byte).unwrap_or(i64::MAX));
    }

    /// Where in the kernel's request it ends, if it announced that.
    pub fn ends_at(&self) -> Option<i64> {
        let announced = self.request.announced_bytes().or(self.request.whole_bytes())?;
        Some(self.begins_at.saturating_add(i64::try_from(announced).unwrap_or(i64::MAX)))
    }

    /// Keeps how much of it has come. The kernel's figure, 0 where it is not told, may span requests after this one.
    fn came_to(&mut self, flow: &FlowEvent) {
        if flow.request_bytes != 0 {
            let bytes = self.record.request_bytes.max(less(flow.request_bytes, self.begins_at));
            let whole_bytes = self.request.whole_bytes().or(self.request.announced_bytes());
            self.record.request_bytes = whole_bytes.map_or(bytes, |whole_bytes| bytes.min(whole_bytes));
        }
    }

    /// `data:` segments as the kernel counts them.
    pub fn kernel_segments(&self) -> u32 {
        self.kernel_segments
    }

    /// What is known of the request now stays as it is.
    fn known(&mut self, samples: &mut Vec<FlowSample>) {
        if self.started {
            return;
        }
        self.started = true;
        let record = &mut self.record;
        if record.line.starts_with("HEAD ") {
            self.answer.bodiless();
        }
        if self.request.is_nonsense() {
            record.fidelity = Fidelity::Bytes;
        }
        record.body = self.request.facts();
        if record.fidelity >= Fidelity::Counted {
            record.fingerprint = self.request.fingerprint();
        }
        if record.body.as_ref().is_some_and(|body| body.model.is_some()) {
            record.fidelity = Fidelity::Named;
        }
        samples.push(FlowSample::Start {
            port: record.port,
            flow: self.number,
            at_ns: record.start_ns,
            request_bytes: self.request.announced_bytes().unwrap_or(record.request_bytes),
            max_tokens: record.body.as_ref().and_then(|body| body.max_tokens),
        });
    }

    /// Takes over the kernel's totals.
    pub fn advance(&mut self, flow: &FlowEvent) {
        self.came_to(flow);
        let record = &mut self.record;
        record.first_byte_ns = flow.first_byte_ns;
        record.last_byte_ns = record.last_byte_ns.max(flow.last_byte_ns);
        record.response_bytes = record.response_bytes.max(flow.response_bytes);
        record.data_segments = flow.data_segments.saturating_add(self.hidden_segments);
        record.retransmits = record.retransmits.max(flow.retransmits);
        record.accept_wait_ns = record.accept_wait_ns.max(flow.accept_wait_ns);
    }

    /// Reads a segment's text.
    pub fn read(&mut self, flow: &FlowEvent, text: &[u8], samples: &mut Vec<FlowSample>) {
        self.known(samples);
        // An event without a segment repeats totals only.
        if flow.segment_bytes == 0 {
            return;
        }
        let segment = self.answer.segment(text, flow.segment_bytes, flow.response_bytes);
        self.record.status = self.answer.status;
        let told = flow.data_segments.wrapping_sub(self.kernel_segments);
        if segment.data && told == 0 {
            self.hidden_segments = self.hidden_segments.saturating_add(1);
        }
        self.kernel_segments = flow.data_segments;
        self.record.data_segments = flow.data_segments.saturating_add(self.hidden_segments);
        if segment.token && self.record.first_token_ns == 0 {
            self.record.first_token_ns = flow.header.at_ns;
            self.segments_at_token = self.record.data_segments;
        }
        if segment.token {
            self.tokens(flow.header.at_ns, 1, samples);
        }
    }

    /// Takes a further token.
    pub fn token(&mut self, token: &TokenEvent, samples: &mut Vec<FlowSample>) {
        self.known(samples);
        let more = token.data_segments.saturating_sub(self.kernel_segments);
        if more == 0 {
            return;
        }
        self.kernel_segments = token.data_segments;
        self.record.data_segments = token.data_segments.saturating_add(self.hidden_segments);
        self.record.last_byte_ns = self.record.last_byte_ns.max(token.header.at_ns);
        self.record.response_bytes = self.record.response_bytes.max(u64::from(token.response_bytes));
        self.answer.skip(token.segment_bytes);
        self.tokens(token.header.at_ns, more, samples);
    }

    fn tokens(&mut self, at_ns: u64, segments: u32, samples: &mut Vec<FlowSample>) {
        self.record.tokens = self.record.tokens.saturating_add(segments);
        self.record.fidelity = Fidelity::Tokens;
        // Where events are missing in between, the distance is no gap between two tokens.
        if segments == 1 && self.last_token_ns != 0 {
            self.gaps.add(at_ns.saturating_sub(self.last_token_ns));
        }
        self.last_token_ns = at_ns;
        samples.push(FlowSample::Token { port: self.record.port, flow: self.number, at_ns, segments });
    }

    pub fn into_record(mut self, end: RequestEnd, samples: &mut Vec<FlowSample>) -> RequestRecord {
        self.known(samples);
        let record = &mut self.record;
        record.end = end;
        let gaps = u64::from(record.data_segments.saturating_sub(self.segments_at_token));
        if record.first_token_ns != 0 && gaps > 0 {
            record.itl_ns_mean = record.last_byte_ns.saturating_sub(record.first_token_ns) / gaps;
        }
        record.itl_ns_p50 = self.gaps.quantile_ns(50);
        record.itl_ns_p99 = self.gaps.quantile_ns(99);
        record.itl_ns_max = self.gaps.max_ns();
        let at_ns = record.last_byte_ns.max(record.start_ns);
        samples.push(FlowSample::End { port: record.port, flow: self.number, at_ns, end });
        self.record
    }
}

/// The request line: no header, no query.
fn request_line(text: &[u8]) -> String {
    let ends = |byte: &u8| matches!(byte, b'\r' | b'\n' | b'?' | 0);
    let line = text.split(ends).next().unwrap_or_default();
    String::from_utf8_lossy(&line[..line.len().min(LINE_BYTES)]).into_owned()
}
