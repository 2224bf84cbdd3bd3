//! Why an engine process ended. Its pidfd tells that it did, at once and for adopted processes too; where
//! the kernel does not tell how an adopted one ended, that is judged by what was asked of it.

use controller_core::Nanos;
use controller_witness::exit::ExitReason as Ended;
use serde::Serialize;

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
    /// We had sent it because the engine did not become ready.
    pub gave_up: bool,
    /// The node's count of out-of-memory kills rose since it was started.
    pub oom_kills_rose: bool,
}

const SIGINT: i32 = 2;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// Judges an ended process.
pub(super) fn judge(ended: Ended, circumstances: Circumstances) -> (ExitReason, String) {
    let Circumstances { asked_to_drain, we_killed, gave_up, oom_kills_rose } = circumstances;
    match ended {
        Ended::Exited(0) => (ExitReason::Drained, "exit code 0".to_owned()),
        Ended::Exited(code) => (ExitReason::Crashed, format!("exit code {code}")),
        Ended::Signaled { oom: true, .. } => (ExitReason::Oom, "SIGKILL: the kernel was out of memory".to_owned()),
        Ended::Signaled { signal: SIGKILL, .. } if gave_up => {
            (ExitReason::Crashed, "SIGKILL from us: it did not become ready".to_owned())
        }
        Ended::Signaled { signal: SIGKILL, .. } if we_killed => {
            (ExitReason::Drained, "SIGKILL from us: it did not end by its deadline".to_owned())
        }
        Ended::Signaled { signal: SIGKILL, .. } if oom_kills_rose => {
            (ExitReason::Oom, "SIGKILL, and the kernel reports an out-of-memory kill".to_owned())
        }
        Ended::Signaled { signal: SIGKILL, .. } => (ExitReason::Killed, "SIGKILL from somebody else".to_owned()),
        // SIGTERM and SIGINT end a process; any other deadly signal is its own fault.
        Ended::Signaled { signal: signal @ (SIGTERM | SIGINT), .. } => {
            let reason = if asked_to_drain { ExitReason::Drained } else { ExitReason::Killed };
            (reason, format!("signal {signal}"))
        }
        Ended::Signaled { signal, .. } => (ExitReason::Crashed, format!("signal {signal}")),
        Ended::Unknown if asked_to_drain => (ExitReason::Drained, "how is not known".to_owned()),
        Ended::Unknown if oom_kills_rose => (ExitReason::Oom, "how is not known".to_owned()),
        Ended::Unknown => (ExitReason::Crashed, "how is not known".to_owned()),
    }
}

/// The node's count of out-of-memory kills; 0 where the kernel does not say.
pub(super) fn oom_kills() -> u64 {
    let Ok(text) = std::fs::read_to_string("/proc/vmstat") else { return 0 };
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_judged_by_status_and_circumstances() {
        let check = |ended, asked_to_drain, we_killed, oom_kills_rose, reason| {
            let circumstances = Circumstances { asked_to_drain, we_killed, gave_up: false, oom_kills_rose };
            let (judged, detail) = judge(ended, circumstances);
            assert_eq!(judged, reason, "{ended:?} {circumstances:?} {detail}");
        };
        let signaled = |signal, oom| Ended::Signaled { signal, core: false, oom };
        check(Ended::Exited(0), false, false, false, ExitReason::Drained);
        check(Ended::Exited(0), true, false, false, ExitReason::Drained);
        check(Ended::Exited(101), false, false, false, ExitReason::Crashed);
        check(Ended::Exited(1), true, false, false, ExitReason::Crashed);
        check(signaled(9, false), true, true, true, ExitReason::Drained);
        check(signaled(9, false), true, false, false, ExitReason::Killed);
        check(signaled(9, false), false, false, true, ExitReason::Oom);
        check(signaled(9, true), true, true, false, ExitReason::Oom);
        check(signaled(15, false), false, false, false, ExitReason::Killed);
        check(signaled(15, false), true, false, false, ExitReason::Drained);
        check(signaled(11, false), true, false, false, ExitReason::Crashed);
        check(Ended::Unknown, true, false, false, ExitReason::Drained);
        check(Ended::Unknown, false, false, false, ExitReason::Crashed);
        check(Ended::Unknown, false, false, true, ExitReason::Oom);
        let late = Circumstances { we_killed: true, gave_up: true, ..Circumstances::default() };
        assert_eq!(judge(signaled(9, false), late).0, ExitReason::Crashed);
    }
}
