//! The maps, and what is done with them in more than one place.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::ring_buf::RingBufEntry;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf};
use ebpf_types::{FLAG_TERMINATOR, FlowEvent, FlowKey, FlowState, ListenQueue, PortCounters, SynSeen, WAKE_EVERY_NS};

/// Counters per watched port (host order). User space makes and removes the entries.
#[map]
pub static PORTS: PerCpuHashMap<u16, PortCounters> = PerCpuHashMap::with_max_entries(1024, 0);
/// Listener per watched port. User space makes and removes the entries.
#[map]
pub static QUEUES: HashMap<u16, ListenQueue> = HashMap::with_max_entries(1024, 0);
/// Watched processes; an entry is removed when its process ends, so that an end is told once.
#[map]
pub static PIDS: HashMap<u32, u32> = HashMap::with_max_entries(4096, 0);
/// Latest attempt to connect per connection, until it is closed.
#[map]
pub static SYNS: LruHashMap<FlowKey, SynSeen> = LruHashMap::with_max_entries(16384, 0);
/// Connections on which the client said something.
#[map]
pub static FLOWS: LruHashMap<FlowKey, FlowState> = LruHashMap::with_max_entries(16384, 0);
/// Events to user space.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);
/// Events that found the ring full.
#[map]
pub static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// What is not told for now, since telling costs too much: bits of `QUIET_...`. User space writes it.
#[map]
pub static QUIET: Array<u32> = Array::with_max_entries(1, 0);

/// Whether that is not told.
#[inline(always)]
pub fn quiet(what: u32) -> bool {
    QUIET.get(0).is_some_and(|bits| bits & what != 0)
}

/// When each CPU last woke the reader.
#[map]
static WOKEN: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Where the text of a segment is looked at; one per CPU, since a program's stack is small.
#[map]
pub static SCRATCH: PerCpuArray<[u8; SCRATCH_BYTES]> = PerCpuArray::with_max_entries(1, 0);
pub const SCRATCH_BYTES: usize = 512;

/// Ways to submit: without waking the reader, and waking it even where it has not caught up.
const NO_WAKEUP: u64 = 1;
const WAKEUP: u64 = 2;
/// Bytes that may wait in the ring before any event wakes the reader.
const QUIET_BYTES: u64 = 64 << 10;

const RING_AVAILABLE_DATA: u64 = 0;
const RING_SIZE: u64 = 1;

/// Adds to a counter. Even a per-CPU one needs an atomic add, since a program that runs in process context
/// can be interrupted by one in a softirq.
#[inline(always)]
pub fn add(counter: *mut u64, n: u64) {
    // SAFETY: the pointer comes from a map value that the verifier has seen checked for null. Inline
    // assembly, since LLVM would use a fetch_add result, which older kernels refuse.
    unsafe {
        core::arch::asm!("lock *(u64 *)({p} + 0) += {n}", p = in(reg) counter, n = in(reg) n, options(nostack));
    }
}

/// Counts an event that could not be told.
#[inline(always)]
pub fn count_lost() {
    if let Some(lost) = LOST.get_ptr_mut(0) {
        add(lost, 1);
    }
}

/// Writes an event without text.
#[inline(always)]
pub fn emit(event: &FlowEvent) {
    match EVENTS.reserve::<FlowEvent>(0) {
        Some(mut entry) => {
            entry.write(*event);
            submit(entry);
        }
        None => count_lost(),
    }
}

/// Submits and wakes the reader: by default the kernel would not where tokens wait unread. A wake-up costs more than all
/// the rest of an event, so that a CPU wakes it at most once per [`WAKE_EVERY_NS`]: after what wakes it the reader looks
/// again by itself.
#[inline(always)]
pub fn submit<T>(entry: RingBufEntry<T>) {
    entry.submit(if wake_is_due() { WAKEUP } else { NO_WAKEUP });
}

/// Submits and wakes the reader whatever came before: for what is rare.
#[inline(always)]
pub fn submit_at_once<T>(entry: RingBufEntry<T>) {
    entry.submit(WAKEUP);
}

/// Submits without waking the reader: while requests are going on it looks by itself.
#[inline(always)]
pub fn submit_quietly<T>(entry: RingBufEntry<T>) {
    let crowded = EVENTS.query(RING_AVAILABLE_DATA) > QUIET_BYTES;
    entry.submit(if crowded && wake_is_due() { WAKEUP } else { NO_WAKEUP });
}

#[inline(always)]
fn wake_is_due() -> bool {
    let Some(woken_ns) = WOKEN.get_ptr_mut(0) else { return true };
    // SAFETY: a plain kernel helper, and a checked map value of this CPU; a program that interrupts this one may set it
    // in between, and then both wake.
    unsafe {
        let now_ns = bpf_ktime_get_ns();
        if now_ns.wrapping_sub(*woken_ns) < WAKE_EVERY_NS {
            return false;
        }
        *woken_ns = now_ns;
    }
    true
}

/// Writes an event of a request that is going on.
#[inline(always)]
pub fn emit_quietly<T: Copy + 'static>(event: &T) {
    match EVENTS.reserve::<T>(0) {
        Some(mut entry) => {
            entry.write(*event);
            submit_quietly(entry);
        }
        None => count_lost(),
    }
}

/// Whether less than half of the ring is in use. Events that counters tell as well yield to the others, so
/// that a flood of SYNs does not push requests out.
#[inline(always)]
pub fn ring_has_room() -> bool {
    EVENTS.query(RING_AVAILABLE_DATA) < EVENTS.query(RING_SIZE) / 2
}

/// Last chunk, with the end of the chunk before it.
const TERMINATOR: u64 = 0x0d_0a_30_0d_0a_0d_0a;
const TERMINATOR_MASK: u64 = 0xff_ff_ff_ff_ff_ff_ff;

/// Whether the answer so far ends in the last chunk of a chunked body, however it was cut into segments.
#[inline(always)]
pub fn terminated(flow: &FlowState) -> bool {
    flow.tail & TERMINATOR_MASK == TERMINATOR
}

/// An event with what its flow says.
#[inline(always)]
pub fn flow_event(kind: u16, flags: u16, now: u64, key: &FlowKey, flow: &FlowState) -> FlowEvent {
    let mut event = FlowEvent::EMPTY;
    event.header.kind = kind;
    event.header.flags = flags | if terminated(flow) { FLAG_TERMINATOR } else { 0 };
    event.header.at_ns = now;
    event.key = *key;
    event.request = flow.request;
    event.syn_ns = flow.syn_ns;
    event.start_ns = flow.start_ns;
    event.first_byte_ns = flow.first_byte_ns;
    event.last_byte_ns = flow.last_byte_ns;
    event.request_bytes = flow.request_end.wrapping_sub(flow.request_seq) as u64;
    event.response_bytes =
        if flow.first_byte_ns == 0 { 0 } else { flow.response_end.wrapping_sub(flow.response_seq) as u64 };
    event.data_segments = flow.data_segments;
    event.cookie = flow.cookie;
    event.flow = flow.id;
    event.retransmits = flow.retransmits;
    event.accept_wait_ns = flow.accept_wait_ns;
    event
}
