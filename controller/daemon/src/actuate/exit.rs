//! How an engine process ended. The pidfd tells that it did, at once and for adopted processes too; only a
//! child's status can be read, so for an adopted one the reason is judged by what was asked of it.

use super::identity::ProcessHandle;
use controller_core::Nanos;
use rustix::fd::AsFd;
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, waitid};
use serde::Serialize;
use std::io;
use tokio::io::unix::AsyncFd;

/// An ended engine process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Exit {
    pub at_ns: Nanos,
    pub reason: ExitReason,
    /// For people: code or signal.
    pub detail: String,
}

/// Why it ended; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// It was asked to, or its lease ran out.
    Drained,
    /// It failed by itself.
    Crashed,
    /// A signal ended it that we had no reason to send.
    Killed,
    /// The kernel took it for want of memory, as far as can be told.
    Oom,
}

impl ExitReason {
    /// As a metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Drained => "drained",
            Self::Crashed => "crashed",
            Self::Killed => "killed",
            Self::Oom => "oom",
        }
    }
}

/// What was known about a process when it ended.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Circumstances {
    /// We had asked it to drain.
    pub asked_to_drain: bool,
    /// We had sent SIGKILL, since it did not end in time.
    pub we_killed: bool,
    /// The node's count of out-of-memory kills rose since it was started.
    pub oom_kills_rose: bool,
}

/// Waits until the process ends and, for a child, reaps it.
pub(super) async fn wait(process: &AsyncFd<ProcessHandle>) -> Option<WaitIdStatus> {
    // Readable means ended; an error on this descriptor can only mean that the reactor is going away.
    let _ready = process.readable().await;
    match waitid(WaitId::PidFd(process.get_ref().fd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
        Ok(status) => status,
        // ECHILD: an adopted process is its new parent's to reap.
        Err(_) => None,
    }
}

/// Judges an ended process.
pub(super) fn judge(status: Option<&WaitIdStatus>, circumstances: Circumstances) -> (ExitReason, String) {
    let code = status.and_then(WaitIdStatus::exit_status);
    let signal = status.and_then(WaitIdStatus::terminating_signal);
    judge_parts(code, signal, circumstances)
}

const SIGKILL: i32 = 9;

fn judge_parts(code: Option<i32>, signal: Option<i32>, circumstances: Circumstances) -> (ExitReason, String) {
    match (code, signal) {
        (Some(0), _) => (ExitReason::Drained, "exit code 0".to_owned()),
        (Some(code), _) => (ExitReason::Crashed, format!("exit code {code}")),
        (_, Some(SIGKILL)) if circumstances.we_killed => {
            (ExitReason::Drained, "SIGKILL from us: it did not end by its deadline".to_owned())
        }
        (_, Some(SIGKILL)) if circumstances.oom_kills_rose => {
            (ExitReason::Oom, "SIGKILL, and the kernel reports an out-of-memory kill".to_owned())
        }
        (_, Some(SIGKILL)) => (ExitReason::Killed, "SIGKILL from somebody else".to_owned()),
        // SIGTERM and SIGINT end a process; any other deadly signal is its own fault.
        (_, Some(15 | 2)) if circumstances.asked_to_drain => (ExitReason::Drained, "signal".to_owned()),
        (_, Some(signal @ (15 | 2))) => (ExitReason::Killed, format!("signal {signal}")),
        (_, Some(signal)) => (ExitReason::Crashed, format!("signal {signal}")),
        (None, None) if circumstances.asked_to_drain => (ExitReason::Drained, "adopted; status unknown".to_owned()),
        (None, None) if circumstances.oom_kills_rose => (ExitReason::Oom, "adopted; status unknown".to_owned()),
        (None, None) => (ExitReason::Crashed, "adopted; status unknown".to_owned()),
    }
}

/// The node's count of out-of-memory kills; 0 where the kernel does not say.
pub(super) fn oom_kills() -> u64 {
    let Ok(text) = std::fs::read_to_string("/proc/vmstat") else { return 0 };
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok()).unwrap_or(0)
}

/// Wraps a process for waiting.
///
/// # Errors
/// When the reactor cannot take the descriptor.
#[expect(
    deprecated,
    reason = "its successor is unsafe, for types whose descriptor may change or close early; this one owns its \
              descriptor for as long as it lives"
)]
pub(super) fn watchable(process: ProcessHandle) -> io::Result<AsyncFd<ProcessHandle>> {
    AsyncFd::with_interest(process, tokio::io::Interest::READABLE)
}

impl std::os::fd::AsRawFd for ProcessHandle {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_judged_by_status_and_circumstances() {
        let check = |code, signal, asked_to_drain, we_killed, oom_kills_rose, reason| {
            let circumstances = Circumstances { asked_to_drain, we_killed, oom_kills_rose };
            let (judged, detail) = judge_parts(code, signal, circumstances);
            assert_eq!(judged, reason, "{code:?} {signal:?} {circumstances:?} {detail}");
        };
        check(Some(0), None, false, false, false, ExitReason::Drained);
        check(Some(0), None, true, false, false, ExitReason::Drained);
        check(Some(101), None, false, false, false, ExitReason::Crashed);
        check(Some(1), None, true, false, false, ExitReason::Crashed);
        check(None, Some(9), true, true, true, ExitReason::Drained);
        check(None, Some(9), true, false, false, ExitReason::Killed);
        check(None, Some(9), false, false, true, ExitReason::Oom);
        check(None, Some(15), false, false, false, ExitReason::Killed);
        check(None, Some(15), true, false, false, ExitReason::Drained);
        check(None, Some(11), true, false, false, ExitReason::Crashed);
        check(None, None, true, false, false, ExitReason::Drained);
        check(None, None, false, false, false, ExitReason::Crashed);
        check(None, None, false, false, true, ExitReason::Oom);
    }
}
