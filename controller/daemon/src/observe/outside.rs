//! Capacity of every engine whose port the kernel watches, from its packets alone: feeds what the witness tells of
//! requests to [`Outside`], and estimates now and then. The loop does not wait for any of it.

use crate::clock::monotonic_ns;
use controller_core::outside::{self, Estimate, InFlight, Outside, Sample, Service, Slo};
use controller_witness::{Ask, FlowSample, PortRole, RequestEnd, Witness};
use metrics::gauge;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use telemetry::{
    OUTSIDE_BATCH, OUTSIDE_HEADROOM_RATIO, OUTSIDE_KNEE_REQUESTS_PER_SECOND, OUTSIDE_LOAD_REQUESTS_PER_SECOND,
    OUTSIDE_QUEUE,
};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::task::JoinHandle;

/// How often the watched ports are looked at and metrics are written.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two estimates of one engine at least, and as a multiple of the time that one took.
const ESTIMATE_EVERY: Duration = Duration::from_secs(3);
const ESTIMATE_SHARE: u32 = 20;

/// What is known of one engine.
#[derive(Clone, Debug, Serialize)]
pub struct OutsideView {
    pub name: String,
    pub in_flight: InFlight,
    /// Requests per second that arrive.
    pub load_per_s: f64,
    pub service: Service,
    /// None until enough streams have ended.
    pub estimate: Option<Estimate>,
    /// Share of the knee that the load leaves; below 0 beyond it.
    pub headroom: Option<f64>,
}

/// One engine.
struct Watched {
    role: PortRole,
    outside: Outside,
    estimate: Option<Estimate>,
    /// Streams that the estimate was made from, and when the next may be.
    estimated_of: u64,
    next: Instant,
}

struct Shared {
    slo: Slo,
    ports: Mutex<BTreeMap<u16, Watched>>,
    samples_lost: AtomicU64,
}

/// The watch. It ends when this is dropped.
pub struct OutsideWatch {
    shared: Arc<Shared>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for OutsideWatch {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl OutsideWatch {
    /// Watches, from now on, whatever engines' ports the witness watches. Must be called in a tokio runtime.
    pub fn start(witness: &Arc<Witness>, slo: Slo) -> Self {
        let shared = Arc::new(Shared { slo, ports: Mutex::default(), samples_lost: AtomicU64::new(0) });
        shared.follow(witness);
        let reading = read(witness.clone(), witness.subscribe_flow(), shared.clone());
        let looking = look(witness.clone(), shared.clone());
        Self { shared, tasks: [tokio::spawn(reading), tokio::spawn(looking)] }
    }

    /// What is known of the engine on this port; None where none is watched.
    pub fn view(&self, port: u16) -> Option<OutsideView> {
        let mut ports = self.shared.ports();
        ports.get_mut(&port).map(|watched| watched.view(monotonic_ns(), &self.shared.slo))
    }

    /// Samples that came too fast to be taken.
    pub fn samples_lost(&self) -> u64 {
        self.shared.samples_lost.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn ports(&self) -> MutexGuard<'_, BTreeMap<u16, Watched>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up ports of engines, and drops those that are no longer watched or are another's.
    fn follow(&self, witness: &Witness) {
        let seen = witness.snapshot();
        let mut ports = self.ports();
        ports.retain(|port, watched| seen.iter().any(|now| now.port == *port && now.role == watched.role));
        for now in seen.into_iter().filter(|now| now.role != PortRole::Gateway) {
            ports.entry(now.port).or_insert_with(|| Watched::new(now.role));
        }
    }
}

impl Watched {
    fn new(role: PortRole) -> Self {
        Self { role, outside: Outside::default(), estimate: None, estimated_of: 0, next: Instant::now() }
    }

    fn name(&self) -> &str {
        match &self.role {
            PortRole::Engine { model, .. } => model,
            PortRole::Foreign { name } => name,
            PortRole::Gateway => "",
        }
    }

    fn view(&mut self, now_ns: u64, slo: &Slo) -> OutsideView {
        let load_per_s = self.outside.load_per_s(now_ns);
        let knee_per_s = self.estimate.as_ref().map(|estimate| estimate.knee_per_s).filter(|knee| *knee > 0.0);
        OutsideView {
            name: self.name().to_owned(),
            in_flight: self.outside.in_flight(now_ns),
            load_per_s,
            service: self.outside.service(now_ns, slo),
            headroom: knee_per_s.map(|knee_per_s| 1.0 - load_per_s / knee_per_s),
            estimate: self.estimate.clone(),
        }
    }
}

async fn read(witness: Arc<Witness>, mut flows: broadcast::Receiver<FlowSample>, shared: Arc<Shared>) {
    loop {
        match flows.recv().await {
            Ok(flow) => {
                let (FlowSample::Start { port, .. } | FlowSample::Token { port, .. } | FlowSample::End { port, .. }) =
                    flow;
                if !shared.ports().contains_key(&port) {
                    // Watched since the last look, or the gateway's.
                    shared.follow(&witness);
                }
                if let Some(watched) = shared.ports().get_mut(&port)
                    && let Some(sample) = sample(&flow, &watched.role)
                {
                    watched.outside.observe(&sample);
                }
            }
            Err(RecvError::Lagged(lost)) => {
                shared.samples_lost.fetch_add(lost, Ordering::Relaxed);
            }
            Err(RecvError::Closed) => return,
        }
    }
}

/// What the estimator needs of a sample.
fn sample(flow: &FlowSample, role: &PortRole) -> Option<Sample> {
    Some(match *flow {
        // One that was going on before the probes came: its start is not known.
        FlowSample::Start { at_ns: 0, .. } => return None,
        FlowSample::Start { flow, at_ns, request_bytes, ask, .. } => {
            let ask = match (ask, role) {
                (Ask::Nothing, _) => outside::Ask::Nothing,
                // On the hop from the gateway every answer is a stream, which needs no saying.
                (Ask::Whole, PortRole::Foreign { .. }) => outside::Ask::Whole,
                _ => outside::Ask::Stream,
            };
            Sample::Start { flow, at_ns, request_bytes, ask }
        }
        FlowSample::Token { flow, at_ns, segments, .. } => Sample::Token { flow, at_ns, segments },
        FlowSample::End { flow, at_ns, end, .. } => Sample::End { flow, at_ns, complete: end == RequestEnd::Complete },
    })
}

async fn look(witness: Arc<Witness>, shared: Arc<Shared>) {
    let mut every = tokio::time::interval(LOOK_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut exported = BTreeMap::new();
    loop {
        every.tick().await;
        shared.follow(&witness);
        estimate_due(&shared).await;
        export(&shared, &mut exported);
    }
}

/// Estimates engines of which more was seen, each on a thread that may take its time.
async fn estimate_due(shared: &Arc<Shared>) {
    let due: Vec<(u16, Outside)> = shared
        .ports()
        .iter()
        .filter(|(_, watched)| watched.outside.streams() != watched.estimated_of && watched.next <= Instant::now())
        .map(|(port, watched)| (*port, watched.outside.clone()))
        .collect();
    for (port, outside) in due {
        let slo = shared.slo;
        let began = Instant::now();
        let streams = outside.streams();
        let Ok(estimate) = tokio::task::spawn_blocking(move || outside.estimate(&slo)).await else { continue };
        if let Some(watched) = shared.ports().get_mut(&port) {
            watched.next = Instant::now() + ESTIMATE_EVERY.max(began.elapsed() * ESTIMATE_SHARE);
            watched.estimated_of = streams;
            watched.outside.set_slots(estimate.as_ref().and_then(|estimate| estimate.slots));
            watched.estimate = estimate.or(watched.estimate.take());
        }
    }
}

/// Figures by name; several instances of one model are added up.
#[derive(Clone, Copy, Default)]
struct Sum {
    batch: u32,
    queue: u32,
    load_per_s: f64,
    knee_per_s: Option<f64>,
}

/// Writes the metrics; those of engines that are gone go back to 0.
fn export(shared: &Shared, exported: &mut BTreeMap<String, Sum>) {
    exported.values_mut().for_each(|sum| *sum = Sum::default());
    let now_ns = monotonic_ns();
    for watched in shared.ports().values_mut() {
        let view = watched.view(now_ns, &shared.slo);
        let sum = exported.entry(view.name).or_default();
        sum.batch += view.in_flight.batch;
        sum.queue += view.in_flight.queue;
        sum.load_per_s += view.load_per_s;
        if let Some(estimate) = view.estimate {
            *sum.knee_per_s.get_or_insert(0.0) += estimate.knee_per_s;
        }
    }
    for (name, sum) in exported.iter() {
        let set = |metric: &telemetry::Metric, value: f64| gauge!(metric.name, "model" => name.clone()).set(value);
        set(&OUTSIDE_BATCH, f64::from(sum.batch));
        set(&OUTSIDE_QUEUE, f64::from(sum.queue));
        set(&OUTSIDE_LOAD_REQUESTS_PER_SECOND, sum.load_per_s);
        if let Some(knee_per_s) = sum.knee_per_s.filter(|knee_per_s| *knee_per_s > 0.0) {
            set(&OUTSIDE_KNEE_REQUESTS_PER_SECOND, knee_per_s);
            set(&OUTSIDE_HEADROOM_RATIO, 1.0 - sum.load_per_s / knee_per_s);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_asks_for_depends_on_the_hop() {
        let check = |ask, role: &PortRole, at_ns, want: Option<outside::Ask>| {
            let flow = FlowSample::Start { port: 1, flow: 2, at_ns, request_bytes: 3, max_tokens: None, ask };
            let want = want.map(|ask| Sample::Start { flow: 2, at_ns, request_bytes: 3, ask });
            assert_eq!(sample(&flow, role), want, "{flow:?} {role:?}");
        };
        let foreign = PortRole::Foreign { name: "x".into() };
        let engine = PortRole::Engine { model: "m".into(), instance: "i".into() };
        check(Ask::Nothing, &foreign, 9, Some(outside::Ask::Nothing));
        check(Ask::Nothing, &engine, 9, Some(outside::Ask::Nothing));
        check(Ask::Whole, &foreign, 9, Some(outside::Ask::Whole));
        check(Ask::Whole, &engine, 9, Some(outside::Ask::Stream));
        check(Ask::Unknown, &foreign, 9, Some(outside::Ask::Stream));
        check(Ask::Stream, &foreign, 9, Some(outside::Ask::Stream));
        check(Ask::Stream, &foreign, 0, None);
    }
}
