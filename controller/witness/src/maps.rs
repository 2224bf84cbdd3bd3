//! The maps as user space holds them.

use crate::budget::Group;
use aya::Ebpf;
use aya::Pod;
use aya::maps::{HashMap, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues};
use aya::util::nr_cpus;
use ebpf_types::{BlockStart, FlowKey, FlowState, ListenQueue, PortCounters, ProcessCounters, SynSeen, ThreadSeen};

/// [`PortCounters`] and [`ListenQueue`] as plain words, which aya takes without further ado.
type CounterWords = [u64; 20];
type QueueWords = [u64; 3];
const _: () = assert!(size_of::<CounterWords>() == size_of::<PortCounters>());
const _: () = assert!(size_of::<QueueWords>() == size_of::<ListenQueue>());
type ProcessWords = [u64; size_of::<ProcessCounters>() / 8];
type ThreadWords = [u64; size_of::<ThreadSeen>() / 8];
type BlockWords = [u64; size_of::<BlockStart>() / 8];
type FlowKeyBytes = [u8; size_of::<FlowKey>()];
type FlowWords = [u64; size_of::<FlowState>() / 8];
type SynWords = [u64; size_of::<SynSeen>() / 8];

/// Everything that is read or written from user space, but for the ring.
pub(crate) struct KernelMaps {
    ports: PerCpuHashMap<MapData, u16, CounterWords>,
    queues: HashMap<MapData, u16, QueueWords>,
    pids: HashMap<MapData, u32, u32>,
    lost: PerCpuArray<MapData, u64>,
    processes: PerCpuHashMap<MapData, u32, ProcessWords>,
    threads: HashMap<MapData, u32, ThreadWords>,
    blocks: HashMap<MapData, u64, BlockWords>,
    flows: HashMap<MapData, FlowKeyBytes, FlowWords>,
    syns: HashMap<MapData, FlowKeyBytes, SynWords>,
}

impl KernelMaps {
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, MapError> {
        let mut take = |name: &str| ebpf.take_map(name).ok_or_else(|| MapError::InvalidName { name: name.to_owned() });
        Ok(Self {
            ports: PerCpuHashMap::try_from(take("PORTS")?)?,
            queues: HashMap::try_from(take("QUEUES")?)?,
            pids: HashMap::try_from(take("PIDS")?)?,
            lost: PerCpuArray::try_from(take("LOST")?)?,
            processes: PerCpuHashMap::try_from(take("PROCESSES")?)?,
            threads: HashMap::try_from(take("THREADS")?)?,
            blocks: HashMap::try_from(take("BLOCKS")?)?,
            flows: HashMap::try_from(take("FLOWS")?)?,
            syns: HashMap::try_from(take("SYNS")?)?,
        })
    }

    pub fn watch_port(&mut self, port: u16) -> Result<(), MapError> {
        self.queues.insert(port, QueueWords::default(), 0)?;
        self.ports.insert(port, per_cpu(CounterWords::default())?, 0)
    }

    pub fn unwatch_port(&mut self, port: u16) {
        // Only fails when it is not there.
        let _ = self.ports.remove(&port);
        let _ = self.queues.remove(&port);
    }

    pub fn watch_pid(&mut self, pid: u32) -> Result<(), MapError> {
        self.pids.insert(pid, 1, 0)?;
        self.processes.insert(pid, per_cpu([0; size_of::<ProcessCounters>() / 8])?, 0)
    }

    pub fn unwatch_pid(&mut self, pid: u32) {
        // The kernel removes it by itself when the process ends.
        let _ = self.pids.remove(&pid);
        let _ = self.processes.remove(&pid);
    }

    /// What the kernel counted of a process over all CPUs; none when it is not watched.
    pub fn process(&self, pid: u32) -> Option<ProcessCounters> {
        let per_cpu = self.processes.get(&pid, 0).ok()?;
        let mut sum = [0; size_of::<ProcessCounters>() / 8];
        for words in per_cpu.iter() {
            sum.iter_mut().zip(words).for_each(|(sum, word)| *sum += word);
        }
        Some(bytemuck::pod_read_unaligned(bytemuck::cast_slice(&sum)))
    }

    /// A thread of a watched process when it last left its CPU.
    pub fn thread(&self, thread: u32) -> Option<ThreadSeen> {
        self.threads.get(&thread, 0).ok().map(bytemuck::cast)
    }

    /// Forgets what a group's programs have seen half of: while they were off something was missed.
    pub fn forget(&mut self, group: Group) {
        match group {
            Group::EngineView => {
                empty(&mut self.threads);
                empty(&mut self.blocks);
            }
            Group::Counting => {
                empty(&mut self.flows);
                empty(&mut self.syns);
            }
            Group::Tokens | Group::Bodies => {}
        }
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

/// The same value on every CPU.
fn per_cpu<V: Pod>(value: V) -> Result<PerCpuValues<V>, MapError> {
    let cpus = nr_cpus().map_err(|(path, error)| std::io::Error::other(format!("{path}: {error}")))?;
    Ok(PerCpuValues::try_from(vec![value; cpus])?)
}

fn empty<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>) {
    let keys: Vec<K> = map.keys().filter_map(Result::ok).collect();
    for key in keys {
        // The kernel may have dropped it by itself.
        let _ = map.remove(&key);
    }
}
