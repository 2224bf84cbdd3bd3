//! What arrives at watched ports: SYNs and the beginnings of requests.
//!
//! A SYN that finds a full backlog is dropped before any socket changes its state, so attempts are counted
//! here, before that. A request begins with a segment of new bytes that starts with an HTTP method, on a
//! connection that has no request whose answer is still to begin.

use crate::connection::{listener_found, sample_queue};
use crate::kernel::in_watched_namespace;
use crate::maps::{EVENTS, FLOWS, PORTS, SYNS, add, count_lost, emit, flow_event, ring_has_room};
use crate::packet::{self, Segment, after};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use ebpf_types::{
    EVENT_REQUEST, EVENT_RESPONSE, EVENT_SYN, FLAG_RETRY, FlowEvent, FlowKey, FlowState, LINE_BYTES, PHASE_IDLE,
    PHASE_REQUEST, PortCounters, SynSeen,
};

/// An event and its request line.
#[repr(C)]
struct LineEvent {
    event: FlowEvent,
    text: [u8; LINE_BYTES],
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
        on_payload(ctx, &key, &segment, counters, is_method(begin));
    } else if segment.payload_bytes > 0 {
        on_payload(ctx, &key, &segment, counters, false);
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
fn on_payload(ctx: &SkBuffContext, key: &FlowKey, segment: &Segment, counters: *mut PortCounters, begins: bool) {
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
        }
        return;
    }
    if !begins {
        return;
    }
    // SAFETY: as in `on_syn`.
    let syn_ns = unsafe { SYNS.get(key) }.map_or(0, |seen| seen.first_ns);
    let mut flow = FlowState { syn_ns, ..FlowState::default() };
    begin(&mut flow, segment, end);
    let _ = FLOWS.insert(key, flow, 0);
    announce(ctx, key, &flow, segment, counters);
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
fn announce(ctx: &SkBuffContext, key: &FlowKey, flow: &FlowState, segment: &Segment, counters: *mut PortCounters) {
    // SAFETY: a checked map value; only the address of the field is taken.
    add(unsafe { &raw mut (*counters).requests }, 1);
    sample_queue(key.server_port, counters);
    let Some(mut entry) = EVENTS.reserve::<LineEvent>(0) else {
        count_lost();
        return;
    };
    let target = entry.as_mut_ptr();
    // SAFETY: the reserved entry has room for the event and LINE_BYTES of text; `copy` stays within that.
    unsafe {
        (*target).event = flow_event(EVENT_REQUEST, 0, flow.start_ns, key, flow);
        (*target).event.cookie = bpf_get_socket_cookie(ctx.skb.skb.cast());
        (*target).event.segment_bytes = segment.payload_bytes;
        let mut line = [0u8; LINE_BYTES];
        packet::copy::<LINE_BYTES>(ctx, segment.payload_offset, segment.payload_bytes, line.as_mut_ptr());
        (*target).event.header.text_bytes = request_line(&mut line);
        (*target).text = line;
    }
    entry.submit(0);
}

/// Cuts at the end of the request line or before a query and blanks the rest: nothing of a header or a
/// body leaves the kernel. Returns the length.
#[inline(always)]
fn request_line(line: &mut [u8; LINE_BYTES]) -> u32 {
    let mut length = 0;
    let mut open = true;
    for byte in line.iter_mut() {
        if matches!(*byte, b'\r' | b'\n' | b'?' | 0) {
            open = false;
        }
        if open {
            length += 1;
        } else {
            *byte = 0;
        }
    }
    length
}
