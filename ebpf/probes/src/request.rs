//! What arrives at watched ports: SYNs and the beginnings of requests.
//!
//! A SYN that finds a full backlog is dropped before any socket changes its state, so attempts are counted
//! here, before that. A request begins with a segment of new bytes that starts with an HTTP method, however that
//! is cut into segments, on a connection that has no request whose answer is still to begin. Its first bytes are
//! told, up to a bound. Of connections that speak something else the bytes are counted.

use crate::connection::{listener_found, sample_queue};
use crate::kernel::watched_namespace;
use crate::maps::{
    EVENTS, FLOWS, PORTS, SYNS, add, count_lost, emit, emit_quietly, flow_event, ring_has_room, submit, submit_quietly,
};
use crate::packet::{self, Segment, after};
use crate::protocol::{self, Begun, ENOUGH_BYTES};
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_get_socket_cookie, bpf_ktime_get_ns};
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use ebpf_types::{
    EVENT_BODY, EVENT_REQUEST, EVENT_RESPONSE, EVENT_SYN, FLAG_AGAIN, FLAG_RETRY, FlowEvent, FlowKey, FlowState,
    PHASE_IDLE, PHASE_REQUEST, PHASE_RESPONSE, PROTOCOL_UNKNOWN, PortCounters, REQUEST_BYTES, SEGMENT_BYTES, SynSeen,
};

/// An event and a piece of its request.
#[repr(C)]
struct TextEvent<const N: usize> {
    event: FlowEvent,
    text: [u8; N],
}

/// Lets every packet pass.
#[cgroup_skb(ingress)]
pub fn http_request(ctx: SkBuffContext) -> i32 {
    let _ = arrived(&ctx);
    1
}

#[inline(always)]
fn arrived(ctx: &SkBuffContext) -> Option<()> {
    let transport = packet::transport(ctx)?;
    let (client_port, server_port) = packet::ports(ctx, transport)?;
    let counters = PORTS.get_ptr_mut(server_port)?;
    let socket = packet::tcp_socket(ctx)?;
    let namespace = watched_namespace(socket)?;
    let segment = packet::segment(ctx, transport)?;
    let key = packet::flow_key(ctx, transport, true, (client_port, server_port), namespace)?;
    if segment.flags & (packet::SYN | packet::ACK) == packet::SYN {
        on_syn(ctx, &key, &segment, socket, counters);
        return None;
    }
    if segment.payload_bytes > 0 {
        on_payload(ctx, &key, &segment, counters);
    }
    None
}

#[inline(always)]
fn on_syn(ctx: &SkBuffContext, key: &FlowKey, segment: &Segment, socket: u64, counters: *mut PortCounters) {
    // SAFETY: plain kernel helpers; map values are checked, and only addresses of counters are taken.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: as above; a value that another CPU is writing gives at worst a mixed time.
    let retry = unsafe { SYNS.get(key) }.is_some_and(|seen| seen.tcp_seq == segment.tcp_seq);
    if retry {
        // SAFETY: as above.
        add(unsafe { &raw mut (*counters).syn_retries }, 1);
    } else {
        // SAFETY: as above.
        add(unsafe { &raw mut (*counters).syns }, 1);
        let _ = SYNS.insert(key, SynSeen { first_ns: now, tcp_seq: segment.tcp_seq, ..SynSeen::default() }, 0);
        // The ports are used again: what is left of an earlier connection is not this one's.
        let _ = FLOWS.remove(key);
    }
    listener_found(socket, key.server_port);
    let (depth, limit) = sample_queue(key.server_port, counters);
    if !ring_has_room() {
        return;
    }
    let flow = FlowState { syn_ns: now, ..FlowState::default() };
    let mut event = flow_event(EVENT_SYN, if retry { FLAG_RETRY } else { 0 }, now, key, &flow);
    // SAFETY: as above.
    event.cookie = unsafe { bpf_get_socket_cookie(ctx.skb.skb.cast()) };
    event.accept_queue = depth;
    event.accept_queue_limit = limit;
    emit(&event);
}

#[inline(always)]
fn on_payload(ctx: &SkBuffContext, key: &FlowKey, segment: &Segment, counters: *mut PortCounters) {
    let Some(flow) = FLOWS.get_ptr_mut(key).or_else(|| first_payload(ctx, key, segment)) else { return };
    // SAFETY: a checked map value. Only this program starts requests, and TCP runs it one segment at a
    // time for a connection; the other direction writes other fields, but for the phase, which follows.
    let flow = unsafe { &mut *flow };
    let end = segment.tcp_seq.wrapping_add(segment.payload_bytes);
    if !after(end, flow.request_end) {
        return;
    }
    if protocol::is_opaque(flow.protocol) {
        // SAFETY: a checked map value; only the address of the field is taken.
        add(unsafe { &raw mut (*counters).opaque_request_bytes }, end.wrapping_sub(flow.request_end) as u64);
        flow.request_end = end;
    } else if flow.phase == PHASE_REQUEST {
        let follows = segment.tcp_seq == flow.request_end;
        flow.request_end = end;
        if flow.request_told < REQUEST_BYTES as u32 {
            go_on(ctx, key, flow, segment);
        } else if follows && begins_like_request(ctx, segment) {
            let bytes =
                if segment.payload_bytes < SEGMENT_BYTES as u32 { segment.payload_bytes } else { SEGMENT_BYTES as u32 };
            // SAFETY: a plain kernel helper.
            let now = unsafe { bpf_ktime_get_ns() };
            tell_text::<SEGMENT_BYTES>(ctx, key, flow, segment, bytes, (EVENT_BODY, FLAG_AGAIN), now);
        }
    } else {
        maybe_begin(ctx, key, flow, segment, counters);
    }
}

#[inline(always)]
fn begins_like_request(ctx: &SkBuffContext, segment: &Segment) -> bool {
    let begun = Begun { word: 0, bytes: 0 }.and(ctx, segment);
    begun.bytes >= ENOUGH_BYTES && protocol::is_method(begun.word)
}

/// Makes the state of a connection at the first bytes that are seen of it, if they say anything.
#[inline(always)]
fn first_payload(ctx: &SkBuffContext, key: &FlowKey, segment: &Segment) -> Option<*mut FlowState> {
    // SAFETY: as in `on_syn`.
    let seen = unsafe { SYNS.get(key) };
    let at_start = seen.is_some_and(|seen| segment.tcp_seq == seen.tcp_seq.wrapping_add(1));
    let mut flow = FlowState::default();
    flow.syn_ns = seen.map_or(0, |seen| seen.first_ns);
    flow.request_end = segment.tcp_seq;
    let begun = Begun { word: 0, bytes: 0 }.and(ctx, segment);
    let says = if begun.bytes < ENOUGH_BYTES {
        at_start
    } else {
        protocol::classify(begun.word, at_start) != PROTOCOL_UNKNOWN
    };
    if !says {
        return None;
    }
    // SAFETY: plain kernel helpers.
    unsafe {
        // No CPU makes two states in one nanosecond, and ids may come again after months.
        flow.id = bpf_ktime_get_ns() << 10 | (bpf_get_smp_processor_id() & 1023) as u64;
        flow.cookie = bpf_get_socket_cookie(ctx.skb.skb.cast());
    }
    let _ = FLOWS.insert(key, flow, 0);
    let made = FLOWS.get_ptr_mut(key)?;
    // Looked at only when others can find the state, since the connection may be accepted at this moment.
    // SAFETY: as in `on_syn`.
    if let Some(seen) = unsafe { SYNS.get(key) }
        && seen.established_ns != 0
        && seen.accepted_ns > seen.established_ns
    {
        // SAFETY: a checked map value.
        unsafe { (*made).accept_wait_ns = seen.accepted_ns - seen.established_ns };
    }
    Some(made)
}

/// Takes bytes where a request may begin; fewer than four wait for those that follow them.
#[inline(always)]
fn maybe_begin(
    ctx: &SkBuffContext,
    key: &FlowKey,
    flow: &mut FlowState,
    segment: &Segment,
    counters: *mut PortCounters,
) {
    let end = segment.tcp_seq.wrapping_add(segment.payload_bytes);
    let alone = Begun { word: 0, bytes: 0 }.and(ctx, segment);
    // Whatever came before, a segment that begins like a request is one.
    if flow.begun_bytes == 0 || (alone.bytes >= ENOUGH_BYTES && protocol::is_method(alone.word)) {
        if flow.begun_bytes > 0 && flow.phase != PHASE_IDLE {
            flow.request_end = segment.tcp_seq;
        }
        flow.begun_bytes = 0;
        flow.begun = 0;
        flow.begun_seq = segment.tcp_seq;
        // SAFETY: a plain kernel helper.
        flow.begun_ns = unsafe { bpf_ktime_get_ns() };
    }
    let waited = Begun { word: flow.begun, bytes: flow.begun_bytes };
    let waited_end = flow.begun_seq.wrapping_add(waited.bytes);
    if !after(end, waited_end) {
        return;
    }
    let begun = waited.and(ctx, segment);
    if segment.tcp_seq == waited_end && begun.bytes < ENOUGH_BYTES {
        flow.begun = begun.word;
        flow.begun_bytes = begun.bytes;
        return;
    }
    flow.begun_bytes = 0;
    // What is out of order, or repeated in part, is no beginning.
    if segment.tcp_seq != waited_end || !begins(flow, begun.word, counters) {
        if protocol::is_opaque(flow.protocol) {
            // SAFETY: a checked map value; only the address of the field is taken.
            add(unsafe { &raw mut (*counters).opaque_request_bytes }, end.wrapping_sub(flow.request_end) as u64);
        }
        if flow.protocol != PROTOCOL_UNKNOWN {
            flow.request_end = end;
        }
        // More of a request whose answer has begun, or of those that were sent ahead behind it.
        if flow.phase == PHASE_RESPONSE && flow.request_told < REQUEST_BYTES as u32 {
            go_on(ctx, key, flow, segment);
        }
        return;
    }
    supersede(key, flow);
    begin(flow, end);
    announce(ctx, key, flow, segment, counters, waited);
}

/// Whether a request begins with these bytes. What the connection speaks is told by its first ones.
#[inline(always)]
fn begins(flow: &mut FlowState, word: u32, counters: *mut PortCounters) -> bool {
    if flow.protocol == PROTOCOL_UNKNOWN {
        // Until then the end of what was seen is the connection's beginning.
        flow.protocol = protocol::classify(word, flow.begun_seq == flow.request_end);
        protocol::count(counters, flow.protocol);
        if protocol::is_opaque(flow.protocol) {
            let answered = flow.response_end.wrapping_sub(flow.response_seq) as u64;
            // SAFETY: a checked map value; only the address of the field is taken.
            add(unsafe { &raw mut (*counters).opaque_response_bytes }, answered);
        }
    }
    protocol::is_method(word)
}

/// Tells what the answer before this request came to: its last segments were not all told one by one.
#[inline(always)]
fn supersede(key: &FlowKey, flow: &FlowState) {
    if flow.phase != PHASE_IDLE {
        emit_quietly(&flow_event(EVENT_RESPONSE, 0, flow.last_byte_ns, key, flow));
    }
}

#[inline(always)]
fn begin(flow: &mut FlowState, end: u32) {
    if flow.phase != PHASE_IDLE {
        flow.request += 1;
    }
    flow.start_ns = flow.begun_ns;
    flow.first_byte_ns = 0;
    flow.last_byte_ns = 0;
    flow.tail = 0;
    flow.request_seq = flow.begun_seq;
    flow.request_end = end;
    flow.data_segments = 0;
    flow.data_told = 0;
    flow.other_segments = 0;
    flow.retransmits = 0;
    flow.phase = PHASE_REQUEST;
}

/// Tells the beginning: what `waited` of it, if any, and then the segment's share.
#[inline(always)]
fn announce(
    ctx: &SkBuffContext,
    key: &FlowKey,
    flow: &mut FlowState,
    segment: &Segment,
    counters: *mut PortCounters,
    waited: Begun,
) {
    // SAFETY: a checked map value; only the address of the field is taken.
    add(unsafe { &raw mut (*counters).requests }, 1);
    sample_queue(key.server_port, counters);
    flow.request_told = 0;
    if waited.bytes == 0 {
        return tell(ctx, key, flow, segment, EVENT_REQUEST, flow.start_ns);
    }
    let Some(mut entry) = EVENTS.reserve::<TextEvent<8>>(0) else {
        count_lost();
        flow.request_told = REQUEST_BYTES as u32;
        return;
    };
    let target = entry.as_mut_ptr();
    // SAFETY: the reserved entry has room for the event and its text.
    unsafe {
        (*target).event = flow_event(EVENT_REQUEST, 0, flow.start_ns, key, flow);
        (*target).event.segment_bytes = waited.bytes;
        (*target).event.header.text_bytes = waited.bytes;
        // Fewer than four bytes, moved to the front.
        let word = waited.word << (8 * (ENOUGH_BYTES - waited.bytes));
        (*target).text = ((word.swap_bytes()) as u64).to_le_bytes();
    }
    submit(entry);
    flow.request_told = waited.bytes;
    go_on(ctx, key, flow, segment);
}

/// Tells on, unless something is missing before this segment: then the rest is not told at all, since text
/// with a hole could be misread.
#[inline(always)]
fn go_on(ctx: &SkBuffContext, key: &FlowKey, flow: &mut FlowState, segment: &Segment) {
    let told_end = flow.request_seq.wrapping_add(flow.request_told);
    if after(segment.tcp_seq, told_end) {
        flow.request_told = REQUEST_BYTES as u32;
        return;
    }
    let repeated = told_end.wrapping_sub(segment.tcp_seq);
    let rest = Segment {
        tcp_seq: told_end,
        flags: segment.flags,
        payload_offset: segment.payload_offset + repeated as usize,
        payload_bytes: segment.payload_bytes.saturating_sub(repeated),
    };
    if rest.payload_bytes > 0 {
        // SAFETY: a plain kernel helper.
        tell(ctx, key, flow, &rest, EVENT_BODY, unsafe { bpf_ktime_get_ns() });
    }
}

/// Tells a piece of a request, as far as its share reaches.
#[inline(always)]
fn tell(ctx: &SkBuffContext, key: &FlowKey, flow: &mut FlowState, segment: &Segment, kind: u16, now: u64) {
    let room = (REQUEST_BYTES as u32).saturating_sub(flow.request_told);
    let bytes = if segment.payload_bytes < room { segment.payload_bytes } else { room };
    let told = if bytes <= SEGMENT_BYTES as u32 {
        tell_text::<SEGMENT_BYTES>(ctx, key, flow, segment, bytes, (kind, 0), now)
    } else {
        tell_text::<REQUEST_BYTES>(ctx, key, flow, segment, bytes, (kind, 0), now)
    };
    // What could not be told leaves a hole, and nothing is told after it.
    flow.request_told = if told { flow.request_told + bytes } else { REQUEST_BYTES as u32 };
}

#[inline(always)]
fn tell_text<const N: usize>(
    ctx: &SkBuffContext,
    key: &FlowKey,
    flow: &FlowState,
    segment: &Segment,
    bytes: u32,
    (kind, flags): (u16, u16),
    now: u64,
) -> bool {
    let Some(mut entry) = EVENTS.reserve::<TextEvent<N>>(0) else {
        count_lost();
        return false;
    };
    let target = entry.as_mut_ptr();
    // SAFETY: the reserved entry has room for the event and N bytes of text; `copy` stays within that.
    unsafe {
        (*target).event = flow_event(kind, flags, now, key, flow);
        (*target).event.segment_bytes = segment.payload_bytes;
        let text = (&raw mut (*target).text).cast::<u8>();
        (*target).event.header.text_bytes = packet::copy::<N>(ctx, segment.payload_offset, bytes, text);
    }
    // The beginning wakes the reader; while its request goes on the reader looks by itself.
    if kind == EVENT_REQUEST {
        submit(entry);
    } else {
        submit_quietly(entry);
    }
    true
}
