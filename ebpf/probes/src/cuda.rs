//! Calls into CUDA's driver library by watched processes (uprobes on libcuda.so.1, attached on demand): counts and
//! bytes only. A uprobe costs microseconds, so timing calls that are as short would measure the probe.

use crate::maps::add;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::{map, uprobe};
use aya_ebpf::maps::PerCpuHashMap;
use aya_ebpf::programs::ProbeContext;
use ebpf_types::CudaCounters;

/// Counters per watched process. User space makes and removes the entries.
#[map]
pub static CUDA: PerCpuHashMap<u32, CudaCounters> = PerCpuHashMap::with_max_entries(256, 0);

/// The counters of the process that runs, if it is watched.
#[inline(always)]
fn counters() -> Option<*mut CudaCounters> {
    CUDA.get_ptr_mut((bpf_get_current_pid_tgid() >> 32) as u32)
}

/// cuLaunchKernel and its kin.
#[uprobe]
pub fn cuda_launch(_ctx: ProbeContext) -> u32 {
    if let Some(counters) = counters() {
        // SAFETY: a checked map value; only the address of the field is taken.
        add(unsafe { &raw mut (*counters).launches }, 1);
    }
    0
}

/// cuGraphLaunch(graph, stream).
#[uprobe]
pub fn cuda_graph_launch(_ctx: ProbeContext) -> u32 {
    if let Some(counters) = counters() {
        // SAFETY: as in `cuda_launch`.
        add(unsafe { &raw mut (*counters).graph_launches }, 1);
    }
    0
}

/// cuMemcpyHtoD(device, host, bytes) and with a stream behind it.
#[uprobe]
pub fn cuda_copy(ctx: ProbeContext) -> u32 {
    if let Some(counters) = counters() {
        // SAFETY: as in `cuda_launch`.
        add(unsafe { &raw mut (*counters).copies }, 1);
        // SAFETY: as in `cuda_launch`.
        add(unsafe { &raw mut (*counters).copied_bytes }, ctx.arg(2).unwrap_or(0));
    }
    0
}

/// cuMemAlloc(pointer, bytes) and with more behind it.
#[uprobe]
pub fn cuda_allocate(ctx: ProbeContext) -> u32 {
    if let Some(counters) = counters() {
        // SAFETY: as in `cuda_launch`.
        add(unsafe { &raw mut (*counters).allocations }, 1);
        // SAFETY: as in `cuda_launch`.
        add(unsafe { &raw mut (*counters).allocated_bytes }, ctx.arg(1).unwrap_or(0));
    }
    0
}

/// cuMemFree(pointer) and its kin.
#[uprobe]
pub fn cuda_free(_ctx: ProbeContext) -> u32 {
    if let Some(counters) = counters() {
        // SAFETY: as in `cuda_launch`.
        add(unsafe { &raw mut (*counters).frees }, 1);
    }
    0
}

/// cuCtxCreate, cuDevicePrimaryCtxRetain.
#[uprobe]
pub fn cuda_context(_ctx: ProbeContext) -> u32 {
    if let Some(counters) = counters() {
        // SAFETY: as in `cuda_launch`.
        add(unsafe { &raw mut (*counters).contexts }, 1);
    }
    0
}
