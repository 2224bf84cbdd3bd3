//! What a client speaks on a connection, told by its first four bytes. Only the beginning of a connection can be
//! told so; of one that began before its port was watched, a TLS record with data is taken as what it says it is,
//! and everything else stays unknown until a request begins.

use crate::maps::add;
use crate::packet::Segment;
use aya_ebpf::programs::SkBuffContext;
use ebpf_types::{PROTOCOL_HTTP1, PROTOCOL_HTTP2, PROTOCOL_OTHER, PROTOCOL_TLS, PROTOCOL_UNKNOWN, PortCounters};

/// TLS record types: handshake and application data.
const TLS_HANDSHAKE: u8 = 22;
const TLS_DATA: u8 = 23;

/// As many first bytes as are needed.
pub const ENOUGH_BYTES: u32 = 4;

/// First bytes in order, the first one highest, and how many.
#[derive(Clone, Copy)]
pub struct Begun {
    pub word: u32,
    pub bytes: u32,
}

impl Begun {
    /// These bytes, and as many more of the segment as are wanted.
    #[inline(always)]
    pub fn and(self, ctx: &SkBuffContext, segment: &Segment) -> Self {
        if self.bytes == 0 && segment.payload_bytes >= ENOUGH_BYTES {
            let word: [u8; 4] = ctx.load(segment.payload_offset).unwrap_or([0; 4]);
            return Self { word: u32::from_be_bytes(word), bytes: ENOUGH_BYTES };
        }
        let mut all = self;
        for i in 0..ENOUGH_BYTES {
            if i < segment.payload_bytes && all.bytes < ENOUGH_BYTES {
                let byte: u8 = ctx.load(segment.payload_offset + i as usize).unwrap_or(0);
                all.word = all.word << 8 | byte as u32;
                all.bytes += 1;
            }
        }
        all
    }
}

/// Whether a request of HTTP/1 begins so.
#[inline(always)]
pub fn is_method(word: u32) -> bool {
    ebpf_types::is_method(word.to_be_bytes())
}

/// What begins with these four bytes. `at_start`: they are the connection's first.
#[inline(always)]
pub fn classify(word: u32, at_start: bool) -> u32 {
    if is_method(word) {
        return PROTOCOL_HTTP1;
    }
    let bytes = word.to_be_bytes();
    let tls_version = bytes[1] == 3 && bytes[2] <= 4;
    if tls_version && (bytes[0] == TLS_DATA || (bytes[0] == TLS_HANDSHAKE && at_start)) {
        return PROTOCOL_TLS;
    }
    if !at_start {
        return PROTOCOL_UNKNOWN;
    }
    if &bytes == b"PRI " { PROTOCOL_HTTP2 } else { PROTOCOL_OTHER }
}

/// Counts a connection under what is spoken on it.
#[inline(always)]
pub fn count(counters: *mut PortCounters, protocol: u32) {
    // SAFETY: a checked map value; only addresses of its fields are taken.
    let counter = unsafe {
        match protocol {
            PROTOCOL_HTTP1 => &raw mut (*counters).http1,
            PROTOCOL_HTTP2 => &raw mut (*counters).http2,
            PROTOCOL_TLS => &raw mut (*counters).tls,
            PROTOCOL_OTHER => &raw mut (*counters).other,
            _ => return,
        }
    };
    add(counter, 1);
}

/// Whether bytes of such a connection are counted and nothing more.
#[inline(always)]
pub fn is_opaque(protocol: u32) -> bool {
    matches!(protocol, PROTOCOL_HTTP2 | PROTOCOL_TLS | PROTOCOL_OTHER)
}
