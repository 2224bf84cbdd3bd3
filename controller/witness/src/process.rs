//! An engine's process as the kernel serves it: CPUs, waits for them, disks, faults.
//!
//! The kernel programs count a thread's time when it leaves its CPU, so what is open since then is added from /proc at
//! each look. Without the programs (no permission, or turned off) /proc alone gives the sums.

use crate::maps::KernelMaps;
use crate::procfs::{self, Thread};
use crate::witness::{Witness, locked};
use ebpf_types::{ProcessCounters, TASK_STOPPED, TASK_UNINTERRUPTIBLE, TIME_BUCKETS, ThreadSeen};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use std::collections::BTreeMap;

/// Who counted CPU times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessSource {
    /// The kernel programs, from when the process is watched.
    Probes,
    /// /proc: from the beginning of each thread that is still there.
    #[default]
    Procfs,
}

/// Running totals of one process. Where `source` changes from one look to the next, they began anew.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ProcessView {
    /// When it was looked at, CLOCK_MONOTONIC ns.
    pub at_ns: u64,
    pub source: ProcessSource,
    /// Time of all threads on a CPU, and ready to run without one, ns.
    pub on_cpu_ns: u64,
    pub run_queue_ns: u64,
    /// Page faults that waited for a disk.
    pub major_faults: u64,
    /// How often its cgroup had used up its CPU quota; none where that is not known.
    pub throttled: Option<u64>,
    /// None without its program.
    pub scheduler: Option<SchedulerView>,
    pub block: Option<BlockView>,
}

/// What only the scheduler's own events tell.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SchedulerView {
    /// Times that a thread left its CPU, and those in which it wanted to go on.
    pub switches: u64,
    pub preemptions: u64,
    /// Off the CPU by own choice; in a wait that no signal ends, as for a disk; stopped by a signal. ns of all threads.
    pub asleep_ns: u64,
    pub blocked_ns: u64,
    pub stopped_ns: u64,
    /// Waits for a CPU, one for each time that a thread got one.
    pub run_queue_waits: Times,
}

/// Block I/O that the process itself asked for: what the kernel writes back later is not in it, nor are file systems
/// that have no block device under them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BlockView {
    pub reads: u64,
    pub read_bytes: u64,
    pub read_ns: u64,
    pub writes: u64,
    pub write_bytes: u64,
    pub write_ns: u64,
    /// From the request to its end, reads and writes.
    pub times: Times,
}

/// A distribution of times in buckets that double.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(into = "TimesShown")]
pub struct Times([u64; TIME_BUCKETS]);

/// As it is shown: a quantile is less than twice the true one.
#[derive(Serialize)]
struct TimesShown {
    count: u64,
    ns_p50: u64,
    ns_p99: u64,
}

impl From<Times> for TimesShown {
    fn from(times: Times) -> Self {
        Self { count: times.count(), ns_p50: times.quantile_ns(50), ns_p99: times.quantile_ns(99) }
    }
}

impl Times {
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The upper end of the bucket that holds this quantile (nearest rank), ns; 0 of nothing.
    pub fn quantile_ns(&self, per_hundred: u64) -> u64 {
        let rank = (self.count() * per_hundred).div_ceil(100).max(1);
        let mut below = 0;
        let bucket = self.0.iter().position(|count| {
            below += count;
            below >= rank
        });
        bucket.map_or(0, |bucket| (2 << bucket) - 1)
    }

    /// What came since an earlier look.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut since = *self;
        since.0.iter_mut().zip(earlier.0).for_each(|(now, then)| *now = now.saturating_sub(then));
        since
    }
}

impl Witness {
    /// A process now; none when it is gone. The programs count it from [`Witness::watch_pid`] on. Reads /proc, some
    /// microseconds per thread.
    pub fn process(&self, pid: u32) -> Option<ProcessView> {
        let threads = procfs::threads(pid).filter(|threads| !threads.is_empty())?;
        let mut view = ProcessView {
            at_ns: now_ns(),
            major_faults: procfs::major_faults(pid)?,
            throttled: procfs::throttled(pid),
            ..ProcessView::default()
        };
        let attached: BTreeMap<_, _> = self.probes().into_iter().map(|probe| (probe.probe, probe.attached)).collect();
        let has = |probe| attached.get(probe).copied().unwrap_or(false);
        let maps = self.maps().map(locked);
        let counted = maps.as_ref().and_then(|maps| Some((&**maps, maps.process(pid)?)));
        if let Some((maps, counted)) = counted.as_ref().filter(|_| has("scheduler")) {
            view.scheduled(counted, maps, &threads);
        } else {
            view.on_cpu_ns = threads.iter().map(|thread| thread.on_cpu_ns).sum();
            view.run_queue_ns = threads.iter().map(|thread| thread.run_queue_ns).sum();
        }
        if let Some((_, counted)) = counted.as_ref().filter(|_| has("block_begin") && has("block_end")) {
            view.block = Some(BlockView::from(counted));
        }
        Some(view)
    }
}

impl ProcessView {
    /// Takes over what the programs counted, and what is open since.
    fn scheduled(&mut self, counted: &ProcessCounters, maps: &KernelMaps, threads: &[Thread]) {
        self.source = ProcessSource::Probes;
        self.on_cpu_ns = counted.on_cpu_ns;
        self.run_queue_ns = counted.run_queue_ns;
        let mut scheduler = SchedulerView::from(counted);
        for thread in threads {
            if let Some(last) = maps.thread(thread.number) {
                self.open(&mut scheduler, thread, &last);
            }
        }
        self.scheduler = Some(scheduler);
    }

    /// What a thread did since it last left its CPU.
    fn open(&mut self, scheduler: &mut SchedulerView, thread: &Thread, last: &ThreadSeen) {
        let ran = thread.on_cpu_ns.saturating_sub(last.on_cpu_ns);
        let waited = thread.run_queue_ns.saturating_sub(last.run_queue_ns);
        self.on_cpu_ns += ran;
        self.run_queue_ns += waited;
        // When one that wants a CPU was woken is not known yet.
        if thread.is_runnable {
            return;
        }
        let away = self.at_ns.saturating_sub(last.left_ns).saturating_sub(ran).saturating_sub(waited);
        if last.state & TASK_STOPPED != 0 {
            scheduler.stopped_ns += away;
        } else if last.state & TASK_UNINTERRUPTIBLE != 0 {
            scheduler.blocked_ns += away;
        } else if last.state != 0 {
            scheduler.asleep_ns += away;
        }
    }
}

impl From<&ProcessCounters> for SchedulerView {
    fn from(counted: &ProcessCounters) -> Self {
        Self {
            switches: counted.switches,
            preemptions: counted.preemptions,
            asleep_ns: counted.asleep_ns,
            blocked_ns: counted.blocked_ns,
            stopped_ns: counted.stopped_ns,
            run_queue_waits: Times(counted.run_queue_waits),
        }
    }
}

impl From<&ProcessCounters> for BlockView {
    fn from(counted: &ProcessCounters) -> Self {
        Self {
            reads: counted.reads,
            read_bytes: counted.read_bytes,
            read_ns: counted.read_ns,
            writes: counted.writes,
            write_bytes: counted.write_bytes,
            write_ns: counted.write_ns,
            times: Times(counted.block_times),
        }
    }
}

/// CLOCK_MONOTONIC.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_the_upper_ends_of_buckets() {
        let check = |buckets: &[(usize, u64)], want: (u64, u64)| {
            let mut times = Times::default();
            buckets.iter().for_each(|&(bucket, count)| times.0[bucket] = count);
            assert_eq!((times.quantile_ns(50), times.quantile_ns(99)), want, "{buckets:?}");
        };
        check(&[], (0, 0));
        check(&[(0, 1)], (1, 1));
        check(&[(10, 99), (20, 1)], (2047, 2047));
        check(&[(10, 98), (20, 2)], (2047, (2 << 20) - 1));
        check(&[(31, 5)], ((2 << 31) - 1, (2 << 31) - 1));
    }
}
