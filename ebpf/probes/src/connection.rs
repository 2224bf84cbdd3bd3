//! Connections of watched ports: established, closed, and how many wait to be accepted.
//!
//! tp_btf needs no tracefs. A listener's children are clones of it, so the change LISTEN to SYN_RECV is
//! reported for each child and is not the end of a listener.

use crate::accept::count_wait;
use crate::kernel::{self, field, watched_namespace};
use crate::maps::{FLOWS, PORTS, QUEUES, SYNS, add, emit_quietly, flow_event, ring_has_room};
use crate::packet::mapped;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use ebpf_types::{
    EVENT_CLOSED, EVENT_ESTABLISHED, FLAG_RESET, FlowKey, FlowState, ListenQueue, PHASE_IDLE, PortCounters,
};

const ESTABLISHED: i32 = 1;
const SYN_RECV: i32 = 3;
const CLOSE: i32 = 7;
const CLOSE_WAIT: i32 = 8;
const LISTEN: i32 = 10;
const AF_INET: u16 = 2;

/// sock:inet_sock_set_state(sk, oldstate, newstate).
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn connection_state(ctx: BtfTracePointContext) -> i32 {
    let _ = state_changed(&ctx);
    0
}

#[inline(always)]
fn state_changed(ctx: &BtfTracePointContext) -> Result<(), i32> {
    let socket = ctx.arg::<*const u8>(0) as u64;
    let (old, new): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    let port = u16::from_be(field(socket, &kernel::OFF_SOCK_SPORT)?);
    let Some(counters) = PORTS.get_ptr_mut(port) else { return Ok(()) };
    let Some(namespace) = watched_namespace(socket) else { return Ok(()) };
    match (old, new) {
        (SYN_RECV, ESTABLISHED) => established(socket, port, namespace, counters),
        (LISTEN, CLOSE) => {
            listener_gone(socket, port);
            Ok(())
        }
        (_, LISTEN) => {
            listener_found(socket, port);
            Ok(())
        }
        (_, CLOSE) => {
            // A regular end goes through other states; from these two a connection is torn down.
            let torn_down = old == ESTABLISHED || old == CLOSE_WAIT;
            closed(socket, (port, namespace), counters, torn_down)
        }
        _ => Ok(()),
    }
}

#[inline(always)]
fn established(socket: u64, port: u16, namespace: u32, counters: *mut PortCounters) -> Result<(), i32> {
    // SAFETY: a checked map value; only the address of the field is taken.
    add(unsafe { &raw mut (*counters).connections }, 1);
    let (depth, limit) = sample_queue(port, counters);
    let key = flow_key(socket, port, namespace)?;
    // SAFETY: a plain kernel helper.
    let now = unsafe { bpf_ktime_get_ns() };
    let mut flow = FlowState::default();
    if let Some(seen) = SYNS.get_ptr_mut(&key) {
        // SAFETY: a checked map value; aligned loads and stores.
        unsafe {
            flow.syn_ns = (*seen).first_ns;
            // The connection is in the queue before its state changes, so that it may have left it again.
            if (*seen).accepted_ns != 0 {
                count_wait(counters, 0);
            }
            (*seen).established_ns = now;
        }
    }
    if !ring_has_room() {
        return Ok(());
    }
    let mut event = flow_event(EVENT_ESTABLISHED, 0, now, &key, &flow);
    event.accept_queue = depth;
    event.accept_queue_limit = limit;
    emit_quietly(&event);
    Ok(())
}

#[inline(always)]
fn closed(socket: u64, (port, namespace): (u16, u32), counters: *mut PortCounters, torn_down: bool) -> Result<(), i32> {
    // SAFETY: as in `established`.
    add(unsafe { &raw mut (*counters).closed }, 1);
    let key = flow_key(socket, port, namespace)?;
    if let Some(flow) = FLOWS.get_ptr_mut(&key) {
        // SAFETY: a checked map value, copied field by field into the event.
        let flow = unsafe { &*flow };
        if flow.phase != PHASE_IDLE {
            let flags = if torn_down || flow.reset != 0 { FLAG_RESET } else { 0 };
            // SAFETY: a plain kernel helper.
            emit_quietly(&flow_event(EVENT_CLOSED, flags, unsafe { bpf_ktime_get_ns() }, &key, flow));
        }
        let _ = FLOWS.remove(&key);
    }
    let _ = SYNS.remove(&key);
    Ok(())
}

/// The connection of a server's socket.
#[inline(always)]
pub fn flow_key(socket: u64, server_port: u16, net_namespace: u32) -> Result<FlowKey, i32> {
    let family: u16 = field(socket, &kernel::OFF_SOCK_FAMILY)?;
    let client_port = u16::from_be(field(socket, &kernel::OFF_SOCK_DPORT)?);
    let (client, server) = if family == AF_INET {
        (mapped(field(socket, &kernel::OFF_SOCK_DADDR)?), mapped(field(socket, &kernel::OFF_SOCK_SADDR)?))
    } else {
        (field(socket, &kernel::OFF_SOCK_DADDR6)?, field(socket, &kernel::OFF_SOCK_SADDR6)?)
    };
    Ok(FlowKey { client, server, client_port, server_port, net_namespace })
}

/// Remembers the listener of a port.
#[inline(always)]
pub fn listener_found(socket: u64, port: u16) {
    if let Some(queue) = QUEUES.get_ptr_mut(port) {
        // SAFETY: a checked map value; an aligned store.
        unsafe { (*queue).socket = socket };
    }
}

#[inline(always)]
fn listener_gone(socket: u64, port: u16) {
    if let Some(queue) = QUEUES.get_ptr_mut(port) {
        // SAFETY: a checked map value; aligned loads and stores.
        unsafe {
            if (*queue).socket == socket {
                *queue = ListenQueue::default();
            }
        }
    }
}

/// Reads how many connections wait at the port's listener, keeps it and its maximum. An address that is no
/// longer a listener gives nothing.
#[inline(always)]
pub fn sample_queue(port: u16, counters: *mut PortCounters) -> (u32, u32) {
    let Some(queue) = QUEUES.get_ptr_mut(port) else { return (0, 0) };
    // SAFETY: a checked map value; aligned loads and stores, the last writer is right.
    unsafe {
        let socket = (*queue).socket;
        if socket == 0 || field::<u8>(socket, &kernel::OFF_SOCK_STATE) != Ok(LISTEN as u8) {
            return (0, 0);
        }
        let Ok(depth) = field::<u32>(socket, &kernel::OFF_SOCK_ACK_BACKLOG) else { return (0, 0) };
        let limit = field::<u32>(socket, &kernel::OFF_SOCK_MAX_ACK_BACKLOG).unwrap_or(0);
        (*queue).depth = depth;
        (*queue).limit = limit;
        (*queue).sampled_ns = bpf_ktime_get_ns();
        if depth as u64 > (*counters).accept_queue_max {
            (*counters).accept_queue_max = depth as u64;
        }
        (depth, limit)
    }
}
