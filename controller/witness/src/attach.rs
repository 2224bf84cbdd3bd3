//! Loads the kernel programs and attaches each by itself: where one is refused the others go on, and the
//! status list says what is missing, why, and what is lost with it.

use crate::btf::Btf;
use crate::permission;
use crate::witness::{ProbeError, WitnessOptions};
use aya::programs::{BtfTracePoint, CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, ProgramError};
use aya::{Ebpf, EbpfError, EbpfLoader};
use serde::Serialize;
use std::fs::File;
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

/// Each probe, in the order in which they are attached.
const PROBES: [(&str, &str); 9] = [
    ("http_request", "SYN and request counts, request start times"),
    ("http_response", "first byte, first token and last byte times as the kernel sees them"),
    ("connection_state", "connection counts, accept-queue depth, ends of cut connections"),
    ("accepted_ipv4", "how long connections over IPv4 wait to be accepted"),
    ("accepted_ipv6", "how long connections over IPv6 wait to be accepted"),
    ("segment_resent", "retransmissions"),
    ("reset_received", "counts of resets that clients sent"),
    ("reset_sent", "counts of resets that servers sent"),
    ("process_exit", "exit reasons of adopted engines (their exits are still seen)"),
];

/// Kernel structure members that the programs read: name of the constant, structure, path, and (from
/// other kernel versions) another path. What cannot be found stays unknown to the programs.
const OFFSETS: [(&str, &str, &str); 19] = [
    ("OFF_SOCK_FAMILY", "sock", "__sk_common.skc_family"),
    ("OFF_SOCK_STATE", "sock", "__sk_common.skc_state"),
    ("OFF_SOCK_NET", "sock", "__sk_common.skc_net.net"),
    ("OFF_SOCK_DPORT", "sock", "__sk_common.skc_dport"),
    // Not skc_num, which is cleared before the change to CLOSE is told.
    ("OFF_SOCK_SPORT", "inet_sock", "inet_sport"),
    ("OFF_SOCK_DADDR", "sock", "__sk_common.skc_daddr"),
    ("OFF_SOCK_SADDR", "sock", "__sk_common.skc_rcv_saddr"),
    ("OFF_SOCK_DADDR6", "sock", "__sk_common.skc_v6_daddr"),
    ("OFF_SOCK_SADDR6", "sock", "__sk_common.skc_v6_rcv_saddr"),
    ("OFF_SOCK_ACK_BACKLOG", "sock", "sk_ack_backlog"),
    ("OFF_SOCK_MAX_ACK_BACKLOG", "sock", "sk_max_ack_backlog"),
    ("OFF_NET_INUM", "net", "ns.inum"),
    ("OFF_TASK_TGID", "task_struct", "tgid"),
    ("OFF_TASK_EXIT_CODE", "task_struct", "exit_code"),
    ("OFF_TASK_SIGNAL", "task_struct", "signal"),
    ("OFF_SIGNAL_LIVE", "signal_struct", "live"),
    ("OFF_SIGNAL_FLAGS", "signal_struct", "flags"),
    ("OFF_SIGNAL_GROUP_EXIT_CODE", "signal_struct", "group_exit_code"),
    ("OFF_SIGNAL_OOM_MM", "signal_struct", "oom_mm"),
];
/// As `UNKNOWN` in the programs.
const UNKNOWN_OFFSET: u32 = u32::MAX;
/// Inode of the first pid namespace (kernel: PROC_PID_INIT_INO).
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// What kernel versions tell at a tracepoint: name of the constant, which is 1 where the tracepoint has so many arguments.
const SHAPES: [(&str, &str, usize); 1] = [("RETRANSMIT_TELLS_ERROR", "tcp_retransmit_skb", 3)];

/// Loaded programs, or None with the reason in each status.
pub(crate) struct Attached {
    pub ebpf: Option<Ebpf>,
    pub probes: Vec<ProbeStatus>,
}

/// All probes not attached, for one reason.
pub(crate) fn nothing(reason: &str) -> Vec<ProbeStatus> {
    PROBES.iter().map(|&(probe, loses)| status(probe, loses, Err(reason.to_owned()))).collect()
}

fn status(probe: &'static str, loses: &'static str, result: Result<(), String>) -> ProbeStatus {
    ProbeStatus { probe, attached: result.is_ok(), reason: result.err().unwrap_or_default(), loses }
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
    let mut ebpf = match load(&object, btf.as_ref(), options) {
        Ok(ebpf) => ebpf,
        Err(EbpfError::ParseError(error)) => return Err(ProbeError::Object(error.to_string())),
        Err(error) => {
            return Ok(Attached { ebpf: None, probes: nothing(&permission::explain(&chain(&error))) });
        }
    };
    let cgroup = options.cgroup.clone().map_or_else(find_cgroup, Ok);
    let kernel_btf = aya::Btf::parse_file(&options.btf, aya::Endianness::default())
        .map_err(|_| "this kernel has no BTF (CONFIG_DEBUG_INFO_BTF)".to_owned());
    let results = [
        cgroup_probe(&mut ebpf, "http_request", CgroupSkbAttachType::Ingress, &cgroup),
        cgroup_probe(&mut ebpf, "http_response", CgroupSkbAttachType::Egress, &cgroup),
        btf_probe(&mut ebpf, "connection_state", "inet_sock_set_state", &kernel_btf),
        address_probe(&mut ebpf, "accepted_ipv4", &cgroup),
        address_probe(&mut ebpf, "accepted_ipv6", &cgroup),
        btf_probe(&mut ebpf, "segment_resent", "tcp_retransmit_skb", &kernel_btf),
        btf_probe(&mut ebpf, "reset_received", "tcp_receive_reset", &kernel_btf),
        btf_probe(&mut ebpf, "reset_sent", "tcp_send_reset", &kernel_btf),
        in_first_pid_namespace().and_then(|()| btf_probe(&mut ebpf, "process_exit", "sched_process_exit", &kernel_btf)),
    ];
    let probes = PROBES.iter().zip(results).map(|(&(probe, loses), result)| status(probe, loses, result)).collect();
    Ok(Attached { ebpf: Some(ebpf), probes })
}

fn load(object: &[u8], btf: Option<&Btf>, options: &WitnessOptions) -> Result<Ebpf, EbpfError> {
    let offsets =
        OFFSETS.map(|(_, structure, path)| btf.and_then(|btf| btf.offset(structure, path)).unwrap_or(UNKNOWN_OFFSET));
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

fn cgroup_probe(
    ebpf: &mut Ebpf,
    name: &str,
    direction: CgroupSkbAttachType,
    cgroup: &Result<PathBuf, String>,
) -> Result<(), String> {
    let path = cgroup.as_ref().map_err(Clone::clone)?;
    let folder = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let program: &mut CgroupSkb = program(ebpf, name)?;
    program.load().map_err(|error| refused(&error))?;
    // As a link it stands beside whatever else is attached there.
    program.attach(folder, direction, CgroupAttachMode::Single).map_err(|error| refused(&error))?;
    Ok(())
}

fn address_probe(ebpf: &mut Ebpf, name: &str, cgroup: &Result<PathBuf, String>) -> Result<(), String> {
    let path = cgroup.as_ref().map_err(Clone::clone)?;
    let folder = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let program: &mut CgroupSockAddr = program(ebpf, name)?;
    program.load().map_err(|error| refused(&error))?;
    program.attach(folder, CgroupAttachMode::Single).map_err(|error| refused(&error))?;
    Ok(())
}

fn btf_probe(ebpf: &mut Ebpf, name: &str, tracepoint: &str, btf: &Result<aya::Btf, String>) -> Result<(), String> {
    let btf = btf.as_ref().map_err(Clone::clone)?;
    let program: &mut BtfTracePoint = program(ebpf, name)?;
    program.load(tracepoint, btf).map_err(|error| refused(&error))?;
    program.attach().map_err(|error| refused(&error))?;
    Ok(())
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, String>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or_else(|| format!("the object has no program {name}"))?;
    program.try_into().map_err(|error: ProgramError| error.to_string())
}

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

/// Kernel events name processes as the first pid namespace does.
fn in_first_pid_namespace() -> Result<(), String> {
    match std::fs::metadata("/proc/self/ns/pid") {
        Ok(namespace) if namespace.ino() == FIRST_PID_NAMESPACE => Ok(()),
        Ok(_) => Err("runs in a pid namespace of its own (share the host's)".to_owned()),
        Err(error) => Err(format!("/proc/self/ns/pid: {error}")),
    }
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
