//! Unix sockets on which a process listens. The probes see TCP alone: what is asked there is not seen, so that it is
//! said that there is such a way in, and nothing is guessed of what comes through it.

use serde::Serialize;
use std::collections::HashSet;
use std::io;
use std::path::Path;

/// In the kernel's table: the socket listens (kernel: __SO_ACCEPTCON), and it carries a stream.
const LISTENS: u32 = 0x1_0000;
const STREAM: u32 = 1;

/// A Unix socket on which connections are accepted; requests on it are not visible to the probes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct UnixListener {
    /// Its path; with `@` in front a name in the abstract namespace; empty for none.
    pub path: String,
    pub inode: u64,
}

/// Unix sockets on which process `pid` listens, by path.
///
/// # Errors
/// When the process is gone, or is another user's and we are not root.
pub fn unix_listeners(pid: u32) -> io::Result<Vec<UnixListener>> {
    let process = Path::new("/proc").join(pid.to_string());
    let mut inodes = HashSet::new();
    for descriptor in std::fs::read_dir(process.join("fd"))? {
        // One that was closed meanwhile is none.
        let Ok(target) = std::fs::read_link(descriptor?.path()) else { continue };
        inodes.extend(target.to_str().and_then(socket_inode));
    }
    // Its own network namespace's.
    let table = std::fs::read(process.join("net/unix"))?;
    let mut found: Vec<UnixListener> =
        listeners(&String::from_utf8_lossy(&table)).filter(|listener| inodes.contains(&listener.inode)).collect();
    found.sort();
    Ok(found)
}

fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Those of a table as /proc/net/unix is: `Num RefCount Protocol Flags Type St Inode Path`.
fn listeners(table: &str) -> impl Iterator<Item = UnixListener> + '_ {
    table.lines().skip(1).filter_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(3);
        let flags = u32::from_str_radix(words.next()?, 16).ok()?;
        let kind = u32::from_str_radix(words.next()?, 16).ok()?;
        let inode = words.nth(1)?.parse().ok()?;
        let path = words.collect::<Vec<_>>().join(" ");
        (flags & LISTENS != 0 && kind == STREAM).then_some(UnixListener { path, inode })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_listens_is_found_out() {
        let folder = std::env::temp_dir().join(format!("unix-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join("engine.sock");
        let before = unix_listeners(std::process::id()).expect("our own");
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("bind");
        // A connection on it is no listener.
        let stream = std::os::unix::net::UnixStream::connect(&path).expect("connect");
        let after = unix_listeners(std::process::id()).expect("our own");
        let new: Vec<&str> =
            after.iter().filter(|one| !before.contains(one)).map(|listener| listener.path.as_str()).collect();
        assert_eq!(new, [path.to_str().expect("a path")]);
        drop((listener, stream));
        std::fs::remove_dir_all(&folder).expect("removed");
        assert!(unix_listeners(u32::MAX).is_err());
    }

    #[test]
    fn only_streams_that_are_listened_on_count() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
                     0000000000000000: 00000002 00000000 00010000 0001 01 1234 @abstract name\n\
                     0000000000000000: 00000002 00000000 00010000 0005 01 1235 /run/seqpacket\n\
                     0000000000000000: 00000003 00000000 00000000 0001 03 1236 /run/connected\n\
                     0000000000000000: 00000002 00000000 00010000 0001 01 1237\n\
                     garbage\n";
        let found: Vec<UnixListener> = listeners(table).collect();
        let listener = |path: &str, inode| UnixListener { path: path.into(), inode };
        assert_eq!(found, [listener("@abstract name", 1234), listener("", 1237)]);
    }
}
