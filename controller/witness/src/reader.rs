//! Reads the ring and feeds the state machine, in a task of its own. A reader that falls behind loses
//! events, which the kernel counts; counters in maps are not touched by that.

use crate::exit::ExitReason;
use crate::reassembly::Reassembly;
use crate::record::PortRole;
use crate::witness::{ProbeError, Shared, locked};
use aya::maps::{MapData, RingBuf};
use ebpf_types::{Event, WAKE_EVERY_NS};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

/// When the ring is looked at again after a SYN or a request was read: those that follow at once do not wake the reader.
const DEMAND_AGAIN: Duration = Duration::from_nanos(WAKE_EVERY_NS);
/// How often it is looked at while requests are going on: tokens do not wake the reader.
const TOKENS_EVERY: Duration = Duration::from_millis(5);
/// How often it is looked at otherwise, for an event whose CPU was stopped between saying that it need not wake the reader
/// and writing it down.
const IDLE_EVERY: Duration = Duration::from_secs(1);
/// Entries read before others get a turn.
const BATCH: usize = 1024;
/// How often forgotten connections are looked for, and after how long without an event they count as such.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);

/// Starts the task.
pub(crate) fn start(ring: RingBuf<MapData>, shared: Arc<Shared>) -> Result<JoinHandle<()>, ProbeError> {
    // SAFETY: the ring owns its map's descriptor, which stays the same and open for as long as the ring lives.
    let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
        .map_err(|error| ProbeError::Runtime(error.to_string()))?;
    Ok(tokio::spawn(run(ring, shared)))
}

async fn run(mut ring: AsyncFd<RingBuf<MapData>>, shared: Arc<Shared>) {
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut look = std::pin::pin!(tokio::time::sleep(IDLE_EVERY));
    let mut latest_ns = 0;
    loop {
        tokio::select! {
            ready = ring.readable_mut() => {
                let Ok(mut ready) = ready else {
                    tracing::error!("the probes' event ring can no longer be polled; kernel times stop here");
                    return;
                };
                // Cleared before the ring is read, so that what comes meanwhile makes it ready again.
                ready.clear_ready();
                let after = drain_all(ready.get_inner_mut(), &shared, &mut latest_ns).await;
                look.as_mut().reset(tokio::time::Instant::now() + after);
            }
            () = look.as_mut() => {
                let after = drain_all(ring.get_mut(), &shared, &mut latest_ns).await;
                look.as_mut().reset(tokio::time::Instant::now() + after);
            }
            _ = sweep.tick() => {
                let mut finished = Vec::new();
                let before_ns = latest_ns.saturating_sub(FORGOTTEN_AFTER.as_nanos() as u64);
                let mut reassembly = locked(&shared.reassembly);
                reassembly.sweep(before_ns, &mut finished);
                shared.publish(&mut reassembly, finished);
            }
        }
    }
}

/// Reads until the ring is empty, and tells after which time to look again.
async fn drain_all(ring: &mut RingBuf<MapData>, shared: &Shared, latest_ns: &mut u64) -> Duration {
    let mut after = IDLE_EVERY;
    loop {
        let read = drain(ring, shared, latest_ns);
        after =
            if read.loud { DEMAND_AGAIN } else { after.min(if read.in_flight { TOKENS_EVERY } else { IDLE_EVERY }) };
        if read.empty {
            return after;
        }
        tokio::task::yield_now().await;
    }
}

/// What a look at the ring found.
#[derive(Clone, Copy)]
struct Read {
    /// The ring is empty.
    empty: bool,
    /// There was something that wakes the reader, so that others like it may follow without doing so.
    loud: bool,
    in_flight: bool,
}

/// Reads up to a batch.
fn drain(ring: &mut RingBuf<MapData>, shared: &Shared, latest_ns: &mut u64) -> Read {
    let mut finished = Vec::new();
    let mut read = Read { empty: false, loud: false, in_flight: false };
    let mut demand = false;
    {
        let mut reassembly = locked(&shared.reassembly);
        for _ in 0..BATCH {
            let Some(entry) = ring.next() else {
                read.empty = true;
                break;
            };
            match ebpf_types::parse(&entry) {
                Ok(Event::Exit(exit)) => shared.process_ended(exit.pid, ExitReason::from_event(&exit)),
                Ok(event) => {
                    *latest_ns = (*latest_ns).max(at_ns(&event));
                    read.loud |= matches!(event, Event::Syn(_) | Event::Request(..));
                    demand |= is_demand(&event, &reassembly);
                    reassembly.apply(&event, &mut finished);
                }
                Err(_) => {
                    shared.malformed.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        read.in_flight = reassembly.in_flight() > 0;
        shared.publish(&mut reassembly, finished);
    }
    if demand {
        shared.demand_seen.notify_one();
    }
    read
}

/// Whether somebody wants something where demand is counted.
fn is_demand(event: &Event<'_>, reassembly: &Reassembly) -> bool {
    let (Event::Syn(flow) | Event::Request(flow, _)) = event else { return false };
    reassembly.role(flow.key.server_port).is_some_and(PortRole::counts_demand)
}

fn at_ns(event: &Event<'_>) -> u64 {
    match event {
        Event::Exit(exit) => exit.header.at_ns,
        Event::Token(token) => token.header.at_ns,
        Event::Syn(flow)
        | Event::Established(flow)
        | Event::Request(flow, _)
        | Event::Body(flow, _)
        | Event::Response(flow, _)
        | Event::Closed(flow) => flow.header.at_ns,
    }
}
