//! The cores that this process runs on.

use crate::error::EngineError;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Cores that this thread may use, in order.
fn allowed() -> Vec<u32> {
    match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).map(|core| core as u32).collect(),
        Err(_) => vec![0],
    }
}

/// Confines the whole process to `wanted` and answers the cores it then has; with none wanted it keeps
/// those it may use already. Threads made later inherit it.
pub(crate) fn confine(wanted: &[u32]) -> Result<Vec<u32>, EngineError> {
    let allowed = allowed();
    if wanted.is_empty() {
        return Ok(allowed);
    }
    let mut set = CpuSet::new();
    for core in wanted {
        if !allowed.contains(core) {
            let message = format!("--cores: core {core} is not among those this process may use ({allowed:?})");
            return Err(EngineError::BadOption { message });
        }
        set.set(*core as usize);
    }
    let failed =
        |error: String| EngineError::BadOption { message: format!("--cores: cannot set the affinity: {error}") };
    let tasks = std::fs::read_dir("/proc/self/task").map_err(|error| failed(error.to_string()))?;
    for task in tasks.flatten() {
        let thread = task.file_name().to_string_lossy().parse().ok().and_then(Pid::from_raw);
        match sched_setaffinity(thread, &set) {
            // The thread ended meanwhile.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(failed(error.to_string())),
        }
    }
    let mut cores = wanted.to_vec();
    cores.sort_unstable();
    cores.dedup();
    Ok(cores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_that_is_not_there_is_refused() {
        let message = confine(&[1023]).expect_err("no such core").to_string();
        assert!(message.starts_with("--cores: core 1023"), "{message}");
    }

    #[test]
    fn nothing_wanted_keeps_what_is_there() {
        assert_eq!(confine(&[]).expect("allowed"), allowed());
    }
}
