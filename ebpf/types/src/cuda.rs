//! What a process asked of CUDA's driver library.

/// Calls and bytes of one process, one copy per CPU. A process is counted while it has an entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "pod", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct CudaCounters {
    /// Kernels launched one by one.
    pub launches: u64,
    /// Graphs launched: whatever many kernels each of them holds.
    pub graph_launches: u64,
    /// Copies from host to device, and their bytes.
    pub copies: u64,
    pub copied_bytes: u64,
    /// Allocations of device memory, and their bytes.
    pub allocations: u64,
    pub allocated_bytes: u64,
    pub frees: u64,
    /// Contexts made or retained.
    pub contexts: u64,
}

const _: () = assert!(size_of::<CudaCounters>() == 64);
