//! Clocks and sizes as the kernel tells them: the monotonic clock that all Foreshock processes share,
//! when this process began, and how much memory there is.

use rustix::time::{ClockId, clock_gettime};
use std::fs;

pub use engine_http::clock::monotonic_ns;

/// CLOCK_BOOTTIME now, ns: it runs on while the machine is suspended.
fn boottime_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    (now.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(now.tv_nsec as u64)
}

/// CLOCK_MONOTONIC when this process began, ns, to the kernel's clock tick (10 ms); `now_ns` where /proc does not say.
pub fn process_started_ns(now_ns: u64) -> u64 {
    let Ok(stat) = fs::read_to_string("/proc/self/stat") else { return now_ns };
    let Some(ticks) = start_ticks(&stat) else { return now_ns };
    let ticks_per_s = rustix::param::clock_ticks_per_second().max(1);
    let started_boottime_ns = ticks.saturating_mul(1_000_000_000 / ticks_per_s);
    // The kernel counts it since boot, suspension included; the difference of the clocks takes that out.
    let suspended_ns = boottime_ns().saturating_sub(now_ns);
    started_boottime_ns.saturating_sub(suspended_ns).min(now_ns)
}

/// Field 22 of /proc/PID/stat. The second field, the command's name, may hold spaces and parentheses.
fn start_ticks(stat: &str) -> Option<u64> {
    let after_name = &stat[stat.rfind(')')? + 1..];
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Resident memory of this process, bytes; 0 where /proc does not say.
pub fn resident_bytes() -> u64 {
    let Ok(statm) = fs::read_to_string("/proc/self/statm") else { return 0 };
    let pages: u64 = statm.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

/// Memory that can be had without swapping, bytes; none where /proc does not say.
pub fn available_bytes() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_start_behind_an_awkward_name() {
        let stat = "12 (a b) c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21";
        assert_eq!(start_ticks(stat), Some(4242));
        assert_eq!(start_ticks("nothing"), None);
    }

    #[test]
    fn this_process_began_before_now_and_uses_memory() {
        let now_ns = monotonic_ns();
        let started_ns = process_started_ns(now_ns);
        assert!(started_ns <= now_ns && now_ns - started_ns < 3_600_000_000_000, "{started_ns} {now_ns}");
        assert!(resident_bytes() > 1 << 16);
        assert!(available_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }
}
