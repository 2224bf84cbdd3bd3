//! The handle that everybody else holds.

use crate::attach::{self, Attached, ProbeStatus};
use crate::cuda::{Cuda, CudaError, CudaWatch};
use crate::exit::ExitReason;
use crate::maps::KernelMaps;
use crate::reader;
use crate::reassembly::Reassembly;
use crate::record::{FlowSample, PortRole, RequestRecord};
use aya::Ebpf;
use aya::maps::RingBuf;
use ebpf_types::CudaCounters;
use serde::Serialize;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, broadcast};
use tokio::task::JoinHandle;

/// How to attach.
#[derive(Clone, Debug)]
pub struct WitnessOptions {
    /// False for `--no-probes`: nothing is loaded.
    pub enabled: bool,
    /// Folder of the cgroup (v2) whose sockets are seen; None finds the root one.
    pub cgroup: Option<PathBuf>,
    /// Count watched ports in every network namespace, not only in our own.
    pub all_namespaces: bool,
    /// Size of the event ring, bytes; rounded up to a power of two.
    pub ring_bytes: u32,
    /// Finished records that are kept.
    pub recent_records: usize,
    /// Connections whose requests are followed.
    pub connections: usize,
    /// Another object than the embedded one, to try a rebuilt one.
    pub object: Option<PathBuf>,
    /// The kernel's description of its types; where there is no such file, what needs it is left out.
    pub btf: PathBuf,
}

impl Default for WitnessOptions {
    fn default() -> Self {
        Self {
            enabled: true,
            cgroup: None,
            all_namespaces: false,
            ring_bytes: 4 << 20,
            recent_records: 4096,
            connections: 16384,
            object: None,
            btf: "/sys/kernel/btf/vmlinux".into(),
        }
    }
}

/// What is wrong with Foreshock itself; a kernel that refuses is no error.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("the probes' object is unusable: {0} (run `cargo xtask probes build`)")]
    Object(String),
    #[error("reading probe events needs a tokio runtime with I/O: {0}")]
    Runtime(String),
    #[error("a probe map failed: {0}")]
    Map(#[from] aya::maps::MapError),
}

/// Counts of one watched port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PortSnapshot {
    pub port: u16,
    pub role: PortRole,
    /// First attempts to connect, and repetitions.
    pub syns: u64,
    pub syn_retries: u64,
    pub connections: u64,
    pub closed: u64,
    /// Connections that wait to be accepted: when last looked at, the most seen, and the listener's limit.
    pub accept_queue: u32,
    pub accept_queue_max: u32,
    pub accept_queue_limit: u32,
    /// Connections whose wait to be accepted is known (where the server asks for its clients' addresses), the sum of
    /// these waits, and the longest.
    pub accepts: u64,
    pub accept_wait_ns: u64,
    pub accept_wait_ns_max: u64,
    /// Segments that the server's side sent again, and resets of connections.
    pub retransmits: u64,
    pub resets_sent: u64,
    pub resets_received: u64,
    pub protocols: Protocols,
    /// Requests that began, counted in the kernel; those that were sent ahead of answers by their announced lengths.
    pub requests: u64,
    /// Requests that were followed to an end, and that are going on.
    pub ended: u64,
    pub in_flight: u64,
}

/// Connections of a port by what the client speaks on them. Requests are counted and followed in HTTP/1 alone; of the
/// others the bytes are counted. Those that said nothing, or too little, or had begun before their port was watched and
/// brought no request since, are in none of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Protocols {
    pub http1: u64,
    /// In the clear: told by its preface.
    pub http2: u64,
    pub tls: u64,
    pub other: u64,
    /// Payload bytes on connections that are not HTTP/1: to the server and from it.
    pub opaque_request_bytes: u64,
    pub opaque_response_bytes: u64,
}

/// What the reader fills and everybody reads.
pub(crate) struct Shared {
    pub reassembly: Mutex<Reassembly>,
    pub recent: Mutex<VecDeque<Arc<RequestRecord>>>,
    pub recent_limit: usize,
    pub records: broadcast::Sender<Arc<RequestRecord>>,
    pub flows: broadcast::Sender<FlowSample>,
    pub exits: Mutex<VecDeque<(u32, ExitReason)>>,
    pub exit_seen: broadcast::Sender<u32>,
    pub malformed: AtomicU64,
    /// Wakes whoever plans when demand was seen.
    pub demand_seen: Notify,
    pub maps: Option<Mutex<KernelMaps>>,
}

/// Ends of processes that are remembered until asked for.
const EXITS_KEPT: usize = 1024;
/// Records a slow subscriber may fall behind before it loses some.
const SUBSCRIBER_LAG: usize = 4096;
/// The same for samples of requests that are going on.
const FLOW_LAG: usize = 16384;

/// The probes, attached as far as possible. Dropping it detaches them.
pub struct Witness {
    shared: Arc<Shared>,
    probes: Vec<ProbeStatus>,
    tasks: Vec<JoinHandle<()>>,
    /// Holds the programs and their links; those on CUDA processes come and go.
    programs: Option<Mutex<(Ebpf, Option<Cuda>)>>,
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Witness {
    /// Attaches what can be attached and starts reading. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`ProbeError`] when the object is corrupt, or without a runtime. Missing permissions and old
    /// kernels are no errors: see [`Witness::probes`].
    pub fn attach(options: WitnessOptions) -> Result<Self, ProbeError> {
        let Attached { mut ebpf, probes } = if options.enabled {
            attach::attach(&options)?
        } else {
            Attached { ebpf: None, probes: attach::nothing("switched off (--no-probes)") }
        };
        let maps = ebpf.as_mut().map(KernelMaps::take).transpose()?;
        let ring = match ebpf.as_mut().and_then(|ebpf| ebpf.take_map("EVENTS")) {
            Some(map) => Some(RingBuf::try_from(map)?),
            None => None,
        };
        let shared = Arc::new(Shared {
            reassembly: Mutex::new(Reassembly::new(options.connections)),
            recent: Mutex::new(VecDeque::new()),
            recent_limit: options.recent_records.max(1),
            records: broadcast::channel(SUBSCRIBER_LAG).0,
            flows: broadcast::channel(FLOW_LAG).0,
            exits: Mutex::new(VecDeque::new()),
            exit_seen: broadcast::channel(EXITS_KEPT).0,
            malformed: AtomicU64::new(0),
            demand_seen: Notify::new(),
            maps: maps.map(Mutex::new),
        });
        let runtime = tokio::runtime::Handle::try_current().map_err(|error| ProbeError::Runtime(error.to_string()))?;
        let mut tasks = Vec::new();
        if let Some(ring) = ring {
            tasks.push(reader::start(ring, shared.clone())?);
            tasks.push(runtime.spawn(crate::export::run(shared.clone())));
        }
        crate::export::probes_attached(&probes);
        let programs = ebpf.map(|mut ebpf| {
            let cuda = Cuda::take(&mut ebpf);
            Mutex::new((ebpf, cuda))
        });
        Ok(Self { shared, probes, tasks, programs })
    }

    /// Every probe, attached or not and why.
    pub fn probes(&self) -> &[ProbeStatus] {
        &self.probes
    }

    /// Whether requests are counted and followed by the kernel.
    pub fn sees_requests(&self) -> bool {
        self.probes.iter().filter(|probe| probe.probe.starts_with("http_")).all(|probe| probe.attached)
    }

    /// One line for the log: what is attached, or what is missing, why, and what is lost.
    pub fn summary(&self) -> String {
        let missing: Vec<&ProbeStatus> = self.probes.iter().filter(|probe| !probe.attached).collect();
        let Some(first) = missing.first() else { return "kernel probes: all attached".to_owned() };
        if missing.iter().all(|probe| probe.reason == first.reason) && missing.len() == self.probes.len() {
            return format!("kernel probes: none, {}; lost: kernel-side counts and times", first.reason);
        }
        let parts: Vec<String> =
            missing.iter().map(|probe| format!("{} ({}; lost: {})", probe.probe, probe.reason, probe.loses)).collect();
        format!("kernel probes: missing {}", parts.join(", "))
    }

    /// Watches a port from now on; watching it again changes its role and keeps its counts. Does nothing
    /// when no probe is attached.
    ///
    /// # Errors
    /// When the map is full (1024 ports).
    pub fn watch(&self, port: u16, role: PortRole) -> Result<(), ProbeError> {
        let Some(maps) = &self.shared.maps else { return Ok(()) };
        let known = locked(&self.shared.reassembly).role(port).is_some();
        locked(&self.shared.reassembly).watch(port, role);
        if known {
            return Ok(());
        }
        locked(maps).watch_port(port).inspect_err(|_| {
            locked(&self.shared.reassembly).unwatch(port, &mut Vec::new());
        })?;
        Ok(())
    }

    /// Watches no longer; what is going on there ends as lost.
    pub fn unwatch(&self, port: u16) {
        let Some(maps) = &self.shared.maps else { return };
        self.shared.retire(port);
        locked(maps).unwatch_port(port);
        let mut finished = Vec::new();
        let mut reassembly = locked(&self.shared.reassembly);
        reassembly.unwatch(port, &mut finished);
        self.shared.publish(&mut reassembly, finished);
    }

    /// Lets the kernel tell how this process ends.
    ///
    /// # Errors
    /// When the map is full (4096 processes).
    pub fn watch_pid(&self, pid: u32) -> Result<(), ProbeError> {
        let Some(maps) = &self.shared.maps else { return Ok(()) };
        locked(&self.shared.exits).retain(|(known, _)| *known != pid);
        Ok(locked(maps).watch_pid(pid)?)
    }

    pub fn unwatch_pid(&self, pid: u32) {
        if let Some(maps) = &self.shared.maps {
            locked(maps).unwatch_pid(pid);
        }
    }

    /// Counts this process's calls into CUDA's driver library from now on. Each call costs it microseconds until
    /// [`Witness::unwatch_cuda`], so watch for short times.
    ///
    /// # Errors
    /// When the process maps no such library, or the kernel refuses.
    pub fn watch_cuda(&self, pid: u32) -> Result<CudaWatch, CudaError> {
        let mut programs = locked(self.programs.as_ref().ok_or(CudaError::NoProbes)?);
        let (ebpf, cuda) = &mut *programs;
        cuda.as_mut().ok_or(CudaError::NoProbes)?.watch(ebpf, pid)
    }

    /// Ends that, and answers what was counted.
    pub fn unwatch_cuda(&self, pid: u32) -> Option<CudaCounters> {
        let mut programs = locked(self.programs.as_ref()?);
        let (ebpf, cuda) = &mut *programs;
        cuda.as_mut()?.unwatch(ebpf, pid)
    }

    /// What was counted of this process since it is watched.
    pub fn cuda_counters(&self, pid: u32) -> Option<CudaCounters> {
        locked(self.programs.as_ref()?).1.as_ref()?.counters(pid)
    }

    /// How a watched process ended, if the kernel told; waits for its event no longer than `wait`.
    pub async fn exit_reason(&self, pid: u32, wait: Duration) -> Option<ExitReason> {
        let mut seen = self.shared.exit_seen.subscribe();
        let find = || locked(&self.shared.exits).iter().rev().find(|(known, _)| *known == pid).map(|(_, why)| *why);
        if let Some(reason) = find() {
            return Some(reason);
        }
        self.shared.maps.as_ref()?;
        let told = async { while !matches!(seen.recv().await, Ok(told) if told == pid) {} };
        let _ = tokio::time::timeout(wait, told).await;
        find()
    }

    /// The latest finished records, newest first.
    pub fn recent(&self, n: usize) -> Vec<Arc<RequestRecord>> {
        locked(&self.shared.recent).iter().rev().take(n).cloned().collect()
    }

    /// Records as they are finished.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<RequestRecord>> {
        self.shared.records.subscribe()
    }

    /// Resolves when an attempt to connect or a request was seen, at a port where demand is counted, since the last
    /// call resolved; for one waiter. This is sooner than any server can tell, and also while it cannot.
    pub async fn demand_seen(&self) {
        self.shared.demand_seen.notified().await;
    }

    /// Starts, tokens and ends as they are seen; tokens within some milliseconds. A subscriber that falls behind
    /// loses samples and is told how many.
    pub fn subscribe_flow(&self) -> broadcast::Receiver<FlowSample> {
        self.shared.flows.subscribe()
    }

    /// A request by its client's address and its number on the connection: going on, or among the recent.
    pub fn find(&self, client: SocketAddr, sequence: u32) -> Option<RequestRecord> {
        if let Some(record) = locked(&self.shared.reassembly).open_record(client, sequence) {
            return Some(record);
        }
        let recent = locked(&self.shared.recent);
        let found = recent.iter().rev().find(|record| record.client == client && record.sequence == sequence);
        found.map(|record| RequestRecord::clone(record))
    }

    /// Counts of a watched port.
    pub fn counters(&self, port: u16) -> Option<PortSnapshot> {
        self.shared.counters(port)
    }

    /// Counts of all watched ports, by port.
    pub fn snapshot(&self) -> Vec<PortSnapshot> {
        let ports = locked(&self.shared.reassembly).ports();
        ports.into_iter().filter_map(|port| self.shared.counters(port)).collect()
    }

    /// Events lost because the ring was full.
    pub fn events_lost(&self) -> u64 {
        self.shared.maps.as_ref().map_or(0, |maps| locked(maps).lost())
    }

    /// Ring entries that were no events; not 0 only if object and binary do not belong together.
    pub fn events_malformed(&self) -> u64 {
        self.shared.malformed.load(Ordering::Relaxed)
    }
}

impl Shared {
    pub fn counters(&self, port: u16) -> Option<PortSnapshot> {
        let maps = locked(self.maps.as_ref()?);
        let kernel = maps.counters(port)?;
        let queue = maps.queue(port);
        drop(maps);
        let reassembly = locked(&self.reassembly);
        let totals = reassembly.totals(port);
        Some(PortSnapshot {
            port,
            role: reassembly.role(port)?.clone(),
            syns: kernel.syns,
            syn_retries: kernel.syn_retries,
            connections: kernel.connections,
            closed: kernel.closed,
            accept_queue: queue.depth,
            accept_queue_max: u32::try_from(kernel.accept_queue_max).unwrap_or(u32::MAX),
            accept_queue_limit: queue.limit,
            accepts: kernel.accepts,
            accept_wait_ns: kernel.accept_wait_ns,
            accept_wait_ns_max: kernel.accept_wait_ns_max,
            retransmits: kernel.retransmits,
            resets_sent: kernel.resets_sent,
            resets_received: kernel.resets_received,
            protocols: Protocols {
                http1: kernel.http1,
                http2: kernel.http2,
                tls: kernel.tls,
                other: kernel.other,
                opaque_request_bytes: kernel.opaque_request_bytes,
                opaque_response_bytes: kernel.opaque_response_bytes,
            },
            requests: (kernel.requests + totals.pipelined).saturating_sub(totals.misread),
            ended: totals.ended,
            in_flight: totals.in_flight,
        })
    }

    /// Keeps, tells and measures finished records, and then tells what happened on requests: whoever hears of an end
    /// finds its record. The machine stays locked meanwhile, so that the order is its own.
    pub fn publish(&self, reassembly: &mut Reassembly, finished: Vec<RequestRecord>) {
        for record in finished {
            crate::export::observe(&record);
            let record = Arc::new(record);
            let mut recent = locked(&self.recent);
            if recent.len() >= self.recent_limit {
                recent.pop_front();
            }
            recent.push_back(record.clone());
            drop(recent);
            // Fails only when nobody listens.
            let _ = self.records.send(record);
        }
        for sample in reassembly.take_samples() {
            let _ = self.flows.send(sample);
        }
    }

    pub fn process_ended(&self, pid: u32, reason: ExitReason) {
        let mut exits = locked(&self.exits);
        if exits.len() >= EXITS_KEPT {
            exits.pop_front();
        }
        exits.push_back((pid, reason));
        drop(exits);
        let _ = self.exit_seen.send(pid);
    }
}
