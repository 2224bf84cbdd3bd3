//! What leaves from watched ports: answers, told as segments with the beginning of their text while that
//! can still matter (status, length, first token) and silently counted after it.

use crate::connection::sample_queue;
use crate::kernel::watched_namespace;
use crate::maps::{
    EVENTS, FLOWS, PORTS, SCRATCH, SCRATCH_BYTES, add, count_lost, emit_quietly, flow_event, submit_quietly, terminated,
};
use crate::packet::{self, Segment, after};
use crate::protocol::is_opaque;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use ebpf_types::{
    EVENT_RESPONSE, EVENT_TOKEN, EventHeader, FLAG_FIRST, FlowEvent, FlowKey, FlowState, HEAD_BYTES, LINE_BYTES,
    PHASE_IDLE, PHASE_REQUEST, PHASE_RESPONSE, SEGMENT_BYTES, TokenEvent,
};

/// Segments that begin with a `data:` event and are told with their text: the first token is among them, unless a
/// server sends more than this many empty events before it.
const DATA_SEGMENTS_TOLD: u32 = 8;
/// The same for segments that begin otherwise: headers, chunk sizes on their own, JSON bodies.
const OTHER_SEGMENTS_TOLD: u32 = 16;

/// An event and the beginning of its segment.
#[repr(C)]
struct TextEvent<const N: usize> {
    event: FlowEvent,
    text: [u8; N],
}

/// What a segment begins with.
#[derive(Clone, Copy, PartialEq)]
enum Begin {
    Data,
    /// An answer's head.
    Head,
    /// An SSE comment, or a `data:` event that ends a stream: `[DONE]`, and `finished` and `failed` of the hop.
    Aside,
    Other,
}

/// Lets every packet pass.
#[cgroup_skb(egress)]
pub fn http_response(ctx: SkBuffContext) -> i32 {
    let _ = left(&ctx);
    1
}

#[inline(always)]
fn left(ctx: &SkBuffContext) -> Option<()> {
    let transport = packet::transport(ctx)?;
    let (server_port, client_port) = packet::ports(ctx, transport)?;
    let counters = PORTS.get_ptr_mut(server_port)?;
    let mut segment = packet::segment(ctx, transport)?;
    if segment.payload_bytes == 0 {
        return None;
    }
    let namespace = watched_namespace(packet::tcp_socket(ctx)?)?;
    let key = packet::flow_key(ctx, transport, false, (client_port, server_port), namespace)?;
    let flow = FLOWS.get_ptr_mut(&key)?;
    // SAFETY: a checked map value; see `request::on_payload` for who writes what.
    let flow = unsafe { &mut *flow };
    drop_repeated(flow, &mut segment)?;
    if flow.phase == PHASE_IDLE {
        // What the server says before it is known what is spoken is counted when that is told.
        flow.response_end = segment.tcp_seq.wrapping_add(segment.payload_bytes);
        if is_opaque(flow.protocol) {
            // SAFETY: a checked map value; only the address of the field is taken.
            add(unsafe { &raw mut (*counters).opaque_response_bytes }, segment.payload_bytes as u64);
        }
        return None;
    }
    let mut flags = 0;
    if flow.phase == PHASE_REQUEST {
        flags |= FLAG_FIRST;
        // SAFETY: a checked map value; only the address of the field is taken.
        add(unsafe { &raw mut (*counters).responses }, 1);
        sample_queue(server_port, counters);
    }
    advance(ctx, flow, &segment);
    segment.payload_bytes = forget(flow, segment.payload_bytes);
    tell(ctx, &key, flow, &segment, flags);
    None
}

/// Cuts what was sent before off the segment; None when that is all of it.
#[inline(always)]
fn drop_repeated(flow: &mut FlowState, segment: &mut Segment) -> Option<()> {
    let end = segment.tcp_seq.wrapping_add(segment.payload_bytes);
    if flow.response_seen == 0 {
        flow.response_seen = 1;
        flow.response_seq = segment.tcp_seq;
        flow.response_end = segment.tcp_seq;
    }
    if !after(end, flow.response_end) {
        return None;
    }
    if after(flow.response_end, segment.tcp_seq) {
        let repeated = flow.response_end.wrapping_sub(segment.tcp_seq);
        segment.payload_offset += repeated as usize;
        segment.payload_bytes = segment.payload_bytes.saturating_sub(repeated);
        segment.tcp_seq = flow.response_end;
    }
    Some(())
}

/// The same number, of which the verifier knows nothing.
#[inline(always)]
fn forget(flow: &mut FlowState, number: u32) -> u32 {
    let place = &raw mut flow.forgotten;
    // SAFETY: a field of a checked map value.
    unsafe {
        place.write_volatile(number);
        place.read_volatile()
    }
}

/// Moves the flow on over a new segment.
#[inline(always)]
fn advance(ctx: &SkBuffContext, flow: &mut FlowState, segment: &Segment) {
    // SAFETY: a plain kernel helper.
    let now = unsafe { bpf_ktime_get_ns() };
    if flow.phase == PHASE_REQUEST {
        flow.phase = PHASE_RESPONSE;
        flow.first_byte_ns = now;
        flow.response_seq = segment.tcp_seq;
    }
    flow.last_byte_ns = now;
    flow.response_end = segment.tcp_seq.wrapping_add(segment.payload_bytes);
    if segment.payload_bytes >= 8 {
        let tail: [u8; 8] = ctx.load(segment.payload_offset + segment.payload_bytes as usize - 8).unwrap_or([0; 8]);
        flow.tail = u64::from_be_bytes(tail);
    } else {
        for i in 0..7usize {
            if (i as u32) < segment.payload_bytes {
                let byte: u8 = ctx.load(segment.payload_offset + i).unwrap_or(0);
                flow.tail = flow.tail << 8 | byte as u64;
            }
        }
    }
}

#[inline(always)]
fn tell(ctx: &SkBuffContext, key: &FlowKey, flow: &mut FlowState, segment: &Segment, flags: u16) {
    let with_text = match begin(ctx, segment) {
        Begin::Data => {
            flow.data_segments += 1;
            flow.data_told += 1;
            if flow.data_told > DATA_SEGMENTS_TOLD && !terminated(flow) && !closes_stream(ctx, segment) {
                return tell_token(flow, segment);
            }
            true
        }
        Begin::Head => {
            flow.data_told = 0;
            flow.other_segments = 0;
            true
        }
        Begin::Aside => true,
        Begin::Other => {
            flow.other_segments += 1;
            flow.other_segments <= OTHER_SEGMENTS_TOLD
        }
    };
    let now = flow.last_byte_ns;
    if !with_text {
        // Of a stream's other segments the ends are enough; elsewhere user space counts bytes towards the
        // announced length.
        if flow.data_segments == 0 || terminated(flow) {
            let mut event = flow_event(EVENT_RESPONSE, flags, now, key, flow);
            event.segment_bytes = segment.payload_bytes;
            emit_quietly(&event);
        }
    } else if segment.payload_bytes <= LINE_BYTES as u32 {
        tell_text::<LINE_BYTES>(ctx, key, flow, segment, flags);
    } else if segment.payload_bytes <= SEGMENT_BYTES as u32 {
        tell_text::<SEGMENT_BYTES>(ctx, key, flow, segment, flags);
    } else {
        tell_text::<HEAD_BYTES>(ctx, key, flow, segment, flags);
    }
}

#[inline(always)]
fn tell_text<const N: usize>(ctx: &SkBuffContext, key: &FlowKey, flow: &FlowState, segment: &Segment, flags: u16) {
    let Some(mut entry) = EVENTS.reserve::<TextEvent<N>>(0) else {
        count_lost();
        return;
    };
    let target = entry.as_mut_ptr();
    // SAFETY: the reserved entry has room for the event and N bytes of text; `copy` stays within that.
    unsafe {
        (*target).event = flow_event(EVENT_RESPONSE, flags, flow.last_byte_ns, key, flow);
        (*target).event.segment_bytes = segment.payload_bytes;
        let text = (&raw mut (*target).text).cast::<u8>();
        (*target).event.header.text_bytes = packet::copy::<N>(ctx, segment.payload_offset, segment.payload_bytes, text);
    }
    submit_quietly(entry);
}

#[inline(always)]
fn tell_token(flow: &FlowState, segment: &Segment) {
    emit_quietly(&TokenEvent {
        header: EventHeader { kind: EVENT_TOKEN, flags: 0, text_bytes: 0, at_ns: flow.last_byte_ns },
        flow: flow.id,
        request: flow.request,
        data_segments: flow.data_segments,
        response_bytes: flow.response_end.wrapping_sub(flow.response_seq),
        segment_bytes: segment.payload_bytes,
    });
}

/// Whether a segment's first part holds a finish reason that is not null, or no choices at all as an event with
/// the usage alone: user space is to judge those by their text. Eight bytes are compared at once.
#[inline(always)]
fn closes_stream(ctx: &SkBuffContext, segment: &Segment) -> bool {
    const REASON: u64 = u64::from_le_bytes(*b"_reason\"");
    const CHOICES: u64 = u64::from_le_bytes(*b"hoices\":");
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return true };
    let text = scratch.cast::<u8>();
    // SAFETY: the scratch has SCRATCH_BYTES bytes, belongs to this CPU, and no other program that can interrupt
    // this one uses it; every read below ends before that.
    unsafe {
        let bytes = packet::copy::<SCRATCH_BYTES>(ctx, segment.payload_offset, segment.payload_bytes, text) as usize;
        for i in 0..SCRATCH_BYTES - 12 {
            if i + 12 > bytes {
                break;
            }
            let word = text.add(i).cast::<u64>().read_unaligned();
            let blank = (*text.add(i + 8) == b' ') as usize;
            if word == REASON {
                let blank = (*text.add(i + 9) == b' ') as usize;
                if *text.add(i + 9 + blank) == b'"' {
                    return true;
                }
            } else if word == CHOICES && *text.add(i + 8 + blank) == b'[' && *text.add(i + 9 + blank) == b']' {
                return true;
            }
        }
    }
    false
}

/// Looks at the first bytes of a segment, over a chunk's size line.
#[inline(always)]
fn begin(ctx: &SkBuffContext, segment: &Segment) -> Begin {
    let mut head = [0u8; 24];
    // SAFETY: the array has 24 bytes.
    unsafe { packet::copy::<24>(ctx, segment.payload_offset, segment.payload_bytes, head.as_mut_ptr()) };
    if head[0] == b'H' && head[1] == b'T' && head[2] == b'T' && head[3] == b'P' && head[4] == b'/' {
        return Begin::Head;
    }
    for i in 0..11usize {
        let line_start = i == 0 || head[i - 1] == b'\n';
        if !line_start {
            continue;
        }
        if head[i] == b':' {
            return Begin::Aside;
        }
        if head[i] == b'd' && head[i + 1] == b'a' && head[i + 2] == b't' && head[i + 3] == b'a' && head[i + 4] == b':' {
            let ends = head[i + 6] == b'[' || (head[i + 7] == b'"' && head[i + 8] == b'f');
            return if ends { Begin::Aside } else { Begin::Data };
        }
    }
    Begin::Other
}
