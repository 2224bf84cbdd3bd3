//! Where the time of steps goes: totals for the controller, histograms for whoever scrapes this engine.

use engine_wire::control::StepPhases;
use metrics::{Histogram, histogram};
use std::time::Instant;
use telemetry::table;

/// Times one phase after the other.
pub(crate) struct Lap(Instant);

impl Lap {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Since the start or the last call, ns.
    pub fn ns(&mut self) -> u64 {
        let now = Instant::now();
        let elapsed = now.duration_since(self.0);
        self.0 = now;
        elapsed.as_nanos() as u64
    }
}

/// One step thread's. The histograms are looked up once: a step may take less than a millisecond.
pub(crate) struct Timings {
    totals: StepPhases,
    phases: [Histogram; 4],
    tokens: Histogram,
}

impl Timings {
    pub fn new(model: &str) -> Self {
        let phase =
            |(phase, _)| histogram!(table::ENGINE_STEP_SECONDS.name, "model" => model.to_owned(), "phase" => phase);
        Self {
            totals: StepPhases::default(),
            phases: StepPhases::default().each().map(phase),
            tokens: histogram!(table::ENGINE_STEP_TOKENS.name, "model" => model.to_owned()),
        }
    }

    /// Counts a step of so many tokens.
    pub fn step(&mut self, phases: StepPhases, tokens: usize) {
        self.totals.schedule_ns += phases.schedule_ns;
        self.totals.forward_ns += phases.forward_ns;
        self.totals.sample_ns += phases.sample_ns;
        self.totals.deliver_ns += phases.deliver_ns;
        for (histogram, (_, ns)) in self.phases.iter().zip(phases.each()) {
            histogram.record(ns as f64 / 1e9);
        }
        self.tokens.record(tokens as f64);
    }

    /// Of all steps so far.
    pub fn totals(&self) -> StepPhases {
        self.totals
    }
}
