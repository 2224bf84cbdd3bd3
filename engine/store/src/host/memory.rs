//! How much more memory this process may have: what the machine has left, and what its control groups leave it.

use std::{fs, path::Path};

/// Bytes that can be had without swapping or being killed for them; none where the kernel does not say.
pub fn available_bytes() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let machine = field(&meminfo, "MemAvailable:")?.saturating_mul(1024);
    Some(group_bytes(&groups, Path::new("/sys/fs/cgroup")).map_or(machine, |group| machine.min(group)))
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// The least that the group of a process and those above it leave. Page cache counts as used in a group and can be had
/// all the same, so it is added.
fn group_bytes(groups: &str, root: &Path) -> Option<u64> {
    let left = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
        match controllers {
            "" => walk(root, path, ["memory.max", "memory.current", "inactive_file "]),
            _ if controllers.split(',').any(|name| name == "memory") => walk(
                &root.join("memory"),
                path,
                ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "],
            ),
            _ => None,
        }
    });
    left.min()
}

fn walk(root: &Path, path: &str, [limit, used, cache]: [&str; 3]) -> Option<u64> {
    let number = |folder: &Path, name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let left = |folder: &Path| {
        // No limit is the word `max`, or a number beyond any memory.
        let limit = number(folder, limit)?;
        let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let cache = field(&stat, cache).unwrap_or(0);
        Some(limit.saturating_sub(number(folder, used)?.saturating_sub(cache)))
    };
    let own = root.join(path);
    own.ancestors().take_while(|folder| folder.starts_with(root)).filter_map(left).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_group_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |group: &str, limit: &str, used: &str, stat: &str| {
            let group = folder.path().join(group);
            fs::create_dir_all(&group).expect("made");
            fs::write(group.join("memory.max"), limit).expect("written");
            fs::write(group.join("memory.current"), used).expect("written");
            fs::write(group.join("memory.stat"), stat).expect("written");
        };
        write("a", "1000\n", "700\n", "anon 1\ninactive_file 200\n");
        write("a/b", "max\n", "650\n", "");
        assert_eq!(group_bytes("0::/a/b\n", folder.path()), Some(500));
        write("a/b", "800\n", "650\n", "");
        assert_eq!(group_bytes("5:cpu:/x\n0::/a/b\n", folder.path()), Some(150));
        assert_eq!(group_bytes("0::/none\n", folder.path()), None);
        assert!(available_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }
}
