//! Reading kernel structures. There is no CO-RE for Rust programs, so user space finds each offset in the
//! running kernel's BTF and writes it into these constants before it loads the programs. An offset of
//! [`UNKNOWN`] means that the field does not exist or that there is no BTF: what needs it is left out.

use aya_ebpf::Global;
use aya_ebpf::helpers::bpf_probe_read_kernel;

/// No such field.
pub const UNKNOWN: u32 = u32::MAX;

#[unsafe(no_mangle)]
pub static OFF_SOCK_FAMILY: Global<u32> = Global::new(UNKNOWN);
#[unsafe(no_mangle)]
pub static OFF_SOCK_STATE: Global<u32> = Global::new(UNKNOWN);
#[unsafe(no_mangle)]
pub static OFF_SOCK_NET: Global<u32> = Global::new(UNKNOWN);
#[unsafe(no_mangle)]
pub static OFF_SOCK_DPORT: Global<u32> = Global::new(UNKNOWN);
#[unsafe(no_mangle)]
pub static OFF_SOCK_SPORT: Global<u32> = Global::new(UNKNOWN);
#[unsafe(no_mangle)]
pub static OFF_SOCK_DADDR: Global<u32> = Global::new(UNKNOWN);
#[unsafe(no_mangle)]
pub static OFF_SOCK_SADDR: Global<u32> = Global::new(UNKNOWN);
#[unsafe(no_mangle)]
pub static OFF_SOCK_DADDR6: Global<u32> = Global::new(UNKNOWN);
#[unsafe(no_mangle)]
pub static OFF_SOCK_SADDR6: Global<u32> = Global::new(UNKNOWN);
#[unsafe(no_mangle)]
pub static OFF_SOCK_ACK_BACKLOG: Global<u32> = Global::new(UNKNOWN);
#[unsafe(no_mangle)]
pub static OFF_SOCK_MAX_ACK_BACKLOG: Global<u32> = Global::new(UNKNOWN);
#[unsafe(no_mangle)]
pub static OFF_NET_INUM: Global<u32> = Global::new(UNKNOWN);
#[unsafe(no_mangle)]
pub static OFF_TASK_TGID: Global<u32> = Global::new(UNKNOWN);
#[unsafe(no_mangle)]
pub static OFF_TASK_EXIT_CODE: Global<u32> = Global::new(UNKNOWN);
#[unsafe(no_mangle)]
pub static OFF_TASK_SIGNAL: Global<u32> = Global::new(UNKNOWN);
#[unsafe(no_mangle)]
pub static OFF_SIGNAL_LIVE: Global<u32> = Global::new(UNKNOWN);
#[unsafe(no_mangle)]
pub static OFF_SIGNAL_FLAGS: Global<u32> = Global::new(UNKNOWN);
#[unsafe(no_mangle)]
pub static OFF_SIGNAL_GROUP_EXIT_CODE: Global<u32> = Global::new(UNKNOWN);
#[unsafe(no_mangle)]
pub static OFF_SIGNAL_OOM_MM: Global<u32> = Global::new(UNKNOWN);
/// Not 0 where the tracepoint of a retransmission tells as its third argument whether it failed.
#[unsafe(no_mangle)]
pub static RETRANSMIT_TELLS_ERROR: Global<u32> = Global::new(0);
/// Inode number of the network namespace whose sockets count; 0 for all.
#[unsafe(no_mangle)]
pub static NET_NAMESPACE: Global<u32> = Global::new(0);

/// Copies a field of a kernel structure, without faulting whatever the address is.
#[inline(always)]
pub fn field<T>(base: u64, offset: &Global<u32>) -> Result<T, i32> {
    let offset = offset.load();
    if offset == UNKNOWN {
        return Err(-1);
    }
    // SAFETY: bpf_probe_read_kernel checks the address itself and fails where nothing is mapped.
    unsafe { bpf_probe_read_kernel((base + offset as u64) as *const T) }
}

/// Inode number of a socket's network namespace, 0 where unknown.
#[inline(always)]
fn net_namespace(socket: u64) -> u32 {
    let Ok(net) = field::<u64>(socket, &OFF_SOCK_NET) else { return 0 };
    field::<u32>(net, &OFF_NET_INUM).unwrap_or(0)
}

/// Inode number of a socket's network namespace (0 where unknown), if that one is watched.
#[inline(always)]
pub fn watched_namespace(socket: u64) -> Option<u32> {
    let namespace = net_namespace(socket);
    let wanted = NET_NAMESPACE.load();
    (wanted == 0 || namespace == wanted).then_some(namespace)
}
