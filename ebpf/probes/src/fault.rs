//! What goes wrong on connections of watched ports: segments sent again, and resets.

use crate::connection::flow_key;
use crate::kernel::{self, RETRANSMIT_TELLS_ERROR, field, watched_namespace};
use crate::maps::{FLOWS, PORTS, add};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use ebpf_types::{FlowState, PortCounters};

const TIME_WAIT: u8 = 6;
const NEW_SYN_RECV: u8 = 12;

/// tcp:tcp_retransmit_skb(sk, skb[, err]); from Linux 6.15 on also for those that could not be sent.
#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn segment_resent(ctx: BtfTracePointContext) -> i32 {
    if RETRANSMIT_TELLS_ERROR.load() != 0 && ctx.arg::<i32>(2) != 0 {
        return 0;
    }
    // SAFETY: addresses of fields of checked map values.
    let _ = on_server(
        &ctx,
        |counters| unsafe { &raw mut (*counters).retransmits },
        |flow| unsafe {
            (*flow).retransmits += 1;
        },
    );
    0
}

/// tcp:tcp_receive_reset(sk).
#[btf_tracepoint(function = "tcp_receive_reset")]
pub fn reset_received(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: as above.
    let _ = on_server(
        &ctx,
        |counters| unsafe { &raw mut (*counters).resets_received },
        |flow| unsafe {
            (*flow).reset = 1;
        },
    );
    0
}

/// tcp:tcp_send_reset(sk, skb[, reason]).
#[btf_tracepoint(function = "tcp_send_reset")]
pub fn reset_sent(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: as above.
    let _ = on_server(
        &ctx,
        |counters| unsafe { &raw mut (*counters).resets_sent },
        |flow| unsafe {
            (*flow).reset = 1;
        },
    );
    0
}

/// Counts what happened if it did on the server's socket of a watched port, and notes it on its connection.
#[inline(always)]
fn on_server(
    ctx: &BtfTracePointContext,
    counter: impl Fn(*mut PortCounters) -> *mut u64,
    note: impl Fn(*mut FlowState),
) -> Result<(), i32> {
    let socket = ctx.arg::<*const u8>(0);
    // A reset may answer a segment that belongs to no socket.
    if socket.is_null() {
        return Ok(());
    }
    let socket = socket as u64;
    // Those two are no whole sockets: what the members below would be lies outside of them.
    let state: u8 = field(socket, &kernel::OFF_SOCK_STATE)?;
    if state == TIME_WAIT || state == NEW_SYN_RECV {
        return Ok(());
    }
    let port = u16::from_be(field(socket, &kernel::OFF_SOCK_SPORT)?);
    let Some(counters) = PORTS.get_ptr_mut(port) else { return Ok(()) };
    let Some(namespace) = watched_namespace(socket) else { return Ok(()) };
    add(counter(counters), 1);
    if let Some(flow) = FLOWS.get_ptr_mut(&flow_key(socket, port, namespace)?) {
        note(flow);
    }
    Ok(())
}
