//! When a server takes a connection out of its accept queue. No hook tells of accept(2) without a cost to every
//! system call, but the kernel asks cgroup programs whenever a socket's peer address is asked for, and accept(2)
//! does so for every server that wants to know its client. One that does not, and asks later or never, is seen
//! later or never: a wait is an upper bound, and close to it almost everywhere.

use crate::connection::flow_key;
use crate::kernel::watched_namespace;
use crate::maps::{FLOWS, PORTS, SYNS, add};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::bpf_skc_to_tcp_sock;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use ebpf_types::PortCounters;

/// Changes no address.
#[cgroup_sock_addr(getpeername4)]
pub fn accepted_ipv4(ctx: SockAddrContext) -> i32 {
    let _ = accepted(&ctx);
    1
}

/// Changes no address.
#[cgroup_sock_addr(getpeername6)]
pub fn accepted_ipv6(ctx: SockAddrContext) -> i32 {
    let _ = accepted(&ctx);
    1
}

#[inline(always)]
fn accepted(ctx: &SockAddrContext) -> Result<(), i32> {
    // SAFETY: both pointers are the verifier's own and checked for null before they are used.
    let (port, socket) = unsafe {
        let socket = (*ctx.sock_addr).__bindgen_anon_1.sk;
        if socket.is_null() {
            return Ok(());
        }
        let port = (*socket).src_port as u16;
        let tcp = bpf_skc_to_tcp_sock(socket.cast());
        if tcp.is_null() {
            return Ok(());
        }
        (port, tcp as u64)
    };
    let Some(counters) = PORTS.get_ptr_mut(port) else { return Ok(()) };
    let Some(namespace) = watched_namespace(socket) else { return Ok(()) };
    let key = flow_key(socket, port, namespace)?;
    let Some(seen) = SYNS.get_ptr_mut(&key) else { return Ok(()) };
    // SAFETY: checked map values; aligned loads and stores.
    unsafe {
        if (*seen).accepted_ns != 0 {
            return Ok(());
        }
        let established_ns = (*seen).established_ns;
        let now = bpf_ktime_get_ns();
        (*seen).accepted_ns = now;
        if established_ns == 0 {
            return Ok(());
        }
        let wait_ns = now - established_ns;
        count_wait(counters, wait_ns);
        if let Some(flow) = FLOWS.get_ptr_mut(&key) {
            (*flow).accept_wait_ns = wait_ns;
        }
    }
    Ok(())
}

/// Counts a connection that waited so long to be accepted.
#[inline(always)]
pub fn count_wait(counters: *mut PortCounters, wait_ns: u64) {
    // SAFETY: a checked map value: addresses of its fields, and an aligned load and store.
    unsafe {
        add(&raw mut (*counters).accepts, 1);
        add(&raw mut (*counters).accept_wait_ns, wait_ns);
        if wait_ns > (*counters).accept_wait_ns_max {
            (*counters).accept_wait_ns_max = wait_ns;
        }
    }
}
