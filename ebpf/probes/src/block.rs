//! Block I/O that watched processes ask for: checkpoints as they are read, by calls or through page faults.
//!
//! A request is its process's while the process itself hands it in. What the kernel writes back later is nobody's.

use crate::kernel::{self, field, typed};
use crate::maps::add;
use crate::sched::{PROCESSES, bucket};
use aya_ebpf::Global;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::LruHashMap;
use aya_ebpf::programs::BtfTracePointContext;
use ebpf_types::{BlockStart, ProcessCounters};

/// Requests on their way, by the kernel's address of them.
#[map]
static BLOCKS: LruHashMap<u64, BlockStart> = LruHashMap::with_max_entries(4096, 0);

/// Whether the request is the tracepoint's second argument (before Linux 5.11), behind its queue.
#[unsafe(no_mangle)]
static BLOCK_QUEUE_TELLS_QUEUE: Global<u32> = Global::new(0);

/// Requests that one request to a device may hold and that are still looked at.
const MERGED: u32 = 32;
/// The operation in a request's flags, and the two that move data.
const OPERATION: u32 = 0xff;
const READ: u32 = 0;
const WRITE: u32 = 1;

/// block:block_bio_queue(bio).
#[btf_tracepoint(function = "block_bio_queue")]
pub fn block_begin(ctx: BtfTracePointContext) -> i32 {
    let _ = begun(&ctx);
    0
}

#[inline(always)]
fn begun(ctx: &BtfTracePointContext) -> Option<()> {
    let process = (bpf_get_current_pid_tgid() >> 32) as u32;
    PROCESSES.get_ptr_mut(process)?;
    let bio = if BLOCK_QUEUE_TELLS_QUEUE.load() != 0 { ctx.arg::<*const u8>(1) } else { ctx.arg::<*const u8>(0) };
    let operation = typed::<u32>(bio, &kernel::OFF_BIO_FLAGS)? & OPERATION;
    let bytes: u32 = typed(bio, &kernel::OFF_BIO_BYTES)?;
    if (operation == READ || operation == WRITE) && bytes > 0 {
        // SAFETY: a plain kernel helper.
        let at_ns = unsafe { bpf_ktime_get_ns() };
        let start = BlockStart { at_ns, process, bytes, is_write: operation, reserved: 0 };
        let _ = BLOCKS.insert(bio as u64, start, 0);
    }
    None
}

/// block:block_rq_complete(request, error, bytes): told by devices themselves, so of a stack of them only the lowest
/// counts.
#[btf_tracepoint(function = "block_rq_complete")]
pub fn block_end(ctx: BtfTracePointContext) -> i32 {
    let _ = ended(&ctx);
    0
}

#[inline(always)]
fn ended(ctx: &BtfTracePointContext) -> Result<(), i32> {
    let request = ctx.arg::<*const u8>(0) as u64;
    let mut done = ctx.arg::<u64>(2) as u32;
    let mut bio: u64 = field(request, &kernel::OFF_REQUEST_BIO)?;
    for _ in 0..MERGED {
        if bio == 0 {
            break;
        }
        let bytes: u32 = field(bio, &kernel::OFF_BIO_BYTES)?;
        // The rest of the device's request comes later.
        if bytes > done {
            break;
        }
        done -= bytes;
        let next: u64 = field(bio, &kernel::OFF_BIO_NEXT)?;
        finished(bio);
        bio = next;
    }
    Ok(())
}

#[inline(always)]
fn finished(bio: u64) {
    // SAFETY: an entry is written once, before its request ends.
    let Some(start) = (unsafe { BLOCKS.get(bio) }) else { return };
    let start = *start;
    let _ = BLOCKS.remove(bio);
    if let Some(counters) = PROCESSES.get_ptr_mut(start.process) {
        // SAFETY: a plain kernel helper.
        let took = unsafe { bpf_ktime_get_ns() }.saturating_sub(start.at_ns);
        count(counters, &start, took);
    }
}

#[inline(always)]
fn count(counters: *mut ProcessCounters, start: &BlockStart, took: u64) {
    // SAFETY: a checked map value, of which only addresses of fields are taken; the bucket is within the array.
    unsafe {
        if start.is_write == WRITE {
            add(&raw mut (*counters).writes, 1);
            add(&raw mut (*counters).write_bytes, start.bytes as u64);
            add(&raw mut (*counters).write_ns, took);
        } else {
            add(&raw mut (*counters).reads, 1);
            add(&raw mut (*counters).read_bytes, start.bytes as u64);
            add(&raw mut (*counters).read_ns, took);
        }
        add((&raw mut (*counters).block_times).cast::<u64>().add(bucket(took)), 1);
    }
}
