//! Values of the maps that kernel programs and user space share, and those that the programs share among
//! themselves.

/// What a client speaks on a connection: not known, HTTP/1, HTTP/2 in the clear, TLS, or something else.
pub const PROTOCOL_UNKNOWN: u32 = 0;
pub const PROTOCOL_HTTP1: u32 = 1;
pub const PROTOCOL_HTTP2: u32 = 2;
pub const PROTOCOL_TLS: u32 = 3;
pub const PROTOCOL_OTHER: u32 = 4;

/// No request yet on the connection.
pub const PHASE_IDLE: u32 = 0;
/// A request has begun and no answer byte was seen.
pub const PHASE_REQUEST: u32 = 1;
/// Answer bytes were seen; the next segment that begins like a request is the next request.
pub const PHASE_RESPONSE: u32 = 2;

/// Counters of one watched port, one copy per CPU. A port is watched while it has an entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "pod", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct PortCounters {
    /// First attempts to connect.
    pub syns: u64,
    /// Repetitions of attempts already counted.
    pub syn_retries: u64,
    pub connections: u64,
    pub closed: u64,
    pub requests: u64,
    /// Requests whose first answer byte was seen.
    pub responses: u64,
    /// Largest accept queue seen by this CPU.
    pub accept_queue_max: u64,
    /// Segments that the server's side sent again, and resets of connections: sent and received.
    pub retransmits: u64,
    pub resets_sent: u64,
    pub resets_received: u64,
    /// Connections whose wait to be accepted is known, the sum of those waits, and the longest seen by this CPU.
    pub accepts: u64,
    pub accept_wait_ns: u64,
    pub accept_wait_ns_max: u64,
    /// Connections by what the client speaks on them. The rest said nothing, or too little, or had begun before the
    /// port was watched.
    pub http1: u64,
    pub http2: u64,
    pub tls: u64,
    pub other: u64,
    /// Payload bytes on those that are not HTTP/1, to the server and from it.
    pub opaque_request_bytes: u64,
    pub opaque_response_bytes: u64,
    pub reserved: u64,
}

impl PortCounters {
    /// What two CPUs counted together; maxima are maxima.
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            syns: self.syns + other.syns,
            syn_retries: self.syn_retries + other.syn_retries,
            connections: self.connections + other.connections,
            closed: self.closed + other.closed,
            requests: self.requests + other.requests,
            responses: self.responses + other.responses,
            accept_queue_max: self.accept_queue_max.max(other.accept_queue_max),
            retransmits: self.retransmits + other.retransmits,
            resets_sent: self.resets_sent + other.resets_sent,
            resets_received: self.resets_received + other.resets_received,
            accepts: self.accepts + other.accepts,
            accept_wait_ns: self.accept_wait_ns + other.accept_wait_ns,
            accept_wait_ns_max: self.accept_wait_ns_max.max(other.accept_wait_ns_max),
            http1: self.http1 + other.http1,
            http2: self.http2 + other.http2,
            tls: self.tls + other.tls,
            other: self.other + other.other,
            opaque_request_bytes: self.opaque_request_bytes + other.opaque_request_bytes,
            opaque_response_bytes: self.opaque_response_bytes + other.opaque_response_bytes,
            reserved: 0,
        }
    }
}

/// The listener of a watched port, as last seen. Shared by all CPUs: the last writer is right.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "pod", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct ListenQueue {
    /// Kernel address of the listening socket; only ever read through a fault-safe copy.
    pub socket: u64,
    pub sampled_ns: u64,
    pub depth: u32,
    pub limit: u32,
}

/// An attempt to connect, kept to tell its repetitions (same sequence number) from a new one, and how long its
/// connection then waits to be accepted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "pod", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct SynSeen {
    pub first_ns: u64,
    /// When the handshake was complete, and when the server took the connection; 0 until then.
    pub established_ns: u64,
    pub accepted_ns: u64,
    pub tcp_seq: u32,
    pub reserved: u32,
}

/// A connection on which the client said something.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "pod", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct FlowState {
    pub syn_ns: u64,
    pub start_ns: u64,
    pub first_byte_ns: u64,
    pub last_byte_ns: u64,
    /// Last eight bytes of the answer so far, the latest lowest: a chunk terminator may be split over segments.
    pub tail: u64,
    pub phase: u32,
    /// Number of the current request.
    pub request: u32,
    /// First TCP sequence number of the current request, and the highest end seen.
    pub request_seq: u32,
    pub request_end: u32,
    /// The same of the answers; `response_end` goes on over requests, so that a retransmission is known.
    pub response_seq: u32,
    pub response_end: u32,
    pub response_seen: u32,
    pub data_segments: u32,
    /// Answer segments whose text was sent up and that begin otherwise.
    pub other_segments: u32,
    /// Bytes of the current request that were told.
    pub request_told: u32,
    /// Unique number of this state.
    pub id: u64,
    /// Socket cookie of the server's socket.
    pub cookie: u64,
    pub protocol: u32,
    /// `data:` segments of the current answer, which is not the request's first where requests were sent ahead.
    pub data_told: u32,
    pub accept_wait_ns: u64,
    /// The first bytes of what may become a request, while they are fewer than four: how many, the bytes as
    /// [`u32::from_be_bytes`] would have them, their sequence number and the time of the first.
    pub begun_bytes: u32,
    pub begun: u32,
    pub begun_ns: u64,
    pub begun_seq: u32,
    /// Segments that the server's side sent again since the request began.
    pub retransmits: u32,
    /// Not 0 once a reset was received.
    pub reset: u32,
    /// What passes through here is a number of which the verifier knows nothing any more: without that it would look
    /// at all that follows once for each way that leads to it.
    pub forgotten: u32,
}

const _: () = assert!(size_of::<PortCounters>() == 160);
const _: () = assert!(size_of::<ListenQueue>() == 24);
const _: () = assert!(size_of::<SynSeen>() == 32);
const _: () = assert!(size_of::<FlowState>() == 144);
