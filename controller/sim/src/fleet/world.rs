//! The run itself: arrivals, events and ticks in order of time.

use super::checks::LastDrain;
use super::coverage::Coverage;
use super::engine::{Done, Engine, Job};
use super::lifecycle::Node;
use super::link::Link;
use super::report::{Moment, Report};
use super::view::{ModelSight, View};
use super::{Config, Policy, Work};
use crate::check::{Invariant, Violation, ensure};
use crate::random::Random;
use crate::{NS_PER_MS, NS_PER_S, ns};
use controller_core::snapshot::InstanceState;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

/// Moments that a run is drawn with.
const MOMENTS: u64 = 600;

/// One instance that runs or ran.
#[derive(Debug)]
pub(super) struct Instance {
    pub id: String,
    pub model: u32,
    pub device: u32,
    pub state: InstanceState,
    pub gone: bool,
    pub bytes: u64,
    pub engine: Engine,
    pub spawned_ns: u64,
    pub ready_ns: Option<u64>,
    pub last_used_ns: u64,
    /// The engine's event that counts; earlier ones are stale.
    pub version: u32,
}

/// One request's way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub arrived_ns: u64,
    pub first_ns: u64,
    pub model: u32,
    pub output_tokens: u32,
    pub ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    /// An engine has something to tell, if the version is still its own.
    Engine(u32, u32),
    /// A process has started and goes on to its weights.
    Process(u32),
    /// A load through a link is complete, if the version is still its own.
    Link(u32, u32),
    /// Weights came from host memory.
    Loaded(u32),
    StartDies(u32),
    DrainDeadline(u32),
    Fault,
    DeviceBack(u32),
    DiskBack(u32),
    Moment,
    /// A stretch of time begins or ends of which the policy has stated something for a model.
    Stretch(u32),
}

pub(super) struct World<'a> {
    pub config: &'a Config,
    pub work: Work<'a>,
    pub now_ns: u64,
    next_arrival: usize,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    sequence: u64,
    pub next_tick_ns: u64,
    pub instances: Vec<Instance>,
    pub live: BTreeMap<String, u32>,
    /// Ready instances of each model by their load.
    pub routable: Vec<BTreeSet<(u32, u32)>>,
    pub held: Vec<VecDeque<Job>>,
    pub requests: Vec<Request>,
    pub sights: Vec<ModelSight>,
    /// Who is on each device.
    pub owners: Vec<Option<u32>>,
    /// How many faults keep each device away.
    pub down: Vec<u32>,
    pub up: Vec<u32>,
    pub free: BTreeSet<u32>,
    pub nodes: Vec<Node>,
    /// One for each node, and the last for the store.
    pub links: Vec<Link>,
    pub link_versions: Vec<u32>,
    pub chance: Random,
    pub cold: Random,
    pub blind_until_ns: u64,
    pub epoch: u64,
    pub ahead_ns: u64,
    pub last_drains: BTreeMap<u32, LastDrain>,
    pub coverage: Coverage,
    pub named: u64,
    /// Requests that came in since the last moment, and those that are not ended.
    arrived: u64,
    pub open: u64,
    pub report: Report,
    pub done: Vec<Done>,
    pub measure_from_ns: u64,
}

/// Runs a policy against work. Ends when the load has ended and every request with it, or when the time to settle is over.
pub fn run(config: &Config, work: Work<'_>, policy: &mut dyn Policy) -> Result<Report, Violation> {
    run_watched(config, work, policy, &mut |_| {})
}

/// The same, telling now and then how far it is, 0..1.
pub fn run_watched(
    config: &Config,
    work: Work<'_>,
    policy: &mut dyn Policy,
    progress: &mut dyn FnMut(f64),
) -> Result<Report, Violation> {
    let mut world = World::new(config, work);
    let end_ns = work.duration_ns + ns(config.settle_s);
    while world.now_ns < end_ns && !world.finished() {
        world.step(policy, progress)?;
    }
    world.conclude(policy)
}

impl<'a> World<'a> {
    fn new(config: &'a Config, work: Work<'a>) -> Self {
        let random = Random::new(config.seed);
        let (devices, models) = (config.devices, work.models.len());
        let nodes = devices.div_ceil(config.devices_per_node.max(1)) as usize;
        let storage = &config.storage;
        let mut links = vec![Link::new(storage.disk_bytes_per_s); nodes];
        links.push(Link::new(storage.remote_bytes_per_s));
        let mut world = Self {
            config,
            work,
            now_ns: 0,
            next_arrival: 0,
            events: BinaryHeap::new(),
            sequence: 0,
            next_tick_ns: NS_PER_MS,
            instances: Vec::new(),
            live: BTreeMap::new(),
            routable: vec![BTreeSet::new(); models],
            held: vec![VecDeque::new(); models],
            requests: Vec::with_capacity(work.arrivals.len()),
            sights: vec![ModelSight::default(); models],
            owners: vec![None; devices as usize],
            down: vec![0; devices as usize],
            up: (0..devices).collect(),
            free: (0..devices).collect(),
            nodes: vec![Node::default(); nodes],
            link_versions: vec![0; links.len()],
            links,
            chance: random.fork(1),
            cold: random.fork(2),
            blind_until_ns: 0,
            epoch: 1,
            ahead_ns: 0,
            last_drains: BTreeMap::new(),
            coverage: Coverage::default(),
            named: 0,
            arrived: 0,
            open: 0,
            report: Report::default(),
            done: Vec::new(),
            measure_from_ns: ns(config.measure_from_s),
        };
        world.push(world.moment_ns(), Event::Moment);
        if let Some(wait_ns) = config.faults.wait_ns(&mut world.chance) {
            world.push(wait_ns, Event::Fault);
        }
        world
    }

    pub fn push(&mut self, at_ns: u64, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((at_ns, self.sequence, event)));
    }

    /// Whether the load still comes, and faults with it.
    pub fn loaded(&self) -> bool {
        self.now_ns < self.work.duration_ns
    }

    fn finished(&self) -> bool {
        !self.loaded() && self.next_arrival == self.work.arrivals.len() && self.open == 0 && self.live.is_empty()
    }

    fn moment_ns(&self) -> u64 {
        (self.work.duration_ns / MOMENTS).max(NS_PER_S)
    }

    fn step(&mut self, policy: &mut dyn Policy, progress: &mut dyn FnMut(f64)) -> Result<(), Violation> {
        let arrival_ns = self.work.arrivals.get(self.next_arrival).map_or(u64::MAX, |arrival| arrival.at_ns);
        let event_ns = self.events.peek().map_or(u64::MAX, |event| event.0.0);
        let next_ns = arrival_ns.min(event_ns).min(self.next_tick_ns);
        self.account(next_ns);
        self.now_ns = next_ns;
        if arrival_ns == next_ns {
            self.arrived += 1;
            self.next_arrival += 1;
            return self.arrive(self.next_arrival - 1, policy.eager());
        }
        if event_ns == next_ns {
            let Some(Reverse((_, _, event))) = self.events.pop() else { return Ok(()) };
            if event == Event::Moment {
                progress((self.now_ns as f64 / self.work.duration_ns.max(1) as f64).min(1.0));
            }
            return self.happen(event, policy);
        }
        self.tick(policy)
    }

    /// Device time up to the next step, of the part that is measured.
    fn account(&mut self, next_ns: u64) {
        let from_ns = self.now_ns.max(self.measure_from_ns);
        let dt_ns = next_ns.min(self.work.duration_ns).saturating_sub(from_ns);
        self.report.device_s += self.live.len() as f64 * dt_ns as f64 / NS_PER_S as f64;
    }

    fn happen(&mut self, event: Event, policy: &mut dyn Policy) -> Result<(), Violation> {
        let eager = policy.eager();
        match event {
            Event::Engine(at, version) => {
                let instance = &self.instances[at as usize];
                if !instance.gone && instance.version == version {
                    self.serve(at)?;
                    self.dispatch(self.instances[at as usize].model, eager)?;
                }
            }
            Event::Process(at) => self.load_weights(at)?,
            Event::Link(link, version) => {
                if self.link_versions[link as usize] == version {
                    self.link_moves(link)?;
                }
            }
            Event::Loaded(at) => self.ready(at)?,
            Event::StartDies(at) => self.kill(at)?,
            Event::DrainDeadline(at) => {
                if self.instances[at as usize].state == InstanceState::Draining {
                    self.kill(at)?;
                }
            }
            Event::Fault => self.go_wrong(policy)?,
            Event::DeviceBack(device) => self.device_back(device),
            Event::DiskBack(node) => self.disk_speed(node, 1.0)?,
            Event::Moment => self.moment(),
            Event::Stretch(model) => self.stretch(model),
        }
        Ok(())
    }

    fn moment(&mut self) {
        let every_ns = self.moment_ns();
        let sum = |what: fn(&ModelSight) -> u32| self.sights.iter().map(what).sum::<u32>();
        let moment = Moment {
            at_s: self.now_ns as f64 / NS_PER_S as f64,
            arrivals_per_s: self.arrived as f64 * NS_PER_S as f64 / every_ns as f64,
            present: sum(ModelSight::load),
            held: sum(|sight| sight.held),
            ready: sum(|sight| sight.ready),
            devices: self.live.len() as u32,
        };
        self.report.moments.push(moment);
        self.arrived = 0;
        if self.now_ns < self.work.duration_ns {
            self.push(self.now_ns + every_ns, Event::Moment);
        }
    }

    fn view(&self) -> View<'_> {
        View {
            now_ns: self.now_ns + self.ahead_ns,
            models: &self.sights,
            names: self.work.models,
            devices: &self.up,
            epoch: self.epoch,
            max_batch: self.config.engine.max_batch,
            instance_bytes: self.config.cold_start.weights_bytes,
            live: &self.live,
            instances: &self.instances,
            ahead_ns: self.ahead_ns,
        }
    }

    fn tick(&mut self, policy: &mut dyn Policy) -> Result<(), Violation> {
        if self.now_ns < self.blind_until_ns {
            self.next_tick_ns = self.blind_until_ns;
            return Ok(());
        }
        self.report.ticks += 1;
        if policy.detailed() {
            let live: Vec<u32> = self.live.values().copied().collect();
            for at in live {
                if self.instances[at as usize].engine.load() > 0 {
                    self.serve(at)?;
                }
            }
        }
        let now_ns = self.now_ns;
        self.sights.iter_mut().for_each(|sight| sight.integrate(now_ns));
        let faults = self.config.faults;
        let twice = self.loaded() && self.chance.chance(faults.asked_twice);
        let (tick, same) = {
            let view = self.view();
            let tick = policy.tick(&view);
            (tick, !twice || policy.idempotent(&view))
        };
        self.next_tick_ns = tick.next_ns.saturating_sub(self.ahead_ns).max(self.now_ns + NS_PER_MS);
        let asked = ensure(same, Invariant::Idempotent, now_ns, || "asked again, it wants more".to_owned());
        self.judge(asked)?;
        let told = ensure(tick.unexplained.is_none(), Invariant::EveryActionExplained, now_ns, || {
            tick.unexplained.clone().unwrap_or_default()
        });
        self.judge(told)?;
        self.take_statements(policy);
        self.apply(tick.wanted)?;
        self.check_tick()?;
        self.report.peak_devices = self.report.peak_devices.max(self.live.len() as u32);
        for model in 0..self.held.len() {
            if !self.held[model].is_empty() {
                self.dispatch(model as u32, false)?;
            }
        }
        Ok(())
    }

    fn conclude(mut self, policy: &dyn Policy) -> Result<Report, Violation> {
        self.check_end()?;
        self.check_coverage()?;
        self.report.policy = policy.name().to_owned();
        self.report.requests = self.requests.len() as u64;
        self.report.left = self.live.len() as u32;
        self.report.ttft_ms.sort_by(f32::total_cmp);
        self.report.itl_ms.sort_by(f32::total_cmp);
        Ok(self.report)
    }
}
