//! Events and map layouts shared by the kernel programs and user space: sized integers only, no padding
//! that is not named, sizes asserted at compile time.
//!
//! The kernel programs report what crossed a watched port and leave its meaning to user space. Every
//! flow event therefore carries the whole timeline of its request so far: when some events are lost,
//! any later one is enough to rebuild what the lost ones said.
#![no_std]

mod cuda;
mod event;
mod maps;
#[cfg(feature = "pod")]
mod parse;
mod process;

/// Whether a request of HTTP/1 begins so.
#[inline(always)]
pub fn is_method(begin: [u8; 4]) -> bool {
    matches!(&begin, b"POST" | b"GET " | b"PUT " | b"HEAD" | b"DELE" | b"OPTI" | b"PATC" | b"CONN" | b"TRAC")
}

pub use cuda::CudaCounters;
pub use event::{
    EVENT_BODY, EVENT_CLOSED, EVENT_ESTABLISHED, EVENT_EXIT, EVENT_REQUEST, EVENT_RESPONSE, EVENT_SYN, EVENT_TOKEN,
    EXIT_OOM_VICTIM, EventHeader, ExitEvent, FLAG_AGAIN, FLAG_FIRST, FLAG_RESET, FLAG_RETRY, FLAG_TERMINATOR,
    FlowEvent, FlowKey, HEAD_BYTES, LINE_BYTES, REQUEST_BYTES, SEGMENT_BYTES, TokenEvent, WAKE_EVERY_NS,
};
pub use maps::{
    FlowState, ListenQueue, PHASE_IDLE, PHASE_REQUEST, PHASE_RESPONSE, PROTOCOL_HTTP1, PROTOCOL_HTTP2, PROTOCOL_OTHER,
    PROTOCOL_TLS, PROTOCOL_UNKNOWN, PortCounters, SynSeen,
};
#[cfg(feature = "pod")]
pub use parse::{Event, ParseError, parse};
pub use process::{
    BlockStart, ProcessCounters, QUIET_BODIES, QUIET_TOKENS, TASK_STOPPED, TASK_UNINTERRUPTIBLE, TIME_BUCKETS,
    ThreadSeen,
};
