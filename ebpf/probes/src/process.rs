//! Ends of watched processes, with the reason that wait(2) would give their parent: an engine that was
//! adopted is no child of ours, and this is the one place where its exit code can be learned.

use crate::kernel::{self, field};
use crate::maps::{EVENTS, PIDS, count_lost, submit_at_once};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use ebpf_types::{EVENT_EXIT, EXIT_OOM_VICTIM, EventHeader, ExitEvent};

/// The whole group exits, with one code (kernel: SIGNAL_GROUP_EXIT).
const SIGNAL_GROUP_EXIT: u32 = 4;

/// sched:sched_process_exit(task); it comes for every thread, and the last one ends the process.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn process_exit(ctx: BtfTracePointContext) -> i32 {
    let _ = exited(&ctx);
    0
}

#[inline(always)]
fn exited(ctx: &BtfTracePointContext) -> Result<(), i32> {
    let task = ctx.arg::<*const u8>(0) as u64;
    let pid: u32 = field(task, &kernel::OFF_TASK_TGID)?;
    if PIDS.get_ptr(pid).is_none() {
        return Ok(());
    }
    let signal: u64 = field(task, &kernel::OFF_TASK_SIGNAL)?;
    // Two threads that end at once may both see no thread left: the one that removes the entry tells.
    if field::<i32>(signal, &kernel::OFF_SIGNAL_LIVE)? != 0 || PIDS.remove(pid).is_err() {
        return Ok(());
    }
    let group = field::<u32>(signal, &kernel::OFF_SIGNAL_FLAGS)? & SIGNAL_GROUP_EXIT != 0;
    let wait_status = if group {
        field(signal, &kernel::OFF_SIGNAL_GROUP_EXIT_CODE)?
    } else {
        field(task, &kernel::OFF_TASK_EXIT_CODE)?
    };
    let oom = field::<u64>(signal, &kernel::OFF_SIGNAL_OOM_MM).is_ok_and(|mm| mm != 0);
    let Some(mut entry) = EVENTS.reserve::<ExitEvent>(0) else {
        count_lost();
        return Ok(());
    };
    entry.write(ExitEvent {
        // SAFETY: a plain kernel helper.
        header: EventHeader { kind: EVENT_EXIT, flags: 0, text_bytes: 0, at_ns: unsafe { bpf_ktime_get_ns() } },
        pid,
        wait_status,
        flags: if oom { EXIT_OOM_VICTIM } else { 0 },
        reserved: 0,
    });
    submit_at_once(entry);
    Ok(())
}
