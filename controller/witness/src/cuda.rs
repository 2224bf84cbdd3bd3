//! Counts what a CUDA process asks of its driver library, from outside and on demand.
//!
//! Each counted call costs microseconds, so nothing is attached until it is asked for, and only to the one process.
//! Its own copy of the library is found through its maps, also in a container. Functions that this library lacks
//! are left out and named.

use aya::Ebpf;
use aya::maps::{MapData, MapError, PerCpuHashMap, PerCpuValues};
use aya::programs::ProgramError;
use aya::programs::uprobe::{UProbe, UProbeError, UProbeLinkId, UProbeScope};
use aya::util::nr_cpus;
use ebpf_types::CudaCounters;
use serde::Serialize;
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

/// [`CudaCounters`] as plain words.
type CounterWords = [u64; 8];
const _: () = assert!(size_of::<CounterWords>() == size_of::<CudaCounters>());

/// Programs and the functions that they count. The first versions of some (without `_v2`) take 32-bit sizes and are
/// for programs from before CUDA 3.2; what ends in `_ptsz` or `_ptds` is the same with a stream per thread.
const FUNCTIONS: [(&str, &[&str]); 6] = [
    ("cuda_launch", &["cuLaunchKernel", "cuLaunchKernel_ptsz", "cuLaunchKernelEx", "cuLaunchKernelEx_ptsz"]),
    ("cuda_graph_launch", &["cuGraphLaunch", "cuGraphLaunch_ptsz"]),
    ("cuda_copy", &["cuMemcpyHtoD_v2", "cuMemcpyHtoD_v2_ptds", "cuMemcpyHtoDAsync_v2", "cuMemcpyHtoDAsync_v2_ptsz"]),
    ("cuda_allocate", &["cuMemAlloc_v2", "cuMemAllocManaged", "cuMemAllocAsync", "cuMemAllocAsync_ptsz"]),
    ("cuda_free", &["cuMemFree_v2", "cuMemFreeAsync", "cuMemFreeAsync_ptsz"]),
    ("cuda_context", &["cuCtxCreate_v2", "cuCtxCreate_v3", "cuCtxCreate_v4", "cuDevicePrimaryCtxRetain"]),
];

/// Why a process is not counted.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    #[error("process {0} has no libcuda.so mapped: it uses no CUDA, or not yet")]
    NoLibrary(u32),
    #[error("the maps of process {pid} cannot be read: {source}")]
    Maps { pid: u32, source: std::io::Error },
    #[error("{} has none of the functions that are counted", .0.display())]
    NoFunction(PathBuf),
    #[error("the kernel refuses the CUDA probes: {0}")]
    Refused(String),
    #[error("the map of CUDA counters failed: {0}")]
    Map(#[from] MapError),
    #[error("no kernel probe is loaded")]
    NoProbes,
}

/// What is counted of a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CudaWatch {
    pub library: PathBuf,
    pub functions: Vec<&'static str>,
    /// Functions that this library does not have.
    pub missing: Vec<&'static str>,
}

/// A program on one function.
type Link = (&'static str, UProbeLinkId);

/// The programs in use, by process.
pub(crate) struct Cuda {
    counters: PerCpuHashMap<MapData, u32, CounterWords>,
    links: BTreeMap<u32, (CudaWatch, Vec<Link>)>,
}

impl Cuda {
    /// None where the object has no such map.
    pub fn take(ebpf: &mut Ebpf) -> Option<Self> {
        let counters = PerCpuHashMap::try_from(ebpf.take_map("CUDA")?).ok()?;
        Some(Self { counters, links: BTreeMap::new() })
    }

    /// Counts from zero; a process that is counted already goes on.
    pub fn watch(&mut self, ebpf: &mut Ebpf, pid: u32) -> Result<CudaWatch, CudaError> {
        if let Some((watch, _)) = self.links.get(&pid) {
            return Ok(watch.clone());
        }
        let process = NonZeroU32::new(pid).ok_or(CudaError::NoLibrary(pid))?;
        let library = library_of(pid)?;
        let cpus =
            nr_cpus().map_err(|(path, error)| MapError::from(std::io::Error::other(format!("{path}: {error}"))))?;
        let zero = PerCpuValues::try_from(vec![CounterWords::default(); cpus]).map_err(MapError::from)?;
        self.counters.insert(pid, zero, 0)?;
        let mut watch = CudaWatch { library, functions: Vec::new(), missing: Vec::new() };
        let mut links = Vec::new();
        let attached = attach(ebpf, process, &mut watch, &mut links);
        let attached = match attached {
            Ok(()) if watch.functions.is_empty() => Err(CudaError::NoFunction(watch.library.clone())),
            attached => attached,
        };
        self.links.insert(pid, (watch.clone(), links));
        if let Err(error) = attached {
            self.unwatch(ebpf, pid);
            return Err(error);
        }
        Ok(watch)
    }

    /// Detaches, and answers what was counted; none when it was not.
    pub fn unwatch(&mut self, ebpf: &mut Ebpf, pid: u32) -> Option<CudaCounters> {
        let (_, links) = self.links.remove(&pid)?;
        for (name, link) in links {
            if let Ok(program) = program(ebpf, name) {
                // Fails only when it is detached already.
                let _ = program.detach(link);
            }
        }
        let counted = self.counters(pid);
        let _ = self.counters.remove(&pid);
        counted
    }

    /// Counts since the process is watched.
    pub fn counters(&self, pid: u32) -> Option<CudaCounters> {
        let per_cpu = self.counters.get(&pid, 0).ok()?;
        let mut sum = CounterWords::default();
        for words in per_cpu.iter() {
            sum.iter_mut().zip(words).for_each(|(sum, word)| *sum += word);
        }
        Some(bytemuck::cast(sum))
    }
}

fn attach(ebpf: &mut Ebpf, process: NonZeroU32, watch: &mut CudaWatch, links: &mut Vec<Link>) -> Result<(), CudaError> {
    let refused = |error: ProgramError| CudaError::Refused(crate::attach::refused(&error));
    for (name, functions) in FUNCTIONS {
        let program = program(ebpf, name).map_err(CudaError::Refused)?;
        if program.fd().is_err() {
            program.load().map_err(refused)?;
        }
        for &function in functions {
            match program.attach(function, &watch.library, UProbeScope::OneProcess(process)) {
                Ok(link) => {
                    links.push((name, link));
                    watch.functions.push(function);
                }
                Err(ProgramError::UProbeError(UProbeError::SymbolError { .. })) => watch.missing.push(function),
                Err(error) => return Err(refused(error)),
            }
        }
    }
    Ok(())
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut UProbe, String> {
    let program = ebpf.program_mut(name).ok_or_else(|| format!("the object has no program {name}"))?;
    program.try_into().map_err(|error: ProgramError| error.to_string())
}

/// The process's own libcuda.so, as seen from here.
fn library_of(pid: u32) -> Result<PathBuf, CudaError> {
    let maps =
        std::fs::read_to_string(format!("/proc/{pid}/maps")).map_err(|source| CudaError::Maps { pid, source })?;
    let path = mapped_library(&maps).ok_or(CudaError::NoLibrary(pid))?;
    Ok(Path::new(&format!("/proc/{pid}/root")).join(path.trim_start_matches('/')))
}

/// The first mapping of a libcuda.so, whatever version its name ends in.
fn mapped_library(maps: &str) -> Option<&str> {
    maps.lines().find_map(|line| {
        let path = &line[line.find('/')?..];
        path.rsplit('/').next()?.starts_with("libcuda.so").then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::mapped_library;

    #[test]
    fn the_library_is_found_among_mappings() {
        let check = |maps, want| assert_eq!(mapped_library(maps), want, "{maps}");
        let line = "7f00-7f01 r-xp 00000000 fe:00 42     /usr/lib/x/libcuda.so.580.95.05\n";
        check(line, Some("/usr/lib/x/libcuda.so.580.95.05"));
        check("7f00-7f01 r-xp 0 fe:00 42 /usr/lib/libcudart.so.12\n7f00-7f01 rw-p 0 00:00 0\n", None);
        check("7f00-7f01 r-xp 0 fe:00 42 /a b/libcuda.so.1\n", Some("/a b/libcuda.so.1"));
        check("", None);
    }
}
