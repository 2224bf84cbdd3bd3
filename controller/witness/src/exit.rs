//! Ends of processes through pidfds: no privilege and no eBPF needed, children or not.

use ebpf_types::{EXIT_OOM_VICTIM, ExitEvent};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
use serde::Serialize;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    Exited(i32),
    /// Signal number; whether it left a core; whether the out-of-memory killer sent it.
    Signaled {
        signal: i32,
        core: bool,
        oom: bool,
    },
    /// Gone, and nobody could say how: not our child, and no kernel probe.
    Unknown,
}

impl ExitReason {
    /// From a wait status as wait(2) has it.
    pub fn from_wait_status(status: u32, oom: bool) -> Self {
        let signal = (status & 0x7f) as i32;
        if signal == 0 {
            return Self::Exited((status >> 8 & 0xff) as i32);
        }
        Self::Signaled { signal, core: status & 0x80 != 0, oom }
    }

    pub(crate) fn from_event(event: &ExitEvent) -> Self {
        Self::from_wait_status(event.wait_status, event.flags & EXIT_OOM_VICTIM != 0)
    }
}

/// Opens a process for waiting.
///
/// # Errors
/// ESRCH when there is no such process.
pub fn open(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::from(Errno::SRCH))?;
    Ok(pidfd_open(pid, PidfdFlags::NONBLOCK)?)
}

/// Waits until the process has ended, and leaves it to be reaped by somebody else.
///
/// # Errors
/// When the descriptor cannot be polled.
pub async fn ended(pidfd: OwnedFd) -> io::Result<()> {
    // SAFETY: an OwnedFd is one descriptor and stays open for as long as it is owned.
    let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }.map_err(io::Error::from)?;
    pidfd.readable().await.map(drop)
}

/// Waits until the process has ended. A child is reaped here, so nobody else may wait for it; of other
/// processes the reason is known where the kernel tells it (Linux 6.15), else it is `Unknown`: ask
/// [`crate::Witness::exit_reason`] then.
///
/// # Errors
/// When the descriptor cannot be polled, or is no pidfd.
pub async fn wait(pidfd: OwnedFd) -> io::Result<ExitReason> {
    // SAFETY: an OwnedFd is one descriptor and stays open for as long as it is owned.
    let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }.map_err(io::Error::from)?;
    let _ = pidfd.readable().await?;
    match waitid(WaitId::PidFd(pidfd.get_ref().as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
        Ok(Some(status)) => Ok(child_reason(&status)),
        Ok(None) => Ok(ExitReason::Unknown),
        Err(Errno::CHILD) => Ok(stranger_reason(&pidfd).await),
        Err(error) => Err(error.into()),
    }
}

fn child_reason(status: &rustix::process::WaitIdStatus) -> ExitReason {
    if let Some(code) = status.exit_status() {
        return ExitReason::Exited(code);
    }
    match status.terminating_signal() {
        Some(signal) => ExitReason::Signaled { signal, core: status.dumped(), oom: false },
        None => ExitReason::Unknown,
    }
}

/// The kernel keeps the wait status with the pidfd, from when the parent has reaped the process.
async fn stranger_reason(pidfd: &AsyncFd<OwnedFd>) -> ExitReason {
    for _ in 0..20 {
        match exit_info(pidfd.get_ref()) {
            ExitInfo::Known(status) => return ExitReason::from_wait_status(status, false),
            ExitInfo::Unsupported => return ExitReason::Unknown,
            ExitInfo::NotReaped => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    }
    ExitReason::Unknown
}

enum ExitInfo {
    Known(u32),
    NotReaped,
    Unsupported,
}

/// First published version of `struct pidfd_info` (linux/pidfd.h), with the exit code as its last field.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroupid: u64,
    ids: [u32; 11],
    exit_code: i32,
}
const PIDFD_INFO_EXIT: u64 = 1 << 3;
const _: () = assert!(size_of::<PidfdInfo>() == 64);

fn exit_info(pidfd: &OwnedFd) -> ExitInfo {
    /// _IOWR(0xFF, 11, struct pidfd_info)
    const PIDFD_GET_INFO: rustix::ioctl::Opcode = rustix::ioctl::opcode::read_write::<PidfdInfo>(0xff, 11);
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the opcode carries the structure's size, and the kernel writes no more than that.
    let result =
        unsafe { rustix::ioctl::ioctl(pidfd, rustix::ioctl::Updater::<PIDFD_GET_INFO, PidfdInfo>::new(&mut info)) };
    match result {
        Ok(()) if info.mask & PIDFD_INFO_EXIT != 0 => ExitInfo::Known(info.exit_code as u32),
        Ok(()) => ExitInfo::NotReaped,
        Err(_) => ExitInfo::Unsupported,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn wait_statuses() {
        assert_eq!(ExitReason::from_wait_status(3 << 8, false), ExitReason::Exited(3));
        let killed = ExitReason::Signaled { signal: 9, core: false, oom: true };
        assert_eq!(ExitReason::from_wait_status(9, true), killed);
        let dumped = ExitReason::Signaled { signal: 11, core: true, oom: false };
        assert_eq!(ExitReason::from_wait_status(0x8b, false), dumped);
    }

    #[tokio::test]
    async fn children_tell_how_they_ended() {
        let check = async |script: &str, expected: ExitReason| {
            // `wait` reaps it, so the Child is asked for its number only.
            let child =
                std::mem::ManuallyDrop::new(Command::new("sh").args(["-c", script]).spawn().expect("sh starts"));
            let pidfd = open(child.id()).expect("pidfd");
            assert_eq!(wait(pidfd).await.expect("waited"), expected, "{script}");
        };
        check("exit 0", ExitReason::Exited(0)).await;
        check("exit 7", ExitReason::Exited(7)).await;
        check("kill -9 $$", ExitReason::Signaled { signal: 9, core: false, oom: false }).await;
    }

    #[tokio::test]
    async fn a_stranger_is_seen_to_end() {
        // The grandchild is the shell's child, not ours.
        let script = "sh -c 'sleep 0.2; exit 5' & echo $!; wait";
        let mut shell =
            Command::new("sh").args(["-c", script]).stdout(std::process::Stdio::piped()).spawn().expect("sh");
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(shell.stdout.take().expect("stdout")), &mut line)
            .expect("pid");
        let pidfd = open(line.trim().parse().expect("pid")).expect("pidfd");
        let reason = wait(pidfd).await.expect("waited");
        assert!(matches!(reason, ExitReason::Exited(5) | ExitReason::Unknown), "{reason:?}");
        shell.wait().expect("reaped");
        assert!(open(u32::MAX).is_err());
    }
}
