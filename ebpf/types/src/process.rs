//! What the scheduler and the block layer did for a watched process.

/// Buckets of the distributions: bucket `i` counts times from 2^i ns on, the last everything above 2 s.
pub const TIME_BUCKETS: usize = 32;

/// Totals of one watched process, one copy per CPU. A process is counted while it has an entry. Times are ns.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "pod", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct ProcessCounters {
    /// Times that a thread left its CPU, and those of them in which it wanted to go on.
    pub switches: u64,
    pub preemptions: u64,
    pub on_cpu_ns: u64,
    /// Ready to run, and without a CPU.
    pub run_queue_ns: u64,
    /// Off the CPU by its own choice; in a wait that no signal ends, as for a disk; stopped by a signal or a tracer.
    pub asleep_ns: u64,
    pub blocked_ns: u64,
    pub stopped_ns: u64,
    /// Block I/O that the process itself asked for: finished requests, their bytes, and the time from asking to end.
    pub reads: u64,
    pub read_bytes: u64,
    pub read_ns: u64,
    pub writes: u64,
    pub write_bytes: u64,
    pub write_ns: u64,
    pub reserved: u64,
    /// Waits for a CPU, one for each time that a thread got one.
    pub run_queue_waits: [u64; TIME_BUCKETS],
    /// Times of block I/O, reads and writes.
    pub block_times: [u64; TIME_BUCKETS],
}

/// A thread of a watched process when it last left its CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "pod", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct ThreadSeen {
    /// Tells a thread from a later one of the same number.
    pub started_ns: u64,
    pub left_ns: u64,
    /// The kernel's own totals then.
    pub on_cpu_ns: u64,
    pub run_queue_ns: u64,
    /// The kernel's task state that it left in: 0 when it wanted to go on.
    pub state: u32,
    pub process: u32,
}

/// Block I/O on its way.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "pod", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct BlockStart {
    pub at_ns: u64,
    pub process: u32,
    pub bytes: u32,
    pub is_write: u32,
    pub reserved: u32,
}

/// The kernel's task states that are told apart: a wait that no signal ends; stopped, or traced.
pub const TASK_UNINTERRUPTIBLE: u32 = 2;
pub const TASK_STOPPED: u32 = 4 | 8;

/// Bits of the switch that turns costly events off.
pub const QUIET_TOKENS: u32 = 1;
pub const QUIET_BODIES: u32 = 2;

const _: () = assert!(size_of::<ProcessCounters>() == 8 * (14 + 2 * TIME_BUCKETS));
const _: () = assert!(size_of::<ThreadSeen>() == 40);
const _: () = assert!(size_of::<BlockStart>() == 24);
