//! Which process an instance is: its pid and that pid's start time. A pid alone may by now be somebody
//! else's, so nothing is signalled or adopted before both agree.

use super::tend::Outside;
use controller_core::snapshot::{InstanceId, ModelName, Revision};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// Version of the instance file; a file of another version is cleaned up, not adopted.
const INSTANCE_FILE_VERSION: u32 = 1;

/// `engines/<instance>.json`: what a later controller needs to adopt the engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceFile {
    version: u32,
    pub instance: InstanceId,
    pub model: ModelName,
    pub revision: Revision,
    pub pid: u32,
    /// Field 22 of /proc/PID/stat: clock ticks from boot to the process's start.
    pub pid_start_ticks: u64,
    pub cores: Vec<u32>,
    pub bytes: u64,
    /// CLOCK_MONOTONIC of the spawn, ns.
    pub spawned_at_ns: u64,
    /// How an engine that is not ours is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<Outside>,
}

/// The paths of one instance in the state folder.
#[derive(Clone, Debug)]
pub struct InstancePaths {
    pub file: PathBuf,
    pub socket: PathBuf,
    pub log: PathBuf,
}

impl InstancePaths {
    /// Where an instance's files stand.
    pub fn new(state_dir: &Path, instance: &str) -> Self {
        Self::of_stem(state_dir, &file_stem(instance))
    }

    /// As [`InstancePaths::new`], of a file's name without its ending.
    pub(super) fn of_stem(state_dir: &Path, instance: &str) -> Self {
        let engines = state_dir.join("engines");
        Self {
            file: engines.join(format!("{instance}.json")),
            socket: engines.join(format!("{instance}.sock")),
            log: state_dir.join("logs").join(format!("{instance}.log")),
        }
    }

    /// Removes the instance file and the control socket; the log stays for people to read.
    pub fn remove(&self) {
        for path in [&self.file, &self.socket] {
            if let Err(error) = std::fs::remove_file(path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "a stale instance file cannot be removed");
            }
        }
    }
}

/// An identity may hold a model's name, with characters that mean something in a path. Its tail is what
/// makes it unique, so that is kept when it is long: a socket's path has room for about a hundred bytes.
fn file_stem(instance: &str) -> String {
    let safe = |byte: u8| if byte.is_ascii_alphanumeric() || b"._-".contains(&byte) { byte as char } else { '_' };
    let tail = &instance.as_bytes()[instance.len().saturating_sub(STEM_LIMIT)..];
    let stem: String = tail.iter().map(|byte| safe(*byte)).collect();
    // A leading dot would hide the file.
    if stem.starts_with('.') { stem.replacen('.', "_", 1) } else { stem }
}

/// Longest file name of an instance, without its ending.
pub(crate) const STEM_LIMIT: usize = 40;

impl InstanceFile {
    /// An instance file of a process that was just spawned.
    pub fn new(
        instance: &str,
        model: &str,
        revision: &str,
        process: (u32, u64),
        cores: Vec<u32>,
        bytes: u64,
        spawned_at_ns: u64,
    ) -> Self {
        let (pid, pid_start_ticks) = process;
        Self {
            version: INSTANCE_FILE_VERSION,
            instance: instance.to_owned(),
            model: model.to_owned(),
            revision: revision.to_owned(),
            pid,
            pid_start_ticks,
            cores,
            bytes,
            spawned_at_ns,
            outside: None,
        }
    }

    /// Writes the file whole or not at all: a reader never sees half of it.
    ///
    /// # Errors
    /// When the state folder cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let partial = path.with_extension("json.partial");
        std::fs::write(&partial, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(&partial, path)
    }

    /// Reads a file of this version.
    ///
    /// # Errors
    /// When it cannot be read, is not one, or has another version.
    pub fn read(path: &Path) -> io::Result<Self> {
        let file: Self = serde_json::from_slice(&std::fs::read(path)?)?;
        if file.version != INSTANCE_FILE_VERSION {
            return Err(io::Error::other(format!("instance file of version {}", file.version)));
        }
        Ok(file)
    }
}

/// A process that cannot be mistaken for another: the descriptor stays bound to it even when its pid is
/// given to somebody else.
#[derive(Debug)]
pub struct ProcessHandle {
    pub pid: u32,
    pub start_ticks: u64,
    pub fd: OwnedFd,
}

impl ProcessHandle {
    /// Takes hold of a live process.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn open(pid: u32) -> io::Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{pid} is no pid")))?;
        // The descriptor first, the start time after: whoever has that pid now is the one we hold.
        let fd = pidfd_open(raw, PidfdFlags::NONBLOCK)?;
        let start_ticks = start_ticks(pid)?;
        Ok(Self { pid, start_ticks, fd })
    }

    /// Takes hold of the process that an instance file names; none when it has ended, whoever has its pid now.
    pub fn open_same(pid: u32, start_ticks: u64) -> Option<Self> {
        Self::open(pid).ok().filter(|process| process.start_ticks == start_ticks)
    }

    /// Whether it has ended, reaped by its parent or not.
    pub fn has_ended(&self) -> bool {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)) else { return true };
        let is_zombie = stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']));
        is_zombie || parse_start_ticks(&stat) != Some(self.start_ticks)
    }

    /// Sends a signal to the whole process group that it leads; to one that has nobody left in it goes nowhere.
    pub fn signal_group(&self, signal: Signal) {
        if let Some(group) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, signal);
        }
    }

    /// Sends a signal; one to a process that has ended goes nowhere.
    pub fn signal(&self, signal: Signal) {
        if let Err(error) = pidfd_send_signal(&self.fd, signal)
            && error != rustix::io::Errno::SRCH
        {
            tracing::warn!(pid = self.pid, %error, "a signal could not be sent to an engine");
        }
    }
}

/// Start time of a process, clock ticks since boot.
///
/// # Errors
/// When there is no such process.
pub fn start_ticks(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_ticks(&stat).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat cannot be read: {stat:?}")))
}

/// The command name (field 2) may hold spaces and parentheses, so fields are counted from the last `)`.
fn parse_start_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    // Field 3 follows the name; field 22 is the 20th from there.
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_found_behind_hostile_names() {
        let check = |name: &str| {
            let stat = format!("7 ({name}) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 99 1");
            assert_eq!(parse_start_ticks(&stat), Some(4242), "{name}");
        };
        check("foreshock");
        check("a b) S (c");
        check("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22");
        assert_eq!(parse_start_ticks("garbage"), None);
        assert_eq!(parse_start_ticks("7 (short) S 1"), None);
    }

    #[test]
    fn a_reused_pid_is_not_taken_for_the_old_process() {
        let me = std::process::id();
        let ticks = start_ticks(me).unwrap();
        assert!(ProcessHandle::open_same(me, ticks).is_some());
        assert!(ProcessHandle::open_same(me, ticks + 1).is_none());
        assert!(ProcessHandle::open_same(u32::MAX, ticks).is_none());
    }

    #[test]
    fn a_file_of_another_version_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("i.json");
        let mut file = InstanceFile::new("i", "m", "r", (1, 2), vec![0], 3, 4);
        file.write(&path).unwrap();
        assert_eq!(InstanceFile::read(&path).unwrap(), file);
        file.version += 1;
        file.write(&path).unwrap();
        assert!(InstanceFile::read(&path).is_err());
    }
}
