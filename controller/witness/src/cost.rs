//! What the probes cost: the kernel's own run statistics of each program (it reads the clock around every run, some
//! 20 ns more), and the memory of the maps.

use aya::Ebpf;
use aya::maps::{MapFd, MapInfo};
use aya::programs::ProgramFd;
use aya::sys::{Stats, enable_stats};
use serde::Serialize;
use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// What one program has cost since it was loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProgramCost {
    pub probe: String,
    pub runs_total: u64,
    pub run_ns_total: u64,
}

/// Reads costs. While it exists, the kernel measures them.
pub(crate) struct Meter {
    programs: Vec<(String, ProgramFd)>,
    maps: Vec<MapFd>,
    _measuring: OwnedFd,
}

impl Meter {
    /// Measures the programs that are loaded now.
    ///
    /// # Errors
    /// Why the kernel does not measure.
    pub fn start(ebpf: &Ebpf) -> Result<Self, String> {
        let measuring = enable_stats(Stats::RunTime).map_err(|error| error.to_string())?;
        let mut programs = Vec::new();
        let mut ids = BTreeSet::new();
        for (name, program) in ebpf.programs() {
            let Ok(fd) = program.fd().map(ProgramFd::try_clone) else { continue };
            programs.push((name.to_owned(), fd.map_err(|error| error.to_string())?));
            let info = program.info().map_err(|error| error.to_string())?;
            ids.extend(info.map_ids().map_err(|error| error.to_string())?.unwrap_or_default());
        }
        let maps = ids.into_iter().filter_map(|id| MapInfo::from_id(id).and_then(|info| info.fd()).ok()).collect();
        Ok(Self { programs, maps, _measuring: measuring })
    }

    /// What each program has cost.
    pub fn programs(&self) -> Vec<ProgramCost> {
        let cost = |(name, fd): &(String, ProgramFd)| {
            let [runs_total, run_ns_total] = figures(fd, ["run_cnt:", "run_time_ns:"]);
            ProgramCost { probe: name.clone(), runs_total, run_ns_total }
        };
        self.programs.iter().map(cost).collect()
    }

    /// Memory of all maps, bytes.
    pub fn maps_bytes(&self) -> u64 {
        self.maps.iter().map(|fd| figures(fd, ["memlock:"])[0]).sum()
    }
}

/// What the kernel says of a descriptor, as it stands in its fdinfo; 0 where it says nothing.
fn figures<const N: usize>(fd: &impl AsFd, names: [&str; N]) -> [u64; N] {
    let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
    let text = std::fs::read_to_string(path).unwrap_or_default();
    names.map(|name| {
        let figure = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        figure.unwrap_or(0)
    })
}
