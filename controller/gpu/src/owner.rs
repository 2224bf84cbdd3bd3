//! Whose a process is: an engine that starts workers of its own is found by their ancestors.

use std::collections::BTreeMap;

/// The engine instance that a process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub instance: String,
    pub model: String,
}

/// The instances of this node, by process id. Called once per reading; must not wait.
pub type Owners = Box<dyn Fn() -> BTreeMap<u32, Owner> + Send>;

/// Generations looked at: engine, launcher, worker, and some more.
const GENERATIONS: usize = 8;

/// The instance that `pid` is, or descends from.
pub(crate) fn owner_of(
    pid: u32,
    owners: &BTreeMap<u32, Owner>,
    parent_of: impl Fn(u32) -> Option<u32>,
) -> Option<&Owner> {
    if owners.is_empty() {
        return None;
    }
    let line = std::iter::successors(Some(pid), |&pid| parent_of(pid)).take(GENERATIONS);
    line.filter(|&pid| pid > 1).find_map(|pid| owners.get(&pid))
}

/// The parent as /proc tells it.
pub(crate) fn parent(pid: u32) -> Option<u32> {
    // The name stands in parentheses and may hold any of them itself.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_belong_to_the_engine_that_started_them() {
        let owner = |instance: &str| Owner { instance: instance.to_owned(), model: "m".to_owned() };
        let owners = BTreeMap::from([(10, owner("a")), (20, owner("b"))]);
        let parent_of = |pid| [(12, 11), (11, 10), (10, 1), (20, 10), (40, 40)].into_iter().find(|(p, _)| *p == pid);
        let check = |pid, want: Option<&str>| {
            let found = owner_of(pid, &owners, |pid| parent_of(pid).map(|(_, parent)| parent));
            assert_eq!(found.map(|owner| owner.instance.as_str()), want, "{pid}");
        };
        check(10, Some("a"));
        check(12, Some("a"));
        // The nearest one, not the eldest.
        check(20, Some("b"));
        check(1, None);
        check(99, None);
        // A process that is its own parent ends the search.
        check(40, None);
    }

    #[test]
    fn proc_tells_the_parent() {
        assert_eq!(parent(std::process::id()), Some(std::os::unix::process::parent_id()));
        assert_eq!(parent(u32::MAX), None);
    }
}
