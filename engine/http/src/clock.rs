//! CLOCK_MONOTONIC in nanoseconds: the clock that the kernel's probes stamp with, so that records of both sides
//! can be compared. `std::time::Instant` is the same clock but does not give its value away.

use rustix::time::{ClockId, clock_gettime};

/// Now, ns since an arbitrary start that all processes of this machine share until it reboots.
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Seconds since 1970, for the `created` field of answers.
pub fn unix_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
