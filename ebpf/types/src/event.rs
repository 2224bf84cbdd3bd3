//! What the kernel programs write into the ring buffer. All times are CLOCK_MONOTONIC nanoseconds, 0
//! where not seen yet.

/// A SYN arrived at a watched port; [`FLAG_RETRY`] when the same attempt was seen before.
pub const EVENT_SYN: u16 = 1;
/// The handshake was completed on the server's side.
pub const EVENT_ESTABLISHED: u16 = 2;
/// A request began; the text is the beginning of its first segment.
pub const EVENT_REQUEST: u16 = 3;
/// A segment of an answer; the text is the beginning of its payload while that can still matter.
pub const EVENT_RESPONSE: u16 = 4;
/// The connection was closed; the counters are final.
pub const EVENT_CLOSED: u16 = 5;
/// A watched process ended: an [`ExitEvent`].
pub const EVENT_EXIT: u16 = 6;
/// A further `data:` segment of a stream: a [`TokenEvent`].
pub const EVENT_TOKEN: u16 = 7;
/// More of a request: the text follows that of the events before it without a hole.
pub const EVENT_BODY: u16 = 8;

/// The SYN is a repetition of one already counted.
pub const FLAG_RETRY: u16 = 1;
/// First segment of the answer.
pub const FLAG_FIRST: u16 = 2;
/// The stream of answer bytes ends, with this segment, in the last chunk of a chunked body.
pub const FLAG_TERMINATOR: u16 = 4;
/// The connection was torn down without the server's regular end: by a reset of either side, or since nothing was
/// acknowledged any more.
pub const FLAG_RESET: u16 = 8;
/// The text does not follow what was told before: its segment begins like a request while the one before has no answer
/// yet, and whether it is one, or a part of that one's body, only that one's length tells.
pub const FLAG_AGAIN: u16 = 16;

/// The process was chosen by the out-of-memory killer.
pub const EXIT_OOM_VICTIM: u32 = 1;

/// A CPU wakes the reader for SYNs and requests at most this often, ns: whoever was woken looks again after this time.
pub const WAKE_EVERY_NS: u64 = 1_000_000;

/// Most bytes of a request that are told, over all of its segments.
pub const REQUEST_BYTES: usize = 2048;
/// Most bytes of text with the smallest events.
pub const LINE_BYTES: usize = 64;
/// Most bytes of text with an answer's segment.
pub const SEGMENT_BYTES: usize = 256;
/// Most bytes of text where headers and several events can share one segment.
pub const HEAD_BYTES: usize = 1024;

/// How every event begins.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "pod", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct EventHeader {
    pub kind: u16,
    pub flags: u16,
    /// Bytes of text that follow the fixed part.
    pub text_bytes: u32,
    pub at_ns: u64,
}

/// A connection as its server sees it. IPv4 addresses are written as IPv4-mapped IPv6 ones; ports are in
/// host order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "pod", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct FlowKey {
    pub client: [u8; 16],
    pub server: [u8; 16],
    pub client_port: u16,
    pub server_port: u16,
    /// Inode number of the server's network namespace, 0 where unknown: each has the same addresses for itself.
    pub net_namespace: u32,
}

/// Something on a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "pod", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct FlowEvent {
    pub header: EventHeader,
    pub key: FlowKey,
    pub syn_ns: u64,
    pub start_ns: u64,
    pub first_byte_ns: u64,
    /// Last answer segment so far.
    pub last_byte_ns: u64,
    /// Socket cookie of the server's socket (at a SYN, of the listener), 0 where unknown.
    pub cookie: u64,
    /// Unique number of the connection's state in the kernel, 0 where there is none; [`TokenEvent`] names it so.
    pub flow: u64,
    /// Bytes of the request so far, and of its answer up to the end of this segment.
    pub request_bytes: u64,
    pub response_bytes: u64,
    /// Answer segments so far that begin with a `data:` event, but for those that only end a stream.
    pub data_segments: u32,
    /// Payload bytes of this segment.
    pub segment_bytes: u32,
    /// Connections that wait to be accepted at this port's listener, and its limit; at SYN and establishment.
    pub accept_queue: u32,
    pub accept_queue_limit: u32,
    /// Number of the request on its connection, from 0.
    pub request: u32,
    /// Segments that the server's side sent again since the request began.
    pub retransmits: u32,
    /// Time that the connection waited to be accepted, 0 where unknown.
    pub accept_wait_ns: u64,
}

/// A segment of a stream beyond those that are told with their text, which begins with a `data:` event that
/// neither ends the stream nor holds a finish reason or a usage alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "pod", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct TokenEvent {
    /// Its `text_bytes` is 0.
    pub header: EventHeader,
    /// As in [`FlowEvent`].
    pub flow: u64,
    pub request: u32,
    pub data_segments: u32,
    /// Bytes of the answer so far, modulo 2^32.
    pub response_bytes: u32,
    /// Payload bytes of this segment.
    pub segment_bytes: u32,
}

/// A watched process ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "pod", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct ExitEvent {
    pub header: EventHeader,
    /// Process id in the host's namespace.
    pub pid: u32,
    /// Wait status as wait(2) has it: exit code in bits 8..16, or signal in bits 0..7 and core dump in bit 7.
    pub wait_status: u32,
    pub flags: u32,
    pub reserved: u32,
}

const _: () = assert!(size_of::<EventHeader>() == 16);
const _: () = assert!(size_of::<FlowKey>() == 40);
const _: () = assert!(size_of::<FlowEvent>() == 152 && align_of::<FlowEvent>() == 8);
const _: () = assert!(size_of::<TokenEvent>() == 40);
const _: () = assert!(size_of::<ExitEvent>() == 32);

impl FlowEvent {
    /// An event with nothing in it.
    pub const EMPTY: Self = Self {
        header: EventHeader { kind: 0, flags: 0, text_bytes: 0, at_ns: 0 },
        key: FlowKey { client: [0; 16], server: [0; 16], client_port: 0, server_port: 0, net_namespace: 0 },
        syn_ns: 0,
        start_ns: 0,
        first_byte_ns: 0,
        last_byte_ns: 0,
        cookie: 0,
        flow: 0,
        request_bytes: 0,
        response_bytes: 0,
        data_segments: 0,
        segment_bytes: 0,
        accept_queue: 0,
        accept_queue_limit: 0,
        request: 0,
        retransmits: 0,
        accept_wait_ns: 0,
    };
}
