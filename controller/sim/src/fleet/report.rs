//! What a run comes to: figures, how they moved over time, and what was broken.

use super::{Fault, Slo};
use crate::check::Violation;
use serde::Serialize;
use std::collections::BTreeMap;

/// One run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub policy: String,
    /// Times to first token of the measured requests that got one, ms, sorted.
    pub ttft_ms: Vec<f32>,
    /// Mean times between tokens of those with more than one, ms, sorted.
    pub itl_ms: Vec<f32>,
    /// Of the measured requests, those within both targets.
    pub within_slo: u64,
    pub measured: u64,
    pub requests: u64,
    pub answered: u64,
    pub refused: u64,
    /// Time of devices in use over the measured part, starting and draining included, s.
    pub device_s: f64,
    /// Of that, time of instances that were computing, s.
    pub busy_s: f64,
    pub starts: u64,
    pub drains: u64,
    /// Drains of instances that had not served for as long as they took to start, followed within a cold start by another of the
    /// same model, with no more load and nothing lost.
    pub regretted: u64,
    /// Wishes for an instance that found no device.
    pub no_room: u64,
    pub ticks: u64,
    pub peak_devices: u32,
    pub faults: BTreeMap<Fault, u64>,
    /// Stretches of time of which a 0.9 quantile was stated, and those whose load was within it.
    pub stated: u64,
    pub stated_within: u64,
    /// Broken invariants by name, where the run was not ended by the first.
    pub violations: BTreeMap<String, u64>,
    /// The first of them.
    pub first_violation: Option<Violation>,
    pub moments: Vec<Moment>,
    /// Instances that were left at the end.
    pub left: u32,
}

/// The fleet at one moment, for plots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Moment {
    pub at_s: f64,
    /// Requests per second since the moment before.
    pub arrivals_per_s: f64,
    /// Requests that are there, held or at an instance.
    pub present: u32,
    pub held: u32,
    pub ready: u32,
    /// Devices in use.
    pub devices: u32,
}

/// The figures of a run, as printed and as JSON.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub policy: String,
    pub requests: u64,
    pub answered: u64,
    pub refused: u64,
    pub measured: u64,
    pub slo: Slo,
    /// Share of the measured requests within both targets.
    pub attainment: f64,
    pub ttft_ms_p50: f64,
    pub ttft_ms_p90: f64,
    pub ttft_ms_p99: f64,
    pub itl_ms_p50: f64,
    pub itl_ms_p99: f64,
    pub device_s: f64,
    /// Share of it that was spent computing.
    pub utilisation: f64,
    /// At the price per device-hour.
    pub cost: f64,
    pub peak_devices: u32,
    pub starts: u64,
    pub drains: u64,
    pub regretted: u64,
    pub no_room: u64,
    pub ticks: u64,
    pub faults: BTreeMap<Fault, u64>,
    /// Share of stretches of time whose load was within the 0.9 quantile stated before; none of a policy that states none.
    pub coverage: Option<f64>,
    pub violations: BTreeMap<String, u64>,
}

impl Report {
    /// The figures. `price_per_h` is what a device costs.
    pub fn summary(&self, slo: Slo, price_per_h: f64) -> Summary {
        Summary {
            policy: self.policy.clone(),
            requests: self.requests,
            answered: self.answered,
            refused: self.refused,
            measured: self.measured,
            slo,
            attainment: self.attainment(),
            ttft_ms_p50: quantile(&self.ttft_ms, 0.5),
            ttft_ms_p90: quantile(&self.ttft_ms, 0.9),
            ttft_ms_p99: quantile(&self.ttft_ms, 0.99),
            itl_ms_p50: quantile(&self.itl_ms, 0.5),
            itl_ms_p99: quantile(&self.itl_ms, 0.99),
            device_s: self.device_s,
            utilisation: if self.device_s > 0.0 { self.busy_s / self.device_s } else { 0.0 },
            cost: self.device_s / 3600.0 * price_per_h,
            peak_devices: self.peak_devices,
            starts: self.starts,
            drains: self.drains,
            regretted: self.regretted,
            no_room: self.no_room,
            ticks: self.ticks,
            faults: self.faults.clone(),
            coverage: (self.stated > 0).then(|| self.stated_within as f64 / self.stated as f64),
            violations: self.violations.clone(),
        }
    }

    /// Share of the measured requests within both targets; 1 of none.
    pub fn attainment(&self) -> f64 {
        if self.measured == 0 { 1.0 } else { self.within_slo as f64 / self.measured as f64 }
    }
}

/// The quantile of sorted figures by nearest rank; 0 of none.
pub fn quantile(sorted: &[f32], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).map_or(0.0, |figure| f64::from(*figure))
}
