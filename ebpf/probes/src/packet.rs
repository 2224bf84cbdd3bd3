//! TCP over IPv4 and IPv6, from the network header on, as cgroup_skb programs see it.

use aya_ebpf::helpers::generated::{bpf_skb_load_bytes, bpf_skc_to_tcp_sock};
use aya_ebpf::programs::SkBuffContext;
use ebpf_types::FlowKey;

const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_HOP_BY_HOP: u8 = 0;
const IPV6_HEADER_BYTES: usize = 40;
/// TCP flag bits.
pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;

/// Where the TCP header of a packet lies.
#[derive(Clone, Copy)]
pub struct Transport {
    pub version: u8,
    pub offset: usize,
}

/// The rest of a TCP header.
#[derive(Clone, Copy)]
pub struct Segment {
    pub tcp_seq: u32,
    pub flags: u8,
    pub payload_offset: usize,
    pub payload_bytes: u32,
}

/// Finds the TCP header; None for anything else. A hop-by-hop header is stepped over, since segments beyond
/// 64 KiB carry one on their way out.
#[inline(always)]
pub fn transport(ctx: &SkBuffContext) -> Option<Transport> {
    let first: u8 = ctx.load(0).ok()?;
    let version = first >> 4;
    if version == 4 {
        let protocol: u8 = ctx.load(9).ok()?;
        return (protocol == PROTOCOL_TCP).then_some(Transport { version, offset: ((first & 15) as usize) * 4 });
    }
    if version != 6 {
        return None;
    }
    let next: u8 = ctx.load(6).ok()?;
    if next == PROTOCOL_TCP {
        return Some(Transport { version, offset: IPV6_HEADER_BYTES });
    }
    if next != PROTOCOL_HOP_BY_HOP {
        return None;
    }
    let extension: [u8; 2] = ctx.load(IPV6_HEADER_BYTES).ok()?;
    let offset = IPV6_HEADER_BYTES + (extension[1] as usize + 1) * 8;
    (extension[0] == PROTOCOL_TCP).then_some(Transport { version, offset })
}

/// Source and destination port.
#[inline(always)]
pub fn ports(ctx: &SkBuffContext, transport: Transport) -> Option<(u16, u16)> {
    let ports: [u8; 4] = ctx.load(transport.offset).ok()?;
    Some((u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]])))
}

/// Sequence number, flags and payload.
#[inline(always)]
pub fn segment(ctx: &SkBuffContext, transport: Transport) -> Option<Segment> {
    let seq: [u8; 4] = ctx.load(transport.offset + 4).ok()?;
    let rest: [u8; 2] = ctx.load(transport.offset + 12).ok()?;
    let payload_offset = transport.offset + ((rest[0] >> 4) as usize) * 4;
    let payload_bytes = ctx.len().saturating_sub(payload_offset as u32);
    Some(Segment { tcp_seq: u32::from_be_bytes(seq), flags: rest[1], payload_offset, payload_bytes })
}

/// The connection of a packet that goes to its server (`to_server`) or comes from it.
#[inline(always)]
pub fn flow_key(
    ctx: &SkBuffContext,
    transport: Transport,
    to_server: bool,
    (client_port, server_port): (u16, u16),
    net_namespace: u32,
) -> Option<FlowKey> {
    let (source, destination): ([u8; 16], [u8; 16]) = if transport.version == 4 {
        let pair: [[u8; 4]; 2] = ctx.load(12).ok()?;
        (mapped(pair[0]), mapped(pair[1]))
    } else {
        (ctx.load(8).ok()?, ctx.load(24).ok()?)
    };
    let (client, server) = if to_server { (source, destination) } else { (destination, source) };
    Some(FlowKey { client, server, client_port, server_port, net_namespace })
}

/// An IPv4 address as IPv6.
#[inline(always)]
pub fn mapped(a: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a[0], a[1], a[2], a[3]]
}

/// Kernel address of the TCP socket that sends or receives the packet; at a SYN that is the listener.
#[inline(always)]
pub fn tcp_socket(ctx: &SkBuffContext) -> Option<u64> {
    // SAFETY: both pointers are the verifier's own and checked for null before they are used.
    unsafe {
        let socket = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            return None;
        }
        let tcp = bpf_skc_to_tcp_sock(socket.cast());
        if tcp.is_null() { None } else { Some(tcp as u64) }
    }
}

/// Copies up to `N` bytes of the packet to `target` and returns how many.
///
/// # Safety
/// `target` must be valid for writes of `N` bytes.
#[inline(always)]
pub unsafe fn copy<const N: usize>(ctx: &SkBuffContext, offset: usize, bytes: u32, target: *mut u8) -> u32 {
    // 64 bits wide: LLVM compares a narrower value through a copy, and the verifier learns about the copy only.
    let mut n = if bytes > N as u32 { N as u64 } else { bytes as u64 };
    opaque(&mut n);
    if n > N as u64 {
        return 0;
    }
    opaque(&mut n);
    if n == 0 {
        return 0;
    }
    // SAFETY: n is at most N, for which the caller vouches; the helper checks the packet's bounds.
    let failed = unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), offset as u32, target.cast(), n as u32) };
    if failed == 0 { n as u32 } else { 0 }
}

/// Hides from LLVM what is known of a value, so that it neither drops nor merges the checks that follow: the
/// verifier needs to see each by itself.
#[inline(always)]
fn opaque(value: &mut u64) {
    // SAFETY: moves a register to itself.
    unsafe { core::arch::asm!("{0} = {0}", inlateout(reg) * value, options(nostack, nomem, preserves_flags)) };
}

/// Whether sequence number `a` comes after `b`, modulo 2^32.
#[inline(always)]
pub fn after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}
