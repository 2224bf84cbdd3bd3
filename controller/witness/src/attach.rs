//! Loads the kernel programs, told what this kernel's structures look like, and finds where they belong.

use crate::btf::Btf;
use crate::permission;
use crate::programs::{self, Programs};
use crate::witness::{ProbeError, WitnessOptions};
use aya::programs::ProgramError;
use aya::{Ebpf, EbpfError, EbpfLoader};
use serde::Serialize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The committed kernel programs; `cargo xtask probes build` makes them.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../ebpf/probes.bpf.o");

/// One probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProbeStatus {
    pub probe: &'static str,
    pub attached: bool,
    /// Why it is not attached; empty when it is.
    pub reason: String,
    /// What is not known without it.
    pub loses: &'static str,
}

/// Kernel structure members that the programs read: name of the constant, structure, and paths, of which later ones
/// are from other kernel versions. What cannot be found stays unknown to the programs.
const OFFSETS: [(&str, &str, &[&str]); 28] = [
    ("OFF_SOCK_FAMILY", "sock", &["__sk_common.skc_family"]),
    ("OFF_SOCK_STATE", "sock", &["__sk_common.skc_state"]),
    ("OFF_SOCK_NET", "sock", &["__sk_common.skc_net.net"]),
    ("OFF_SOCK_DPORT", "sock", &["__sk_common.skc_dport"]),
    // Not skc_num, which is cleared before the change to CLOSE is told.
    ("OFF_SOCK_SPORT", "inet_sock", &["inet_sport"]),
    ("OFF_SOCK_DADDR", "sock", &["__sk_common.skc_daddr"]),
    ("OFF_SOCK_SADDR", "sock", &["__sk_common.skc_rcv_saddr"]),
    ("OFF_SOCK_DADDR6", "sock", &["__sk_common.skc_v6_daddr"]),
    ("OFF_SOCK_SADDR6", "sock", &["__sk_common.skc_v6_rcv_saddr"]),
    ("OFF_SOCK_ACK_BACKLOG", "sock", &["sk_ack_backlog"]),
    ("OFF_SOCK_MAX_ACK_BACKLOG", "sock", &["sk_max_ack_backlog"]),
    ("OFF_NET_INUM", "net", &["ns.inum"]),
    ("OFF_TASK_TGID", "task_struct", &["tgid"]),
    ("OFF_TASK_EXIT_CODE", "task_struct", &["exit_code"]),
    ("OFF_TASK_SIGNAL", "task_struct", &["signal"]),
    ("OFF_TASK_PID", "task_struct", &["pid"]),
    // Before Linux 5.14 a longer number with the same lower half.
    ("OFF_TASK_STATE", "task_struct", &["__state", "state"]),
    ("OFF_TASK_START_TIME", "task_struct", &["start_time"]),
    ("OFF_TASK_ON_CPU", "task_struct", &["se.sum_exec_runtime"]),
    ("OFF_TASK_RUN_QUEUE", "task_struct", &["sched_info.run_delay"]),
    ("OFF_SIGNAL_LIVE", "signal_struct", &["live"]),
    ("OFF_SIGNAL_FLAGS", "signal_struct", &["flags"]),
    ("OFF_SIGNAL_GROUP_EXIT_CODE", "signal_struct", &["group_exit_code"]),
    ("OFF_SIGNAL_OOM_MM", "signal_struct", &["oom_mm"]),
    ("OFF_REQUEST_BIO", "request", &["bio"]),
    ("OFF_BIO_NEXT", "bio", &["bi_next"]),
    ("OFF_BIO_FLAGS", "bio", &["bi_opf"]),
    ("OFF_BIO_BYTES", "bio", &["bi_iter.bi_size"]),
];
/// As `UNKNOWN` in the programs.
const UNKNOWN_OFFSET: u32 = u32::MAX;

/// What kernel versions tell at a tracepoint: name of the constant, which is 1 where the tracepoint has so many arguments.
const SHAPES: [(&str, &str, usize); 3] = [
    ("SWITCH_TELLS_STATE", "sched_switch", 4),
    ("BLOCK_QUEUE_TELLS_QUEUE", "block_bio_queue", 2),
    ("RETRANSMIT_TELLS_ERROR", "tcp_retransmit_skb", 3),
];

/// Loaded programs, or the reason in each status.
pub(crate) enum Attached {
    Programs(Box<Programs>),
    Nothing(Vec<ProbeStatus>),
}

/// Loads and attaches what this kernel and these permissions allow.
///
/// # Errors
/// [`ProbeError::Object`] when the embedded object itself is unusable; missing permission is no error.
pub(crate) fn attach(options: &WitnessOptions) -> Result<Attached, ProbeError> {
    let object = match &options.object {
        Some(path) => {
            std::fs::read(path).map_err(|error| ProbeError::Object(format!("{}: {error}", path.display())))?
        }
        None => OBJECT.to_vec(),
    };
    permission::raise_memlock_limit();
    let btf = Btf::read(&options.btf);
    let ebpf = match load(&object, btf.as_ref(), options) {
        Ok(ebpf) => ebpf,
        Err(EbpfError::ParseError(error)) => return Err(ProbeError::Object(error.to_string())),
        Err(error) => {
            return Ok(Attached::Nothing(programs::nothing(&permission::explain(&chain(&error)))));
        }
    };
    let cgroup = options.cgroup.clone().map_or_else(find_cgroup, Ok);
    let kernel_btf = aya::Btf::parse_file(&options.btf, aya::Endianness::default())
        .map_err(|_| "this kernel has no BTF (CONFIG_DEBUG_INFO_BTF)".to_owned());
    Ok(Attached::Programs(Box::new(Programs::attach(ebpf, cgroup, &kernel_btf))))
}

fn load(object: &[u8], btf: Option<&Btf>, options: &WitnessOptions) -> Result<Ebpf, EbpfError> {
    let offsets = OFFSETS.map(|(_, structure, paths)| {
        let offset = |path: &&str| btf.and_then(|btf| btf.offset(structure, path));
        paths.iter().find_map(offset).unwrap_or(UNKNOWN_OFFSET)
    });
    let shapes = SHAPES.map(|(_, tracepoint, arguments)| {
        u32::from(btf.and_then(|btf| btf.tracepoint_arguments(tracepoint)) == Some(arguments))
    });
    // Without the offsets there is no namespace to compare, and all of them count.
    let comparable = OFFSETS
        .iter()
        .zip(offsets)
        .all(|((name, _, _), offset)| !matches!(*name, "OFF_SOCK_NET" | "OFF_NET_INUM") || offset != UNKNOWN_OFFSET);
    let own = std::fs::metadata("/proc/self/ns/net").map_or(0, |namespace| namespace.ino());
    let namespace = if options.all_namespaces || !comparable { 0 } else { u32::try_from(own).unwrap_or(0) };
    let mut loader = EbpfLoader::new();
    for ((name, _, _), offset) in OFFSETS.iter().zip(&offsets) {
        loader.override_global(name, offset, true);
    }
    for ((name, _, _), shape) in SHAPES.iter().zip(&shapes) {
        loader.override_global(name, shape, true);
    }
    loader.override_global("NET_NAMESPACE", &namespace, true);
    loader.map_max_entries("EVENTS", options.ring_bytes.next_power_of_two().max(4096));
    loader.load(object)
}

/// Why the kernel refused a program.
pub(crate) fn refused(error: &ProgramError) -> String {
    permission::explain(&chain(error))
}

/// An error with its causes, and of a verifier's log only the last line that says something.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = first_and_last_line(&error.to_string());
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = first_and_last_line(&error.to_string());
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

fn first_and_last_line(text: &str) -> String {
    const STATISTICS: [&str; 3] = ["processed ", "stack depth ", "verification time "];
    let mut lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !STATISTICS.iter().any(|statistics| line.starts_with(statistics)));
    let first = lines.next().unwrap_or_default();
    match lines.next_back() {
        Some(last) => format!("{first} ... {last}"),
        None => first.to_owned(),
    }
}

/// Where cgroup v2 is mounted.
fn find_cgroup() -> Result<PathBuf, String> {
    let mounts = std::fs::read_to_string("/proc/mounts").map_err(|error| format!("/proc/mounts: {error}"))?;
    cgroup2_mount(&mounts).ok_or_else(|| "cgroup v2 is not mounted (mount -t cgroup2 none /sys/fs/cgroup)".to_owned())
}

fn cgroup2_mount(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| Path::new(&path.replace("\\040", " ")).to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_cgroup_v2_among_mounts() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(cgroup2_mount(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(cgroup2_mount("none /my\\040cgroup cgroup2 rw 0 0"), Some("/my cgroup".into()));
        assert_eq!(cgroup2_mount("proc /proc proc rw 0 0\n\ngarbage"), None);
    }

    #[test]
    fn a_verifier_log_is_cut_to_what_says_something() {
        assert_eq!(first_and_last_line("a\n1: r0\nbad access\nprocessed 5 insns\n"), "a ... bad access");
        assert_eq!(first_and_last_line("one"), "one");
    }
}
