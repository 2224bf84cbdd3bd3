//! One run: events in order of time, the tick among them, and the checkers after each tick.

use crate::check::{Invariant, Violation, ensure};
use crate::cluster::{Applied, Cluster, ClusterModel};
use crate::engine::{Request, Speed};
use crate::faults::Faults;
use crate::gateway::{Gateway, HELD_MAX, Outcome};
use crate::random::Random;
use crate::workload::Workload;
use crate::{NS_PER_MS, NS_PER_S, ns};
use controller_core::action::{Decision, Effects, Reason};
use controller_core::snapshot::{InstanceState, Snapshot};
use controller_core::{Nanos, Policy, State};
use std::collections::{BTreeMap, BTreeSet};

/// The function under test: `controller_core::tick`, or a broken one that a checker must catch.
pub type Planner = fn(&mut State, &Snapshot) -> Effects;

/// Under steady load one drain in so many may be regretted: arrivals are random, so now and then the next
/// one comes just after an instance went, whatever the planner does.
const REGRET_SHARE: usize = 8;

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub seed: u64,
    pub cores: u32,
    pub cores_per_instance: u32,
    pub memory_budget_bytes: u64,
    pub models: Vec<SimModel>,
    /// How long requests arrive, s.
    pub load_s: f64,
    /// How long the run may go on after that, s.
    pub settle_s: f64,
    pub faults: Faults,
    pub policy: Policy,
    /// The load is steady, so that a drain followed by a start is flapping.
    pub steady: bool,
    /// Longest that a request may be held, s.
    pub starve_limit_s: f64,
}

/// A registered model and its traffic.
#[derive(Clone, Debug)]
pub struct SimModel {
    pub name: String,
    pub workload: Workload,
    pub instance_bytes: u64,
    /// Median cold start, s; the distribution has a tail of half of it.
    pub cold_start_s: f64,
    pub speed: Speed,
}

/// What happened.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    pub requests: usize,
    pub answered: usize,
    pub refused: usize,
    pub starts: usize,
    pub drains: usize,
    /// Drains that were followed by a start of the same model within a cold start; counted under steady load.
    pub regretted: usize,
    pub deaths: usize,
    pub restarts: usize,
    pub ticks: usize,
    /// Most instances that were there at once.
    pub peak_instances: usize,
    /// Most ready instances of each model.
    pub peak_ready: BTreeMap<String, usize>,
    /// Instances at the end.
    pub final_instances: usize,
    /// Integral of instances over time, s.
    pub instance_s: f64,
    /// Time from arrival to an engine, ms, sorted.
    pub waited_ms: Vec<f64>,
    pub decisions: Vec<Decision>,
}

#[derive(Clone, Debug)]
enum Event {
    Arrival { model: usize, request: Request },
    Ready(String),
    Wake(String),
    StartDies(String),
    Death,
    Restart,
    DrainDeadline(String),
}

struct World<'a> {
    scenario: &'a Scenario,
    planner: Planner,
    cluster: Cluster,
    gateway: Gateway,
    state: State,
    events: BTreeMap<(Nanos, u64), Event>,
    sequence: u64,
    next_tick_ns: Nanos,
    now_ns: Nanos,
    /// When each engine is already due to be looked at.
    wakes: BTreeMap<String, Nanos>,
    chance: Random,
    cold: Random,
    last_drain_ns: BTreeMap<String, Nanos>,
    report: Report,
}

/// Runs a scenario to its end or to the first broken invariant.
pub fn run(scenario: &Scenario, planner: Planner) -> Result<Report, Violation> {
    let mut world = World::new(scenario, planner);
    let end_ns = ns(scenario.load_s + scenario.settle_s);
    while world.now_ns < end_ns && !world.finished() {
        world.step()?;
    }
    world.conclude()
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario, planner: Planner) -> Self {
        let random = Random::new(scenario.seed);
        let mut world = Self {
            scenario,
            planner,
            cluster: Cluster::new(scenario.cores, scenario.cores_per_instance, scenario.memory_budget_bytes),
            gateway: Gateway::default(),
            state: State::new(scenario.policy.clone()),
            events: BTreeMap::new(),
            sequence: 0,
            next_tick_ns: NS_PER_MS,
            now_ns: 0,
            wakes: BTreeMap::new(),
            chance: random.fork(1),
            cold: random.fork(2),
            last_drain_ns: BTreeMap::new(),
            report: Report::default(),
        };
        for (at, model) in scenario.models.iter().enumerate() {
            let known = ClusterModel {
                revision: format!("{}@1", model.name),
                instance_bytes: model.instance_bytes,
                speed: model.speed,
                cold_start_ms: Vec::new(),
            };
            world.cluster.models.insert(model.name.clone(), known);
            for arrival in model.workload.arrivals(scenario.load_s, &mut random.fork(100 + at as u64)) {
                let request = Request {
                    id: world.report.requests,
                    arrived_ns: arrival.at_ns,
                    prompt_tokens: arrival.prompt_tokens,
                    remaining_tokens: f64::from(arrival.output_tokens),
                };
                world.report.requests += 1;
                world.push(arrival.at_ns, Event::Arrival { model: at, request });
            }
        }
        world.next_fault(scenario.faults.mean_time_to_death_s, Event::Death);
        world.next_fault(scenario.faults.mean_time_to_restart_s, Event::Restart);
        world
    }

    fn push(&mut self, at_ns: Nanos, event: Event) {
        self.sequence += 1;
        self.events.insert((at_ns, self.sequence), event);
    }

    fn faulty(&self) -> bool {
        self.now_ns < ns(self.scenario.load_s)
    }

    fn next_fault(&mut self, mean_s: f64, event: Event) {
        if mean_s > 0.0 {
            let at_ns = self.now_ns + ns(self.chance.exponential(mean_s)).max(1);
            self.push(at_ns, event);
        }
    }

    /// Everything has arrived and ended, and nothing runs.
    fn finished(&self) -> bool {
        !self.faulty() && self.gateway.outcomes.len() == self.report.requests && self.cluster.engines.is_empty()
    }

    fn step(&mut self) -> Result<(), Violation> {
        let due_ns = self.events.first_key_value().map_or(Nanos::MAX, |(key, _)| key.0);
        let next_ns = due_ns.min(self.next_tick_ns);
        let alive = self.cluster.engines.len() as f64;
        self.report.instance_s += alive * next_ns.saturating_sub(self.now_ns) as f64 / NS_PER_S as f64;
        self.now_ns = next_ns;
        if self.next_tick_ns < due_ns {
            return self.tick();
        }
        let Some((_, event)) = self.events.pop_first() else { return Ok(()) };
        self.happen(event)?;
        self.dispatch()
    }

    fn happen(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Arrival { model, request } => {
                let name = self.scenario.models[model].name.clone();
                self.gateway.arrive(&name, request);
            }
            Event::Ready(instance) => self.cluster.ready(&instance, self.now_ns),
            Event::Wake(instance) => {
                self.wakes.remove(&instance);
                self.advance(&instance)?;
            }
            Event::StartDies(instance) => self.kill(&instance)?,
            Event::Death => self.death()?,
            Event::Restart => self.restart(),
            Event::DrainDeadline(instance) => {
                if self.cluster.engines.get(&instance).is_some_and(|engine| engine.drain_deadline_ns.is_some()) {
                    self.kill(&instance)?;
                }
            }
        }
        Ok(())
    }

    /// Brings one engine to now, answers what it finished, and removes it when it has drained.
    fn advance(&mut self, instance: &str) -> Result<(), Violation> {
        let Some(engine) = self.cluster.engines.get_mut(instance) else { return Ok(()) };
        let done = engine.advance(self.now_ns);
        let model = engine.model.clone();
        let drained = engine.state == InstanceState::Draining && engine.load() == 0;
        for request in &done {
            self.gateway.answer(&model, request, self.now_ns)?;
        }
        if drained {
            self.cluster.engines.remove(instance);
            self.wakes.remove(instance);
            return Ok(());
        }
        self.schedule_wake(instance);
        Ok(())
    }

    fn schedule_wake(&mut self, instance: &str) {
        let Some(at_ns) = self.cluster.engines.get(instance).and_then(|engine| engine.next_finish_ns()) else { return };
        if self.wakes.get(instance).is_some_and(|due_ns| *due_ns <= at_ns && *due_ns >= self.now_ns) {
            return;
        }
        self.wakes.insert(instance.to_owned(), at_ns);
        self.push(at_ns, Event::Wake(instance.to_owned()));
    }

    fn kill(&mut self, instance: &str) -> Result<(), Violation> {
        self.advance(instance)?;
        let Some(mut engine) = self.cluster.engines.remove(instance) else { return Ok(()) };
        self.wakes.remove(instance);
        let streams = engine.abandon();
        self.gateway.come_back(&engine.model, streams);
        // The exit of a process is an event that brings the tick forward.
        self.next_tick_ns = self.next_tick_ns.min(self.now_ns + NS_PER_MS);
        Ok(())
    }

    fn death(&mut self) -> Result<(), Violation> {
        if !self.faulty() {
            return Ok(());
        }
        let ready: Vec<String> = self.cluster.engines.keys().cloned().collect();
        if !ready.is_empty() {
            let at = self.chance.between(0, ready.len() as u64 - 1) as usize;
            self.report.deaths += 1;
            self.kill(&ready[at])?;
        }
        self.next_fault(self.scenario.faults.mean_time_to_death_s, Event::Death);
        Ok(())
    }

    fn restart(&mut self) {
        if !self.faulty() {
            return;
        }
        self.report.restarts += 1;
        self.state = State::new(self.scenario.policy.clone());
        self.cluster.epoch += 1;
        self.gateway.restart_counters();
        self.next_tick_ns = self.now_ns + NS_PER_MS;
        self.next_fault(self.scenario.faults.mean_time_to_restart_s, Event::Restart);
    }

    /// Routes what is held; what stays held brings the tick forward when nothing serves its model.
    fn dispatch(&mut self) -> Result<(), Violation> {
        let names: Vec<String> = self.gateway.queues.keys().cloned().collect();
        for name in names {
            while let Some(instance) = self.routed(&name)? {
                self.schedule_wake(&instance);
            }
            let held = self.gateway.queues.get(&name).is_some_and(|queue| !queue.held.is_empty());
            let served = self.cluster.engines.values().any(|engine| engine.model == name);
            if held && !served {
                self.next_tick_ns = self.next_tick_ns.min(self.now_ns + NS_PER_MS);
            }
        }
        Ok(())
    }

    fn routed(&mut self, model: &str) -> Result<Option<String>, Violation> {
        let Some(queue) = self.gateway.queues.get_mut(model).filter(|queue| !queue.held.is_empty()) else {
            return Ok(None);
        };
        let Some((instance, engine)) = self.cluster.route(model) else { return Ok(None) };
        let Some(request) = queue.held.pop_front() else { return Ok(None) };
        let done = engine.advance(self.now_ns);
        let waited_ns = self.now_ns.saturating_sub(request.arrived_ns);
        engine.submit(request, self.now_ns);
        self.gateway.waited_ms.push(waited_ns as f64 / NS_PER_MS as f64);
        for request in &done {
            self.gateway.answer(model, request, self.now_ns)?;
        }
        Ok(Some(instance))
    }

    fn tick(&mut self) -> Result<(), Violation> {
        let faults = self.scenario.faults.clone();
        self.report.ticks += 1;
        let instances: Vec<String> = self.cluster.engines.keys().cloned().collect();
        for instance in instances {
            self.advance(&instance)?;
        }
        if self.faulty() && self.chance.chance(faults.snapshot_lost) {
            self.next_tick_ns = self.now_ns + 100 * NS_PER_MS;
            return Ok(());
        }
        let snapshot = self.cluster.snapshot(&self.gateway, self.now_ns);
        let effects = (self.planner)(&mut self.state, &snapshot);
        if self.chance.chance(faults.snapshot_doubled) {
            let again = (self.planner)(&mut self.state, &snapshot);
            ensure(again.actions.is_empty(), Invariant::Idempotent, self.now_ns, || format!("{:?}", again.actions))?;
        }
        crate::refit(&mut self.state);
        self.next_tick_ns = effects.next_tick_ns.max(self.now_ns + NS_PER_MS);
        self.explained(&effects)?;
        self.apply(&effects, &faults)?;
        self.cluster.check(self.now_ns)?;
        self.check_queues()?;
        self.count();
        self.report.decisions.extend(effects.decisions);
        self.dispatch()
    }

    fn explained(&self, effects: &Effects) -> Result<(), Violation> {
        for action in &effects.actions {
            let mut stands_in = effects.decisions.iter().filter(|decision| decision.actions.contains(action));
            let told = stands_in.next().is_some_and(|decision| !decision.why.is_empty()) && stands_in.next().is_none();
            ensure(told, Invariant::EveryActionExplained, self.now_ns, || format!("{action:?}"))?;
        }
        Ok(())
    }

    fn apply(&mut self, effects: &Effects, faults: &Faults) -> Result<(), Violation> {
        let reasons: BTreeMap<&str, Reason> = effects
            .decisions
            .iter()
            .flat_map(|decision| decision.actions.iter().map(|action| (action.key.as_str(), decision.reason)))
            .collect();
        for action in &effects.actions {
            if self.faulty() && self.chance.chance(faults.action_lost) {
                continue;
            }
            match self.cluster.apply(action, self.now_ns) {
                Applied::Nothing => {}
                Applied::Started { instance, model } => self.started(&instance, &model, faults)?,
                Applied::Draining { instance, model, deadline_ns } => {
                    self.report.drains += 1;
                    if !matches!(reasons.get(action.key.as_str()), Some(Reason::Evicted | Reason::Unregistered)) {
                        self.last_drain_ns.insert(model, self.now_ns);
                    }
                    self.push(deadline_ns, Event::DrainDeadline(instance.clone()));
                    self.advance(&instance)?;
                }
            }
        }
        Ok(())
    }

    fn started(&mut self, instance: &str, model: &str, faults: &Faults) -> Result<(), Violation> {
        self.report.starts += 1;
        let Some(known) = self.scenario.models.iter().find(|known| known.name == model) else { return Ok(()) };
        let cold_ns = ns(known.cold_start_s * (0.8 + self.cold.exponential(0.25).min(3.0)));
        if self.scenario.steady {
            let drained_ns = self.last_drain_ns.get(model).copied();
            let regretted = drained_ns.is_some_and(|at| self.now_ns - at < ns(known.cold_start_s));
            self.report.regretted += usize::from(regretted);
            let (regretted, drains) = (self.report.regretted, self.report.drains);
            ensure(regretted <= 2 + drains / REGRET_SHARE, Invariant::NoFlapping, self.now_ns, || {
                format!("{regretted} of {drains} drains of {model} were followed by a start within a cold start")
            })?;
        }
        if self.faulty() && self.chance.chance(faults.start_fails) {
            let at_ns = self.now_ns + (cold_ns as f64 * self.chance.unit()) as u64;
            self.push(at_ns, Event::StartDies(instance.to_owned()));
            return Ok(());
        }
        self.push(self.now_ns + cold_ns, Event::Ready(instance.to_owned()));
        Ok(())
    }

    fn check_queues(&self) -> Result<(), Violation> {
        for (name, queue) in &self.gateway.queues {
            let batch = self.cluster.models.get(name).map_or(0, |model| model.speed.max_batch);
            let bound = HELD_MAX + self.scenario.cores as usize * batch * 4;
            let held = queue.held.len();
            ensure(held <= bound, Invariant::HeldQueueBounded, self.now_ns, || format!("{held} held for {name}"))?;
            let oldest_ns = queue.held.iter().map(|request| request.arrived_ns).min().unwrap_or(self.now_ns);
            let waits_s = self.now_ns.saturating_sub(oldest_ns) as f64 / NS_PER_S as f64;
            ensure(waits_s <= self.scenario.starve_limit_s, Invariant::NobodyStarves, self.now_ns, || {
                format!("a request for {name} is held for {waits_s:.1} s, {held} in all")
            })?;
        }
        Ok(())
    }

    fn count(&mut self) {
        let engines = &self.cluster.engines;
        self.report.peak_instances = self.report.peak_instances.max(engines.len());
        let names: BTreeSet<&String> = engines.values().map(|engine| &engine.model).collect();
        for name in names {
            let ready =
                engines.values().filter(|engine| engine.model == *name && engine.state == InstanceState::Ready).count();
            let peak = self.report.peak_ready.entry(name.clone()).or_default();
            *peak = (*peak).max(ready);
        }
    }

    fn conclude(mut self) -> Result<Report, Violation> {
        let ended = self.gateway.outcomes.len();
        ensure(ended == self.report.requests, Invariant::EveryRequestAnswered, self.now_ns, || {
            format!("{ended} of {} requests have ended", self.report.requests)
        })?;
        let left: Vec<String> = self.cluster.engines.keys().cloned().collect();
        ensure(left.is_empty(), Invariant::BackToZero, self.now_ns, || format!("still there: {left:?}"))?;
        self.report.answered = self.gateway.outcomes.values().filter(|outcome| **outcome == Outcome::Answered).count();
        self.report.refused = ended - self.report.answered;
        self.report.final_instances = left.len();
        self.report.waited_ms = std::mem::take(&mut self.gateway.waited_ms);
        self.report.waited_ms.sort_by(f64::total_cmp);
        Ok(self.report)
    }
}
