//! What arrives at watched ports: SYNs and the beginnings of requests.
//!
//! A SYN that finds a full backlog is dropped before any socket changes its state, so attempts are counted
//! here, before that. A request begins with a segment of new bytes that starts with an HTTP method, on a
//! connection that has no request whose answer is still to begin. Its first bytes are told, up to a bound and
//! however they are cut into segments.

use crate::connection::{listener_found, sample_queue};
use crate::kernel::{in_watched_namespace, net_namespace};
use crate::maps::{EVENTS, FLOWS, PORTS, SYNS, add, count_lost, emit, flow_event, quiet, ring_has_room, submit};
use crate::packet::{self, Segment, after};
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_get_socket_cookie, bpf_ktime_get_ns};
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use ebpf_types::{
    EVENT_BODY, EVENT_REQUEST, EVENT_RESPONSE, EVENT_SYN, FLAG_RETRY, FlowEvent, FlowKey, FlowState, PHASE_IDLE,
    PHASE_REQUEST, PortCounters, QUIET_BODIES, REQUEST_BYTES, SEGMENT_BYTES, SynSeen,
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
    if !in_watched_namespace(socket) {
        return None;
    }
    let segment = packet::segment(ctx, transport)?;
    let key = packet::flow_key(ctx, transport, true, client_port, server_port)?;
    if segment.flags & (packet::SYN | packet::ACK) == packet::SYN {
        on_syn(ctx, &key, &segment, socket, counters);
        return None;
    }
    if segment.payload_bytes >= 4 {
        let begin: [u8; 4] = ctx.load(segment.payload_offset).ok()?;
        on_payload(ctx, &key, &segment, socket, counters, is_method(begin));
    } else if segment.payload_bytes > 0 {
        on_payload(ctx, &key, &segment, socket, counters, false);
    }
    None
}

#[inline(always)]
fn is_method(begin: [u8; 4]) -> bool {
    matches!(&begin, b"POST" | b"GET " | b"PUT " | b"HEAD" | b"DELE" | b"OPTI" | b"PATC")
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
        let _ = SYNS.insert(key, SynSeen { first_ns: now, tcp_seq: segment.tcp_seq, reserved: 0 }, 0);
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
fn on_payload(
    ctx: &SkBuffContext,
    key: &FlowKey,
    segment: &Segment,
    socket: u64,
    counters: *mut PortCounters,
    begins: bool,
) {
    let end = segment.tcp_seq.wrapping_add(segment.payload_bytes);
    if let Some(flow) = FLOWS.get_ptr_mut(key) {
        // SAFETY: a checked map value. Only this program starts requests, and TCP runs it one segment at a
        // time for a connection; the other direction writes other fields, but for the phase, which follows.
        let flow = unsafe { &mut *flow };
        let fresh = flow.phase == PHASE_IDLE || after(end, flow.request_end);
        if begins && fresh && flow.phase != PHASE_REQUEST {
            supersede(key, flow);
            begin(flow, segment, end);
            announce(ctx, key, flow, segment, counters);
        } else if flow.phase != PHASE_IDLE && fresh {
            flow.request_end = end;
            if flow.phase == PHASE_REQUEST && flow.request_told < REQUEST_BYTES as u32 && !quiet(QUIET_BODIES) {
                go_on(ctx, key, flow, segment);
            }
        }
        return;
    }
    if !begins {
        return;
    }
    // SAFETY: as in `on_syn`.
    let syn_ns = unsafe { SYNS.get(key) }.map_or(0, |seen| seen.first_ns);
    let mut flow = FlowState { syn_ns, net_namespace: net_namespace(socket), ..FlowState::default() };
    // SAFETY: plain kernel helpers.
    unsafe {
        // No CPU makes two states in one nanosecond, and ids may come again after months.
        flow.id = bpf_ktime_get_ns() << 10 | (bpf_get_smp_processor_id() & 1023) as u64;
        flow.cookie = bpf_get_socket_cookie(ctx.skb.skb.cast());
    }
    begin(&mut flow, segment, end);
    announce(ctx, key, &mut flow, segment, counters);
    let _ = FLOWS.insert(key, flow, 0);
}

/// Tells what the answer before this request came to: its last segments were not all told one by one.
#[inline(always)]
fn supersede(key: &FlowKey, flow: &FlowState) {
    if flow.phase != PHASE_IDLE {
        emit(&flow_event(EVENT_RESPONSE, 0, flow.last_byte_ns, key, flow));
    }
}

#[inline(always)]
fn begin(flow: &mut FlowState, segment: &Segment, end: u32) {
    if flow.phase != PHASE_IDLE {
        flow.request += 1;
    }
    // SAFETY: a plain kernel helper.
    flow.start_ns = unsafe { bpf_ktime_get_ns() };
    flow.first_byte_ns = 0;
    flow.last_byte_ns = 0;
    flow.tail = 0;
    flow.request_seq = segment.tcp_seq;
    flow.request_end = end;
    flow.data_segments = 0;
    flow.other_segments = 0;
    flow.phase = PHASE_REQUEST;
}

#[inline(always)]
fn announce(ctx: &SkBuffContext, key: &FlowKey, flow: &mut FlowState, segment: &Segment, counters: *mut PortCounters) {
    // SAFETY: a checked map value; only the address of the field is taken.
    add(unsafe { &raw mut (*counters).requests }, 1);
    sample_queue(key.server_port, counters);
    flow.request_told = 0;
    tell(ctx, key, flow, segment, EVENT_REQUEST, flow.start_ns);
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
        tell_text::<SEGMENT_BYTES>(ctx, key, flow, segment, bytes, kind, now)
    } else {
        tell_text::<REQUEST_BYTES>(ctx, key, flow, segment, bytes, kind, now)
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
    kind: u16,
    now: u64,
) -> bool {
    let Some(mut entry) = EVENTS.reserve::<TextEvent<N>>(0) else {
        count_lost();
        return false;
    };
    let target = entry.as_mut_ptr();
    // SAFETY: the reserved entry has room for the event and N bytes of text; `copy` stays within that.
    unsafe {
        (*target).event = flow_event(kind, 0, now, key, flow);
        (*target).event.segment_bytes = segment.payload_bytes;
        let text = (&raw mut (*target).text).cast::<u8>();
        (*target).event.header.text_bytes = packet::copy::<N>(ctx, segment.payload_offset, bytes, text);
    }
    submit(entry);
    true
}
