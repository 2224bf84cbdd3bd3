//! Pinning threads to the cores that an instance was given.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::thread::ThreadId;

/// Keeps whichever thread calls `forward` on its core.
pub struct Caller {
    core: Option<u32>,
    pinned: Option<ThreadId>,
}

impl Caller {
    pub(crate) fn new(core: Option<u32>) -> Self {
        Self { core, pinned: None }
    }

    /// Pins the current thread, once per thread.
    pub(crate) fn pin(&mut self) {
        let Some(core) = self.core else { return };
        let current = std::thread::current().id();
        if self.pinned != Some(current) {
            pin(core);
            self.pinned = Some(current);
        }
    }
}

/// Pins the current thread. Failure (a cpuset that shrank since load) costs speed, not correctness.
pub(crate) fn pin(core: u32) {
    let mut set = CpuSet::new();
    set.set(core as usize);
    if let Err(error) = sched_setaffinity(None, &set) {
        tracing::warn!(core, %error, "cannot pin a compute thread");
    }
}

/// The first of `cores` that this process may not run on.
pub(crate) fn first_forbidden(cores: &[u32]) -> Option<u32> {
    let allowed = sched_getaffinity(None).ok()?;
    cores.iter().copied().find(|core| *core as usize >= CpuSet::MAX_CPU || !allowed.is_set(*core as usize))
}
