//! What /proc says of a process and of the node: needs no privilege and no probe.

use serde::Serialize;
use std::fs::read_to_string;

/// One thread's totals, ns, as the scheduler keeps them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Thread {
    pub number: u32,
    pub on_cpu_ns: u64,
    pub run_queue_ns: u64,
    /// Whether it has a CPU or wants one.
    pub is_runnable: bool,
}

/// The living threads of a process; none when it is gone.
pub(crate) fn threads(pid: u32) -> Option<Vec<Thread>> {
    let folder = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let numbers = folder.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    Some(numbers.filter_map(|number| thread(pid, number)).collect())
}

fn thread(pid: u32, number: u32) -> Option<Thread> {
    let read = |file: &str| read_to_string(format!("/proc/{pid}/task/{number}/{file}")).ok();
    let (on_cpu_ns, run_queue_ns) = parse_schedstat(&read("schedstat")?)?;
    let is_runnable = stat_fields(&read("stat")?).next()? == "R";
    Some(Thread { number, on_cpu_ns, run_queue_ns, is_runnable })
}

/// Page faults of a process that had to wait for a disk.
pub(crate) fn major_faults(pid: u32) -> Option<u64> {
    stat_fields(&read_to_string(format!("/proc/{pid}/stat")).ok()?).nth(9)?.parse().ok()
}

/// How often the process's cgroup had used up its CPU quota; none where that is not known.
pub(crate) fn throttled(pid: u32) -> Option<u64> {
    let groups = read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let mounts = read_to_string("/proc/mounts").ok()?;
    let stat = cgroup_folders(&groups, &mounts).find_map(|folder| read_to_string(format!("{folder}/cpu.stat")).ok())?;
    stat.lines().find_map(|line| line.strip_prefix("nr_throttled ")?.trim().parse().ok())
}

/// The folders of a process's cgroup that may hold its CPU statistics: of the `cpu` controller (v1), else unified.
fn cgroup_folders<'a>(groups: &'a str, mounts: &'a str) -> impl Iterator<Item = String> + use<'a> {
    let path = |unified: bool| {
        groups.lines().find_map(move |line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            let fits = if unified { controllers.is_empty() } else { controllers.split(',').any(|one| one == "cpu") };
            fits.then_some(path.trim_end_matches('/'))
        })
    };
    mounts.lines().filter_map(move |line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, folder, kind, options, ..] = fields[..] else { return None };
        let unified = kind == "cgroup2";
        let holds = unified || (kind == "cgroup" && options.split(',').any(|option| option == "cpu"));
        Some(format!("{folder}{}", path(unified).filter(|_| holds)?))
    })
}

/// On-CPU time and run-queue time, ns.
fn parse_schedstat(text: &str) -> Option<(u64, u64)> {
    let mut fields = text.split_ascii_whitespace().map(str::parse);
    Some((fields.next()?.ok()?, fields.next()?.ok()?))
}

/// The fields of a stat file from the state on; the name before it may hold anything.
fn stat_fields(text: &str) -> impl Iterator<Item = &str> {
    text.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace()
}

/// Time lost for want of a resource, over the whole node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Pressure {
    /// Share of the last 10 s, from 0 to 1, in which some task waited for it, and in which all did.
    pub some_ratio: f64,
    pub full_ratio: f64,
    /// The same as totals, microseconds.
    pub some_us_total: u64,
    pub full_us_total: u64,
}

/// Pressure on cpu, memory and io, by name; none of what the kernel does not tell.
pub fn pressure() -> Vec<(&'static str, Pressure)> {
    let read = |resource| Some((resource, parse_pressure(&read_to_string(format!("/proc/pressure/{resource}")).ok()?)));
    ["cpu", "memory", "io"].into_iter().filter_map(read).collect()
}

fn parse_pressure(text: &str) -> Pressure {
    let figure = |kind: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        line.split_ascii_whitespace().find_map(|field| field.strip_prefix(name))
    };
    let ratio = |kind| figure(kind, "avg10=").and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0) / 100.0;
    let total = |kind| figure(kind, "total=").and_then(|text| text.parse().ok()).unwrap_or(0);
    Pressure {
        some_ratio: ratio("some "),
        full_ratio: ratio("full "),
        some_us_total: total("some "),
        full_us_total: total("full "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_schedstat("123 45 6\n"), Some((123, 45)));
        assert_eq!(parse_schedstat("123"), None);
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194304 100 0 13 0 5 6 0 0 20 0 1\n";
        assert_eq!(stat_fields(stat).next(), Some("S"));
        assert_eq!(stat_fields(stat).nth(9), Some("13"));
        assert_eq!(stat_fields("garbage").next(), None);
        let text =
            "some avg10=12.50 avg60=9.29 avg300=4.22 total=18669733\nfull avg10=1.00 avg60=0.00 avg300=0.00 total=7\n";
        let want = Pressure { some_ratio: 0.125, full_ratio: 0.01, some_us_total: 18_669_733, full_us_total: 7 };
        assert_eq!(parse_pressure(text), want);
        assert_eq!(parse_pressure(""), Pressure::default());
    }

    #[test]
    fn cpu_statistics_stand_in_the_cgroup_of_the_controller() {
        let check = |groups: &str, mounts: &str, want: &[&str]| {
            assert_eq!(cgroup_folders(groups, mounts).collect::<Vec<_>>(), want, "{groups}{mounts}");
        };
        let unified = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        check("0::/a/b\n", unified, &["/sys/fs/cgroup/a/b"]);
        check("0::/\n", unified, &["/sys/fs/cgroup"]);
        let hybrid = "proc /proc proc rw 0 0\ncgroup /c/memory cgroup rw,memory 0 0\ncgroup /c/cpu cgroup rw,cpu,cpuacct 0 0\ncgroup2 /c/u cgroup2 rw 0 0\n";
        check("4:memory:/m\n3:cpu,cpuacct:/x\n0::/y\n", hybrid, &["/c/cpu/x", "/c/u/y"]);
        check("", hybrid, &[]);
    }

    #[test]
    fn this_process_is_found() {
        let threads = threads(std::process::id()).expect("we live");
        assert!(threads.iter().any(|thread| thread.is_runnable));
        assert_eq!(super::threads(u32::MAX), None);
        assert!(major_faults(std::process::id()).is_some());
    }
}
