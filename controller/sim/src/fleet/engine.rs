//! One engine as a cost model. A step with `n` sequences takes `itl_base_ms + n * itl_per_sequence_ms`, and a chunk of a
//! prompt adds its own time: what continuous batching with chunked prefill does (Agrawal et al., "Sarathi-Serve", 2024).
//!
//! What goes into a step is decided by one of two: the engine's own scheduler with its blocks and prefix cache
//! ([`ScheduledEngine`]), step by step; or a batch in straight lines ([`FluidEngine`]), ten times as fast, for studies of
//! many runs. Tests hold the two against each other.

mod fluid;
mod scheduled;

use fluid::FluidEngine;
use scheduled::ScheduledEngine;
use serde::Serialize;

/// What an engine's steps cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EngineCost {
    /// Time of a step by itself, ms.
    pub itl_base_ms: f64,
    /// What each sequence in the batch adds to it, ms.
    pub itl_per_sequence_ms: f64,
    /// Time of one prompt token, ms.
    pub prefill_ms_per_token: f64,
    /// Prompt tokens of one step.
    pub prefill_chunk: u32,
    /// Sequences at once.
    pub max_batch: u32,
    /// Tokens that the KV cache holds; only [`Engines::Scheduled`] knows of it.
    pub kv_tokens: u32,
}

impl Default for EngineCost {
    /// A large model on one accelerator.
    fn default() -> Self {
        Self {
            itl_base_ms: 25.0,
            itl_per_sequence_ms: 0.8,
            prefill_ms_per_token: 0.2,
            prefill_chunk: 512,
            max_batch: 16,
            kv_tokens: 1 << 18,
        }
    }
}

impl EngineCost {
    /// Time of one step with so many decoding sequences, ms.
    pub fn itl_ms(&self, batch: u32) -> f64 {
        self.itl_base_ms + self.itl_per_sequence_ms * f64::from(batch)
    }

    /// Time that a request takes in a batch of so many, s, without waiting.
    pub fn service_s(&self, prompt_tokens: u32, output_tokens: u32, batch: u32) -> f64 {
        let prefill_ms = self.prefill_ms_per_token * f64::from(prompt_tokens);
        (prefill_ms + self.itl_ms(batch) * f64::from(output_tokens)) / 1e3
    }

    /// Part of an instance's time that one request takes when the batch is full, s: its prompt, and its share of the steps.
    pub fn work_s(&self, prompt_tokens: u32, output_tokens: u32) -> f64 {
        let batch = self.max_batch.max(1);
        let steps_ms = self.itl_ms(batch) * f64::from(output_tokens) / f64::from(batch);
        (self.prefill_ms_per_token * f64::from(prompt_tokens) + steps_ms) / 1e3
    }
}

/// A request that has been given to an engine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Job {
    pub request: u32,
    /// Tokens to compute before the next one can be made: the prompt and what was made before a move.
    pub prefill_tokens: u32,
    /// Tokens still to make.
    pub output_tokens: u32,
}

/// What an engine did at a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Done {
    /// The prompt is computed and the first token is there.
    First(u32),
    /// The last token is there.
    Last(u32),
}

/// Which model of an engine a run is made with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Engines {
    #[default]
    Fluid,
    Scheduled,
}

/// Running totals of an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    pub busy_ns: u64,
    pub prefill_tokens: f64,
    pub decode_tokens: f64,
    pub steps: f64,
    pub finished: u64,
}

/// An engine of either kind.
#[derive(Debug)]
pub enum Engine {
    Fluid(FluidEngine),
    Scheduled(Box<ScheduledEngine>),
}

impl Engine {
    /// An engine that begins at a time.
    pub fn new(kind: Engines, now_ns: u64, cost: &EngineCost) -> Self {
        match kind {
            Engines::Fluid => Self::Fluid(FluidEngine::new(now_ns)),
            Engines::Scheduled => Self::Scheduled(Box::new(ScheduledEngine::new(now_ns, cost))),
        }
    }

    /// Requests at it.
    pub fn load(&self) -> u32 {
        match self {
            Self::Fluid(engine) => engine.load(),
            Self::Scheduled(engine) => engine.load(),
        }
    }

    /// Sequences in the batch, those whose prompt is being computed included.
    pub fn running(&self) -> u32 {
        match self {
            Self::Fluid(engine) => engine.running(),
            Self::Scheduled(engine) => engine.running(),
        }
    }

    /// Requests that wait for a place in the batch.
    pub fn waiting(&self) -> u32 {
        self.load() - self.running()
    }

    /// What it has done so far.
    pub fn totals(&self) -> Totals {
        match self {
            Self::Fluid(engine) => engine.totals(),
            Self::Scheduled(engine) => engine.totals(),
        }
    }

    /// Takes a request, whose prompt begins with blocks of these hashes. The caller has advanced the engine to now.
    pub fn submit(&mut self, job: Job, prefix: &[u64], cost: &EngineCost) {
        match self {
            Self::Fluid(engine) => engine.submit(job, cost),
            Self::Scheduled(engine) => engine.submit(job, prefix, cost),
        }
    }

    /// Moves to `now_ns`, which is no later than [`Engine::due_ns`], and tells what happened there.
    pub fn advance(&mut self, now_ns: u64, cost: &EngineCost, done: &mut Vec<Done>) {
        match self {
            Self::Fluid(engine) => engine.advance(now_ns, cost, done),
            Self::Scheduled(engine) => engine.advance(now_ns, cost, done),
        }
    }

    /// When the next thing happens, if nothing comes in before; none while idle.
    pub fn due_ns(&self, cost: &EngineCost) -> Option<u64> {
        match self {
            Self::Fluid(engine) => engine.due_ns(cost),
            Self::Scheduled(engine) => engine.due_ns(),
        }
    }

    /// Takes everything out, as jobs that go on where these stopped.
    pub fn abandon(&mut self) -> Vec<Job> {
        match self {
            Self::Fluid(engine) => engine.abandon(),
            Self::Scheduled(engine) => engine.abandon(),
        }
    }
}
