//! Why the kernel refused: capabilities, version, lockdown.

use rustix::process::{Resource, Rlimit, setrlimit};

/// Capabilities and their numbers (linux/capability.h).
const NEEDED: [(&str, u32); 3] = [("CAP_BPF", 39), ("CAP_PERFMON", 38), ("CAP_NET_ADMIN", 12)];
const CAP_SYS_ADMIN: u32 = 21;
/// Oldest kernel with all that the programs use: ring buffers and bpf_skc_to_tcp_sock.
const OLDEST_KERNEL: (u32, u32) = (5, 9);

/// Adds to the kernel's words what is known to be missing.
pub(crate) fn explain(error: &str) -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let lockdown = std::fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    reason(error, &release, &status, &lockdown)
}

fn reason(error: &str, release: &str, status: &str, lockdown: &str) -> String {
    if let Some(version) = version(release).filter(|&version| version < OLDEST_KERNEL) {
        return format!("kernel {}.{} is older than 5.9", version.0, version.1);
    }
    let missing = missing(status);
    if !missing.is_empty() {
        return format!("missing {} (run as root, or grant them)", missing.join(", "));
    }
    if lockdown.contains("[confidentiality]") {
        return format!("kernel lockdown (confidentiality) forbids it: {error}");
    }
    error.to_owned()
}

/// Needed capabilities that are not in effect; CAP_SYS_ADMIN stands for all of them.
fn missing(status: &str) -> Vec<&'static str> {
    let Some(effective) = status.lines().find_map(|line| line.strip_prefix("CapEff:")) else { return Vec::new() };
    let Ok(effective) = u64::from_str_radix(effective.trim(), 16) else { return Vec::new() };
    let has = |bit: u32| effective >> bit & 1 == 1;
    NEEDED.iter().filter(|(_, bit)| !has(*bit) && !has(CAP_SYS_ADMIN)).map(|&(name, _)| name).collect()
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-']).map(|part| part.trim().parse::<u32>());
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Before Linux 5.11 maps count as locked memory. Where the limit may not be raised, loading says so itself.
pub(crate) fn raise_memlock_limit() {
    let _ = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
}

#[cfg(test)]
mod tests {
    use super::reason;

    #[test]
    fn the_reason_names_what_is_missing() {
        let table = [
            (
                "EPERM",
                "6.1.0-13-amd64\n",
                "CapEff:\t0000000000000000\n",
                "",
                "missing CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN (run as root, or grant them)",
            ),
            ("EPERM", "6.1.0", "CapEff:\t000000c000000000\n", "", "missing CAP_NET_ADMIN (run as root, or grant them)"),
            ("EINVAL", "5.4.0-42-generic", "CapEff:\t000001ffffffffff", "", "kernel 5.4 is older than 5.9"),
            (
                "EPERM",
                "6.8.0",
                "CapEff:\t000001ffffffffff",
                "none integrity [confidentiality]",
                "kernel lockdown (confidentiality) forbids it: EPERM",
            ),
            ("bad map", "6.8.0", "CapEff:\t000001ffffffffff", "[none] integrity", "bad map"),
            ("bad map", "", "", "", "bad map"),
        ];
        for (error, release, status, lockdown, expected) in table {
            assert_eq!(reason(error, release, status, lockdown), expected);
        }
    }
}
