//! Instances in a fleet: they start, load their weights, serve, drain and die; and what faults do to them.

use super::Policy;
use super::chaos::Fault;
use super::engine::Engine;
use super::view::Wanted;
use super::world::{Event, Instance, World};
use crate::check::{Invariant, Violation, ensure};
use crate::{NS_PER_MS, NS_PER_S, ns};
use controller_core::action::{Action, ActionKind};
use controller_core::snapshot::InstanceState;

/// Cold starts kept per model, as the state database keeps them.
const COLD_STARTS_KEPT: usize = 32;
/// Time that an instance has for its streams when a count takes it away, ns.
const DRAIN_NS: u64 = 300 * NS_PER_S;

/// What a node has besides devices.
#[derive(Clone, Debug, Default)]
pub(super) struct Node {
    /// Models in host memory, used last at the end.
    cached: Vec<u32>,
    /// Models that came from the store.
    fetched: Vec<u32>,
}

impl World<'_> {
    /// Carries out what a policy wants, but for what a fault swallows.
    pub(super) fn apply(&mut self, wanted: Wanted) -> Result<(), Violation> {
        match wanted {
            Wanted::Counts(counts) => counts.into_iter().try_for_each(|(model, count)| self.scale(model, count)),
            Wanted::Actions(actions) => actions.iter().try_for_each(|action| self.act(action)),
        }
    }

    fn act(&mut self, action: &Action) -> Result<(), Violation> {
        if action.epoch != self.epoch || (self.loaded() && self.chance.chance(self.config.faults.action_lost)) {
            return Ok(());
        }
        match &action.kind {
            ActionKind::Start { instance, model, placement, .. } => {
                let Ok(model) = self.work.models.binary_search(model) else { return Ok(()) };
                for device in placement.cores() {
                    self.start(model as u32, device, instance.clone(), placement.bytes())?;
                }
            }
            ActionKind::Drain { instance, deadline_ms } => {
                if let Some(at) = self.live.get(instance).copied() {
                    self.drain(at, deadline_ms.saturating_mul(NS_PER_MS));
                }
            }
            // A node's cache of weights is the fleet's own here, and no policy is told of it.
            ActionKind::Prefetch { .. } | ActionKind::Forget { .. } => {}
        }
        Ok(())
    }

    /// Brings a model to a count: further instances on free devices, where its weights are in host memory first; or
    /// fewer, those that are starting first, then those with the least load.
    fn scale(&mut self, model: u32, count: u32) -> Result<(), Violation> {
        let have = self.sights[model as usize].have();
        for _ in have..count {
            let Some(device) = self.best_device(model) else {
                self.report.no_room += u64::from(count - self.sights[model as usize].have());
                return Ok(());
            };
            self.named += 1;
            let id = format!("{model}-{}", self.named);
            self.start(model, device, id, self.config.cold_start.weights_bytes)?;
        }
        for _ in count..have {
            let starting = self.live.values().copied().find(|at| {
                let instance = &self.instances[*at as usize];
                instance.model == model && instance.state == InstanceState::Starting
            });
            let starting = if self.sights[model as usize].starting > 0 { starting } else { None };
            let Some(at) = starting.or(self.routable[model as usize].first().map(|(_, at)| *at)) else { break };
            self.drain(at, DRAIN_NS);
        }
        Ok(())
    }

    fn best_device(&self, model: u32) -> Option<u32> {
        let warm = |device: &&u32| self.nodes[self.node_of(**device)].cached.contains(&model);
        let cached = if self.config.storage.host_bytes > 0 { self.free.iter().find(warm) } else { None };
        cached.or(self.free.first()).copied()
    }

    fn node_of(&self, device: u32) -> usize {
        (device / self.config.devices_per_node.max(1)) as usize
    }

    /// A process on a device. What is overcommitted is named by the checker; a device that is gone starts nothing.
    fn start(&mut self, model: u32, device: u32, id: String, bytes: u64) -> Result<(), Violation> {
        let now_ns = self.now_ns;
        let Some(owner) = self.owners.get(device as usize).copied() else {
            let known = ensure(false, Invariant::DeviceGivenOnce, now_ns, || format!("there is no device {device}"));
            return self.judge(known);
        };
        let alone = ensure(owner.is_none(), Invariant::DeviceGivenOnce, now_ns, || {
            format!("device {device} is given to {id} while {owner:?} has it")
        });
        self.judge(alone)?;
        let fits = bytes <= self.config.cold_start.weights_bytes;
        let fits = ensure(fits, Invariant::MemoryWithinBudget, now_ns, || format!("{id} takes {bytes} bytes"));
        self.judge(fits)?;
        if owner.is_some() || self.down[device as usize] > 0 || self.live.contains_key(&id) {
            return Ok(());
        }
        self.flaps(model)?;
        let at = self.instances.len() as u32;
        self.owners[device as usize] = Some(at);
        self.free.remove(&device);
        self.live.insert(id.clone(), at);
        self.instances.push(Instance {
            id,
            model,
            device,
            state: InstanceState::Starting,
            gone: false,
            bytes,
            engine: Engine::new(self.config.engines, now_ns, &self.config.engine),
            spawned_ns: now_ns,
            ready_ns: None,
            last_used_ns: now_ns,
            version: 0,
        });
        self.sights[model as usize].starting += 1;
        self.report.starts += 1;
        let cold = self.config.cold_start;
        let process_ns = ns(cold.process_s * (cold.spread * self.cold.normal()).exp());
        if self.loaded() && self.chance.chance(self.config.faults.start_fails) {
            let dies_ns = (process_ns as f64 * self.chance.unit()) as u64;
            self.push(now_ns + dies_ns, Event::StartDies(at));
        } else {
            self.push(now_ns + process_ns, Event::Process(at));
        }
        Ok(())
    }

    /// The process is there: its weights come from host memory, from the node's disk or from the store.
    pub(super) fn load_weights(&mut self, at: u32) -> Result<(), Violation> {
        let instance = &self.instances[at as usize];
        if instance.gone {
            return Ok(());
        }
        let (model, bytes, node) = (instance.model, instance.bytes, self.node_of(instance.device));
        let storage = &self.config.storage;
        if self.nodes[node].cached.contains(&model) {
            let wait_ns = ns(bytes as f64 / storage.host_bytes_per_s.max(1.0));
            self.push(self.now_ns + wait_ns, Event::Loaded(at));
            return Ok(());
        }
        let local = storage.on_disk || self.nodes[node].fetched.contains(&model);
        let link = if local { node } else { self.links.len() - 1 };
        if !local {
            self.nodes[node].fetched.push(model);
        }
        self.link_moves(link as u32)?;
        self.links[link].begin(at, bytes);
        self.link_moves(link as u32)
    }

    /// Brings a link to now, and makes ready whose weights are there.
    pub(super) fn link_moves(&mut self, link: u32) -> Result<(), Violation> {
        let slot = link as usize;
        let complete = self.links[slot].advance(self.now_ns);
        self.link_versions[slot] = self.link_versions[slot].wrapping_add(1);
        if let Some(due_ns) = self.links[slot].due_ns() {
            self.push(due_ns.max(self.now_ns), Event::Link(link, self.link_versions[slot]));
        }
        complete.into_iter().try_for_each(|at| self.ready(at))
    }

    /// The instance serves.
    pub(super) fn ready(&mut self, at: u32) -> Result<(), Violation> {
        let now_ns = self.now_ns;
        let instance = &mut self.instances[at as usize];
        if instance.gone || instance.state != InstanceState::Starting {
            return Ok(());
        }
        instance.state = InstanceState::Ready;
        instance.ready_ns = Some(now_ns);
        instance.last_used_ns = now_ns;
        instance.engine = Engine::new(self.config.engines, now_ns, &self.config.engine);
        let (model, device) = (instance.model, instance.device);
        let sight = &mut self.sights[model as usize];
        sight.starting -= 1;
        sight.ready += 1;
        sight.cold_start_ms.push((now_ns - instance.spawned_ns) as f64 / NS_PER_MS as f64);
        let surplus = sight.cold_start_ms.len().saturating_sub(COLD_STARTS_KEPT);
        sight.cold_start_ms.drain(..surplus);
        self.routable[model as usize].insert((0, at));
        self.remember(model, device);
        self.dispatch(model, false)
    }

    /// The node's host memory has the model's weights, and not those that were used longest ago.
    fn remember(&mut self, model: u32, device: u32) {
        let kept = (self.config.storage.host_bytes / self.config.cold_start.weights_bytes.max(1)) as usize;
        let node = self.node_of(device);
        let cached = &mut self.nodes[node].cached;
        cached.retain(|other| *other != model);
        cached.push(model);
        let surplus = cached.len().saturating_sub(kept);
        cached.drain(..surplus);
    }

    /// Takes an instance out of routing; it goes when its streams are done, or at the deadline.
    fn drain(&mut self, at: u32, deadline_ns: u64) {
        let instance = &mut self.instances[at as usize];
        let (model, load) = (instance.model, instance.engine.load());
        let sight = &mut self.sights[model as usize];
        match instance.state {
            InstanceState::Draining => return,
            InstanceState::Ready => sight.ready -= 1,
            InstanceState::Starting => sight.starting -= 1,
        }
        sight.draining += 1;
        instance.state = InstanceState::Draining;
        self.routable[model as usize].remove(&(load, at));
        self.report.drains += 1;
        self.drained(at);
        self.push(self.now_ns + deadline_ns, Event::DrainDeadline(at));
        self.leave_if_drained(at);
    }

    pub(super) fn leave_if_drained(&mut self, at: u32) {
        let instance = &self.instances[at as usize];
        if instance.state == InstanceState::Draining && !instance.gone && instance.engine.load() == 0 {
            self.remove(at);
        }
    }

    /// The process ends; its device is free if it works.
    fn remove(&mut self, at: u32) {
        let instance = &mut self.instances[at as usize];
        instance.gone = true;
        let (model, device, load) = (instance.model, instance.device, instance.engine.load());
        self.live.remove(&instance.id);
        let sight = &mut self.sights[model as usize];
        match instance.state {
            InstanceState::Starting => sight.starting -= 1,
            InstanceState::Ready => sight.ready -= 1,
            InstanceState::Draining => sight.draining -= 1,
        }
        self.routable[model as usize].remove(&(load, at));
        self.links.iter_mut().for_each(|link| link.cancel(at));
        self.owners[device as usize] = None;
        if self.down[device as usize] == 0 {
            self.free.insert(device);
        }
    }

    /// The process dies; its requests wait again.
    pub(super) fn kill(&mut self, at: u32) -> Result<(), Violation> {
        if self.instances[at as usize].gone {
            return Ok(());
        }
        self.serve(at)?;
        if self.instances[at as usize].gone {
            return Ok(());
        }
        let model = self.instances[at as usize].model;
        let load = self.instances[at as usize].engine.load();
        self.routable[model as usize].remove(&(load, at));
        let jobs = self.instances[at as usize].engine.abandon();
        self.come_back(model, jobs);
        self.remove(at);
        // The exit of a process is an event that brings the tick forward.
        self.next_tick_ns = self.next_tick_ns.min(self.now_ns + NS_PER_MS);
        self.dispatch(model, false)
    }

    /// One fault, and the wait for the next.
    pub(super) fn go_wrong(&mut self, policy: &mut dyn Policy) -> Result<(), Violation> {
        if !self.loaded() {
            return Ok(());
        }
        if let Some(wait_ns) = self.config.faults.wait_ns(&mut self.chance) {
            self.push(self.now_ns + wait_ns, Event::Fault);
        }
        let fault = Fault::drawn(&mut self.chance);
        let lasts_ns = fault.lasts_ns(&mut self.chance);
        *self.report.faults.entry(fault).or_default() += 1;
        let device = self.chance.between(0, u64::from(self.config.devices) - 1) as u32;
        let node = self.node_of(device) as u32;
        match fault {
            Fault::DeviceLost => self.device_lost(device, lasts_ns)?,
            Fault::NodeLost => {
                let per_node = self.config.devices_per_node.max(1);
                for device in node * per_node..((node + 1) * per_node).min(self.config.devices) {
                    self.device_lost(device, lasts_ns)?;
                }
                self.nodes[node as usize].cached.clear();
            }
            Fault::InstanceDied => {
                let nth = self.chance.between(0, self.live.len().max(1) as u64 - 1) as usize;
                if let Some(at) = self.live.values().nth(nth).copied() {
                    self.kill(at)?;
                }
            }
            Fault::SlowDisk => {
                self.disk_speed(node, 0.1)?;
                self.push(self.now_ns + lasts_ns, Event::DiskBack(node));
            }
            Fault::SignalsLost => self.blind_until_ns = self.now_ns + lasts_ns,
            Fault::ControllerRestarted => {
                policy.restart();
                self.epoch += 1;
                self.next_tick_ns = self.now_ns + NS_PER_MS;
            }
            Fault::ClockJumped => self.ahead_ns += lasts_ns,
        }
        Ok(())
    }

    fn device_lost(&mut self, device: u32, lasts_ns: u64) -> Result<(), Violation> {
        self.down[device as usize] += 1;
        self.free.remove(&device);
        self.up.retain(|other| *other != device);
        self.push(self.now_ns + lasts_ns, Event::DeviceBack(device));
        self.owners[device as usize].map_or(Ok(()), |at| self.kill(at))
    }

    pub(super) fn device_back(&mut self, device: u32) {
        let down = &mut self.down[device as usize];
        *down -= 1;
        if *down == 0 {
            let place = self.up.partition_point(|other| *other < device);
            self.up.insert(place, device);
            if self.owners[device as usize].is_none() {
                self.free.insert(device);
            }
        }
    }

    pub(super) fn disk_speed(&mut self, node: u32, speed: f64) -> Result<(), Violation> {
        self.link_moves(node)?;
        self.links[node as usize].speed = speed;
        self.link_moves(node)
    }
}
