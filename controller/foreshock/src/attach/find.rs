//! Which ports a process listens on, and whether anybody listens on a port: from /proc, in the process's own network
//! namespace.

use crate::config::InputError;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::Path;

/// State of a listening socket in /proc/net/tcp.
const LISTEN: &str = "0A";

/// A port to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub port: u16,
    /// Under which it is shown.
    pub name: String,
    /// Whose port it is; None where only the port was named.
    pub pid: Option<u32>,
    /// Whether anybody listens there now.
    pub listening: bool,
    /// In another network namespace than ours.
    pub foreign_namespace: bool,
}

/// The ports of these processes, and these ports. A port is watched once.
///
/// # Errors
/// A process that is not there, may not be looked at, or listens on no port.
pub fn targets(pids: &[u32], ports: &[u16], name: Option<&str>) -> Result<Vec<Target>> {
    let mut found: BTreeMap<u16, Target> = BTreeMap::new();
    for pid in pids {
        for target in of_process(*pid)? {
            found.entry(target.port).or_insert(target);
        }
    }
    let here = listeners("self")?;
    for port in ports {
        let (port, listening) = (*port, here.values().any(|listening| listening == port));
        let name = format!("port {port}");
        found.entry(port).or_insert(Target { port, name, pid: None, listening, foreign_namespace: false });
    }
    let mut targets: Vec<Target> = found.into_values().collect();
    let many = targets.len() > 1;
    for target in &mut targets {
        let ambiguous = many && (name.is_some() || target.pid.is_some());
        target.name = name.map_or_else(|| target.name.clone(), str::to_owned);
        if ambiguous {
            target.name = format!("{}:{}", target.name, target.port);
        }
    }
    Ok(targets)
}

fn of_process(pid: u32) -> Result<Vec<Target>> {
    let process = format!("/proc/{pid}");
    if !Path::new(&process).exists() {
        return Err(InputError(format!("there is no process {pid}")).into());
    }
    let name = std::fs::read_to_string(format!("{process}/comm")).unwrap_or_default().trim().to_owned();
    let sockets = sockets(pid)?;
    let listeners = listeners(&pid.to_string())?;
    let ports: BTreeSet<u16> = sockets.iter().filter_map(|inode| listeners.get(inode)).copied().collect();
    if ports.is_empty() {
        let unix = controller_witness::unix_listeners(pid).unwrap_or_default();
        let unix = unix.first().map_or_else(String::new, |socket| {
            format!(", only on Unix sockets such as {}, whose bytes no probe sees", socket.path)
        });
        let message =
            format!("process {pid} ({name}) listens on no TCP port{unix}; name the process that does, or --port");
        return Err(InputError(message).into());
    }
    let namespace = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/net")).ok();
    let foreign_namespace = namespace(&pid.to_string()) != namespace("self");
    let target = |port| Target { port, name: name.clone(), pid: Some(pid), listening: true, foreign_namespace };
    Ok(ports.into_iter().map(target).collect())
}

/// Inodes of the sockets that a process has open.
fn sockets(pid: u32) -> Result<BTreeSet<u64>> {
    let folder = format!("/proc/{pid}/fd");
    let entries = std::fs::read_dir(&folder).map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => anyhow::anyhow!(
            "cannot look at the open files of process {pid}, which is another user's: run as root or with \
             CAP_SYS_PTRACE, or name its port with --port"
        ),
        ErrorKind::NotFound => InputError(format!("there is no process {pid}")).into(),
        _ => anyhow::Error::from(error).context(format!("cannot read {folder}")),
    })?;
    let links = entries.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    Ok(links.filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()).collect())
}

/// Ports by the inode of their listening socket, as a process sees them.
fn listeners(process: &str) -> Result<BTreeMap<u64, u16>> {
    let path = format!("/proc/{process}/net/tcp");
    let mut table = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // There is none where IPv6 is off.
    table.push_str(&std::fs::read_to_string(format!("{path}6")).unwrap_or_default());
    Ok(table.lines().filter_map(listener).collect())
}

/// One line of /proc/net/tcp: (inode, port) of a listening socket.
fn listener(line: &str) -> Option<(u64, u16)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
    if *state != LISTEN {
        return None;
    }
    let port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
    Some((inode.parse().ok()?, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn listening_sockets_of_the_table() {
        let check = |line, want| assert_eq!(listener(line), want, "{line}");
        check("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode", None);
        check(
            "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0",
            Some((4711, 8080)),
        );
        check(
            "   1: 00000000000000000000000001000000:1F91 00000000000000000000000000000000:0000 0A 00000000:00000000 \
             00:00000000 00000000     0        0 12 1 0 100 0",
            Some((12, 8081)),
        );
        check("   2: 0100007F:1F90 0100007F:AB12 01 00000000:00000000 00:00000000 00000000 0 0 5 1 0", None);
        check("   3: broken", None);
    }

    #[test]
    fn our_own_ports_are_found() {
        let (one, other) = (TcpListener::bind("127.0.0.1:0").expect("a port"), TcpListener::bind("[::1]:0"));
        let port = one.local_addr().expect("an address").port();
        let pid = std::process::id();
        let found = targets(&[pid], &[port], None).expect("targets");
        let mine = found.iter().find(|target| target.port == port).expect("the port");
        assert_eq!((mine.pid, mine.listening, mine.foreign_namespace), (Some(pid), true, false));
        if let Ok(other) = other {
            let port = other.local_addr().expect("an address").port();
            assert!(found.iter().any(|target| target.port == port), "{found:?}");
        }
        let named = targets(&[], &[port], Some("mine")).expect("targets");
        assert_eq!((named.len(), named[0].name.as_str(), named[0].listening), (1, "mine", true));
        drop(one);
        let silent = targets(&[], &[port, port], None).expect("targets");
        assert_eq!((silent.len(), silent[0].name.clone(), silent[0].listening), (1, format!("port {port}"), false));
    }

    #[test]
    fn what_cannot_be_watched_is_named() {
        let error = targets(&[u32::MAX], &[], None).expect_err("no such process");
        assert_eq!(error.to_string(), format!("there is no process {}", u32::MAX));
    }
}
