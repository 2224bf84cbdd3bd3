//! What the scheduler gave to watched processes, seen from one tracepoint alone.
//!
//! The kernel keeps each thread's time on a CPU and its time in a run queue as totals. Whenever a thread leaves its
//! CPU, what they grew by since it left last is one run and the wait before it; what remains of the time between is
//! how long it was away, in the state that it had left in. So nothing is done for a thread that comes, and a switch
//! between two threads that nobody watches costs one look-up.

use crate::kernel::{self, typed};
use crate::maps::add;
use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::{LruHashMap, PerCpuHashMap};
use aya_ebpf::programs::BtfTracePointContext;
use ebpf_types::{ProcessCounters, TASK_STOPPED, TASK_UNINTERRUPTIBLE, TIME_BUCKETS, ThreadSeen};

/// Totals per watched process. User space makes and removes the entries.
#[map]
pub static PROCESSES: PerCpuHashMap<u32, ProcessCounters> = PerCpuHashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);
/// Threads of watched processes.
#[map]
static THREADS: LruHashMap<u32, ThreadSeen> = LruHashMap::with_max_entries(8192, 0);

/// Whether the tracepoint gives the state of the thread that leaves (Linux 5.18); by then the thread itself may be on
/// its way to being woken.
#[unsafe(no_mangle)]
static SWITCH_TELLS_STATE: Global<u32> = Global::new(0);

/// sched:sched_switch(preempt, prev, next, prev_state).
#[btf_tracepoint(function = "sched_switch")]
pub fn scheduler(ctx: BtfTracePointContext) -> i32 {
    let _ = switched(&ctx);
    0
}

#[inline(always)]
fn switched(ctx: &BtfTracePointContext) -> Option<()> {
    let leaving = ctx.arg::<*const u8>(1);
    let process: u32 = typed(leaving, &kernel::OFF_TASK_TGID)?;
    if process == 0 {
        return None;
    }
    let counters = PROCESSES.get_ptr_mut(process)?;
    let preempted = ctx.arg::<u64>(0) as u8 != 0;
    let state = if preempted {
        0
    } else if SWITCH_TELLS_STATE.load() != 0 {
        ctx.arg::<u64>(3) as u32
    } else {
        typed(leaving, &kernel::OFF_TASK_STATE)?
    };
    let seen = ThreadSeen {
        started_ns: typed(leaving, &kernel::OFF_TASK_START_TIME)?,
        // SAFETY: a plain kernel helper.
        left_ns: unsafe { bpf_ktime_get_ns() },
        on_cpu_ns: typed(leaving, &kernel::OFF_TASK_ON_CPU)?,
        run_queue_ns: typed(leaving, &kernel::OFF_TASK_RUN_QUEUE)?,
        state,
        process,
    };
    let thread: u32 = typed(leaving, &kernel::OFF_TASK_PID)?;
    let Some(last) = THREADS.get_ptr_mut(thread) else {
        let _ = THREADS.insert(thread, seen, 0);
        return None;
    };
    // SAFETY: a checked map value. It is this thread's, and a thread is on one CPU at a time.
    let last = unsafe { &mut *last };
    if last.started_ns == seen.started_ns && last.process == process {
        account(counters, last, &seen);
    }
    *last = seen;
    None
}

#[inline(always)]
fn account(counters: *mut ProcessCounters, last: &ThreadSeen, seen: &ThreadSeen) {
    let ran = seen.on_cpu_ns.saturating_sub(last.on_cpu_ns);
    let waited = seen.run_queue_ns.saturating_sub(last.run_queue_ns);
    let away = seen.left_ns.saturating_sub(last.left_ns).saturating_sub(ran).saturating_sub(waited);
    // SAFETY: a checked map value, of which only addresses of fields are taken; the bucket is within the array.
    unsafe {
        add(&raw mut (*counters).switches, 1);
        add(&raw mut (*counters).on_cpu_ns, ran);
        add(&raw mut (*counters).run_queue_ns, waited);
        add((&raw mut (*counters).run_queue_waits).cast::<u64>().add(bucket(waited)), 1);
        if seen.state == 0 {
            add(&raw mut (*counters).preemptions, 1);
        }
        // A thread that wanted to go on waited, and was nowhere else.
        if last.state & TASK_STOPPED != 0 {
            add(&raw mut (*counters).stopped_ns, away);
        } else if last.state & TASK_UNINTERRUPTIBLE != 0 {
            add(&raw mut (*counters).blocked_ns, away);
        } else if last.state != 0 {
            add(&raw mut (*counters).asleep_ns, away);
        }
    }
}

/// The bucket of a time, by its highest bit.
#[inline(always)]
pub fn bucket(ns: u64) -> usize {
    let low = if ns >> 32 != 0 { u32::MAX } else { ns as u32 | 1 };
    let mut bucket = (31 - low.leading_zeros()) as u64;
    // SAFETY: arithmetic alone. The verifier has to see the bound, and LLVM, which knows it, would leave it out.
    unsafe { core::arch::asm!("{bucket} &= {last}", bucket = inout(reg) bucket, last = const TIME_BUCKETS - 1) };
    bucket as usize
}
