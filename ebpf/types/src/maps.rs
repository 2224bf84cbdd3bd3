//! Values of the maps that kernel programs and user space share, and those that the programs share among
//! themselves.

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
    pub reserved: u64,
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

/// An attempt to connect, kept to tell its repetitions (same sequence number) from a new one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "pod", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct SynSeen {
    pub first_ns: u64,
    pub tcp_seq: u32,
    pub reserved: u32,
}

/// A connection that carried at least one request.
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
    /// Inode number of the socket's network namespace.
    pub net_namespace: u32,
    pub reserved: u32,
}

const _: () = assert!(size_of::<PortCounters>() == 64);
const _: () = assert!(size_of::<ListenQueue>() == 24);
const _: () = assert!(size_of::<SynSeen>() == 16);
const _: () = assert!(size_of::<FlowState>() == 104);
