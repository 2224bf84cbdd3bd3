//! One instance as the gateway sees it: its load, whether it failed lately, and its idle connections.
//! The load is the gateway's own count, so choosing costs no question to the instance.

use crate::connection::Connection;
use crate::options::GatewayOptions;
use crate::routes::Endpoint;
use crate::work::Work;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Doublings of the quarantine after failures in a row.
const QUARANTINE_DOUBLINGS: u32 = 4;

/// A full endpoint is looked at again after this.
const FULL_RETRY: Duration = Duration::from_millis(100);

/// State of one endpoint, shared by the requests at it. It outlives its row in the route table while streams
/// are still running.
#[derive(Debug)]
pub struct EndpointState {
    pub instance: String,
    pub addr: SocketAddr,
    ready: AtomicBool,
    in_flight: AtomicU32,
    health: Mutex<Health>,
    idle: Mutex<Vec<Connection>>,
    /// What is forwarded to it: its engine tells nobody by itself.
    pub work: Work,
}

#[derive(Debug, Default)]
struct Health {
    failures: u32,
    avoid_until: Option<Instant>,
}

impl EndpointState {
    pub fn new(endpoint: &Endpoint) -> Self {
        Self {
            instance: endpoint.instance.clone(),
            addr: endpoint.addr,
            ready: AtomicBool::new(endpoint.ready),
            in_flight: AtomicU32::new(0),
            health: Mutex::default(),
            idle: Mutex::default(),
            work: Work::default(),
        }
    }

    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// End of the quarantine, if there is one.
    pub fn avoid_until(&self, now: Instant) -> Option<Instant> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).avoid_until.filter(|&until| until > now)
    }

    /// Avoids this endpoint for a while. Requests that fail together count as one failure, so that one death
    /// with many streams does not lengthen the quarantine many times; `true` for the first of them. Idle
    /// connections are closed.
    pub fn failed(&self, now: Instant, quarantine: Duration) -> bool {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        if health.avoid_until.is_some_and(|until| until > now) {
            return false;
        }
        health.avoid_until = Some(now + quarantine * (1 << health.failures.min(QUARANTINE_DOUBLINGS)));
        health.failures = health.failures.saturating_add(1);
        drop(health);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
        true
    }

    /// It produced something: failures are forgotten.
    pub fn worked(&self) {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        if health.failures > 0 {
            *health = Health::default();
        }
    }

    /// Ends the quarantine, keeping the failure count.
    pub fn pardon(&self) {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).avoid_until = None;
    }

    /// An idle connection that looks alive, the most recently used one first.
    pub fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(connection) = idle.pop() {
            if connection.is_usable() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection for the next request, unless there are enough.
    pub fn put_idle(&self, connection: Connection, options: &GatewayOptions) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < options.idle_connections {
            idle.push(connection);
        }
    }
}

/// One request's place at an endpoint; dropping it gives the place back.
#[derive(Debug)]
pub struct Lease {
    pub endpoint: Arc<EndpointState>,
    limit: u32,
    /// Bumped when a full endpoint has room again, which wakes the requests held for it.
    version: watch::Sender<u64>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.endpoint.in_flight.fetch_sub(1, Ordering::AcqRel) >= self.limit {
            self.version.send_modify(|version| *version += 1);
        }
    }
}

/// Result of looking for an endpoint.
#[derive(Debug)]
pub enum Choice {
    Leased(Lease),
    /// None now; one that is full or in quarantine may be tried again at this time.
    None {
        retry_at: Option<Instant>,
    },
}

/// The lowest is taken: whether it is the last to be taken, whether it still loads, its load, its instance.
type Rank<'a> = (bool, bool, u32, &'a str);

/// The least loaded endpoint that is neither full nor in quarantine: ready ones first, ties by instance id, and `last`
/// only where there is no other. The caller serialises calls per model, so that two requests never both take the last place.
pub fn choose(
    endpoints: &[Arc<EndpointState>],
    limit: u32,
    last: Option<&str>,
    version: &watch::Sender<u64>,
) -> Choice {
    let now = Instant::now();
    let mut retry_at: Option<Instant> = None;
    let mut best: Option<(Rank<'_>, &Arc<EndpointState>)> = None;
    for endpoint in endpoints {
        if let Some(until) = endpoint.avoid_until(now) {
            retry_at = Some(retry_at.map_or(until, |earlier| earlier.min(until)));
            continue;
        }
        let (loading, in_flight) = (!endpoint.is_ready(), endpoint.in_flight());
        if in_flight >= limit {
            // Its room may be given back under another name that is served there, which wakes nobody here.
            let soon = now + FULL_RETRY;
            retry_at = Some(retry_at.map_or(soon, |earlier| earlier.min(soon)));
            continue;
        }
        let rank = (last == Some(&endpoint.instance), loading, in_flight, endpoint.instance.as_str());
        if best.is_none_or(|(best_rank, _)| rank < best_rank) {
            best = Some((rank, endpoint));
        }
    }
    let Some((_, endpoint)) = best else {
        return Choice::None { retry_at };
    };
    endpoint.in_flight.fetch_add(1, Ordering::AcqRel);
    Choice::Leased(Lease { endpoint: endpoint.clone(), limit, version: version.clone() })
}
