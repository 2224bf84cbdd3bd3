//! What a policy sees, and what it may ask for.

use super::world::Instance;
use controller_core::action::Action;
use controller_core::snapshot::{DeviceSlice, InstanceView, Placement, Shard};
use std::collections::BTreeMap;

/// The fleet at one moment.
pub struct View<'a> {
    /// As the controller's clock has it.
    pub now_ns: u64,
    /// One for each model, in the order of their names.
    pub models: &'a [ModelSight],
    pub names: &'a [String],
    /// Devices that work, whether or not they are in use.
    pub devices: &'a [u32],
    /// One higher with each restart of the controller.
    pub epoch: u64,
    /// Sequences at once of one instance.
    pub max_batch: u32,
    /// Bytes of one instance.
    pub instance_bytes: u64,
    pub(super) live: &'a BTreeMap<String, u32>,
    pub(super) instances: &'a [Instance],
    /// How far the controller's clock is ahead of the run's, ns.
    pub(super) ahead_ns: u64,
}

impl<'a> View<'a> {
    /// A fleet without instances, for tests of policies.
    #[cfg(test)]
    pub(crate) fn of(
        now_ns: u64,
        models: &'a [ModelSight],
        names: &'a [String],
        live: &'a BTreeMap<String, u32>,
    ) -> Self {
        Self {
            now_ns,
            models,
            names,
            devices: &[],
            epoch: 1,
            max_batch: 16,
            instance_bytes: 1,
            live,
            instances: &[],
            ahead_ns: 0,
        }
    }

    /// Everything that runs, in the order of its identity and in the controller's own terms.
    pub fn instances(&self) -> impl Iterator<Item = (&String, InstanceView)> {
        self.live.iter().map(|(id, at)| {
            let instance = &self.instances[*at as usize];
            let engine = &instance.engine;
            let totals = engine.totals();
            let ahead = |at_ns: u64| at_ns + self.ahead_ns;
            let placement = on_device(instance.device, instance.bytes);
            let view = InstanceView {
                observed_at_ns: self.now_ns,
                model: self.names[instance.model as usize].clone(),
                revision: REVISION.to_owned(),
                state: instance.state,
                placement,
                spawned_at_ns: ahead(instance.spawned_ns),
                ready_at_ns: instance.ready_ns.map(ahead),
                running: engine.running(),
                waiting: engine.waiting(),
                prefill_tokens_total: totals.prefill_tokens as u64,
                decode_tokens_total: totals.decode_tokens as u64,
                requests_total: totals.finished,
                busy_ns_total: totals.busy_ns,
                steps_total: totals.steps as u64,
                last_used_at_ns: ahead(instance.last_used_ns),
                disturbed: false,
                resident_bytes: instance.bytes,
            };
            (id, view)
        })
    }
}

/// The one revision that simulated models have.
pub const REVISION: &str = "r1";

/// A whole device as the controller places on it.
pub fn on_device(device: u32, bytes: u64) -> Placement {
    Placement { shards: vec![Shard { device: DeviceSlice::Cores(vec![device]), bytes }] }
}

/// One model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelSight {
    pub arrivals_total: u64,
    pub prompt_tokens_total: u64,
    pub output_tokens_total: u64,
    /// Requests that wait at the gateway.
    pub held: u32,
    /// Requests at instances.
    pub in_flight: u32,
    pub ready: u32,
    pub starting: u32,
    pub draining: u32,
    /// Integral of held and in-flight requests over time, s: its difference over a window is the mean concurrency.
    pub concurrency_s: f64,
    /// Time that its instances have been busy, s, over all that ever ran.
    pub busy_s: f64,
    /// When a request last arrived, ns; none before the first.
    pub last_arrival_ns: Option<u64>,
    /// Cold starts measured, ms, newest last; bounded.
    pub cold_start_ms: Vec<f64>,
    pub(crate) integrated_ns: u64,
}

/// What a policy asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Wanted {
    /// (model, instances) for models whose count is to be so; where they go, and which leave, is the fleet's choice.
    Counts(Vec<(u32, u32)>),
    /// Exactly these.
    Actions(Vec<Action>),
}

impl ModelSight {
    /// Instances that serve or are about to.
    pub fn have(&self) -> u32 {
        self.ready + self.starting
    }

    /// Requests that are there.
    pub fn load(&self) -> u32 {
        self.held + self.in_flight
    }

    /// Brings the integral to now, before the load changes.
    pub(super) fn integrate(&mut self, now_ns: u64) {
        let dt_s = now_ns.saturating_sub(self.integrated_ns) as f64 / 1e9;
        self.concurrency_s += f64::from(self.load()) * dt_s;
        self.integrated_ns = self.integrated_ns.max(now_ns);
    }
}
