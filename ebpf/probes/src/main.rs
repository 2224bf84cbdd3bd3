//! The kernel programs: what crosses the watched ports, and how watched processes end. They count, copy
//! a bounded piece of what they see and decide nothing: policy and meaning are user space's.
//!
//! - `connection`: attempts, connections and accept queues of watched ports (TCP state changes).
//! - `accept`: how long connections wait in them (cgroup_sock_addr, where accept(2) reads the peer's address).
//! - `fault`: segments sent again and resets.
//! - `request`: SYNs and requests that arrive (cgroup_skb ingress, on the server's socket).
//! - `response`: answers that leave (cgroup_skb egress, on the server's socket).
//! - `process`: ends of watched processes.
//! - `cuda`: calls of watched processes into CUDA's driver library (uprobes, attached on demand).
//!
//! On loopback both ends of a connection pass these hooks. Each segment is still seen once: a request
//! where it arrives at the watched port, an answer where it leaves from it.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod accept;
mod connection;
mod cuda;
mod fault;
mod kernel;
mod maps;
mod packet;
mod process;
mod protocol;
mod request;
mod response;

/// Kernel helpers that read kernel memory are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
