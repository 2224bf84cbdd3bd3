//! The maps as user space holds them.

use aya::Ebpf;
use aya::maps::{HashMap, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues};
use aya::util::nr_cpus;
use ebpf_types::{ListenQueue, PortCounters};

/// [`PortCounters`] and [`ListenQueue`] as plain words, which aya takes without further ado.
type CounterWords = [u64; 20];
type QueueWords = [u64; 3];
const _: () = assert!(size_of::<CounterWords>() == size_of::<PortCounters>());
const _: () = assert!(size_of::<QueueWords>() == size_of::<ListenQueue>());

/// Everything that is read or written from user space, but for the ring.
pub(crate) struct KernelMaps {
    ports: PerCpuHashMap<MapData, u16, CounterWords>,
    queues: HashMap<MapData, u16, QueueWords>,
    pids: HashMap<MapData, u32, u32>,
    lost: PerCpuArray<MapData, u64>,
}

impl KernelMaps {
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, MapError> {
        let mut take = |name: &str| ebpf.take_map(name).ok_or_else(|| MapError::InvalidName { name: name.to_owned() });
        Ok(Self {
            ports: PerCpuHashMap::try_from(take("PORTS")?)?,
            queues: HashMap::try_from(take("QUEUES")?)?,
            pids: HashMap::try_from(take("PIDS")?)?,
            lost: PerCpuArray::try_from(take("LOST")?)?,
        })
    }

    pub fn watch_port(&mut self, port: u16) -> Result<(), MapError> {
        let cpus = nr_cpus().map_err(|(path, error)| std::io::Error::other(format!("{path}: {error}")))?;
        self.queues.insert(port, QueueWords::default(), 0)?;
        self.ports.insert(port, PerCpuValues::try_from(vec![CounterWords::default(); cpus])?, 0)
    }

    pub fn unwatch_port(&mut self, port: u16) {
        // Only fails when it is not there.
        let _ = self.ports.remove(&port);
        let _ = self.queues.remove(&port);
    }

    pub fn watch_pid(&mut self, pid: u32) -> Result<(), MapError> {
        self.pids.insert(pid, 1, 0)
    }

    pub fn unwatch_pid(&mut self, pid: u32) {
        // The kernel removes it by itself when the process ends.
        let _ = self.pids.remove(&pid);
    }

    /// Counters of a port over all CPUs; maxima are maxima.
    pub fn counters(&self, port: u16) -> Option<PortCounters> {
        let per_cpu = self.ports.get(&port, 0).ok()?;
        let words = per_cpu.iter().map(|words| bytemuck::cast::<CounterWords, PortCounters>(*words));
        Some(words.fold(PortCounters::default(), |sum, one| sum.plus(&one)))
    }

    pub fn queue(&self, port: u16) -> ListenQueue {
        self.queues.get(&port, 0).map(bytemuck::cast).unwrap_or_default()
    }

    /// Events that found the ring full.
    pub fn lost(&self) -> u64 {
        self.lost.get(&0, 0).map_or(0, |per_cpu| per_cpu.iter().sum())
    }
}
