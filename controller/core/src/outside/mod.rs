//! Capacity of an engine that tells nothing, from the times of its packets alone.
//!
//! [`Outside`] takes what is seen of requests as they go on, keeps who waits and who has tokens, and learns the engine
//! behind it: the time of a step against the streams in it, the work of a prompt against its size, how many streams
//! are served at once, and how much of a prompt a step takes. What was learned is a small engine that is run twice:
//! over the very requests that were seen, to choose and calibrate it, and under Poisson arrivals of the same requests
//! at rising loads, to find the load at which the objective breaks while the real engine is still far from it.
//!
//! Samples may be lost, doubled or out of order: figures get worse by it, never wrong in kind.

mod curve;
mod draw;
mod engine;
mod fit;
mod flows;
mod knee;

use crate::{NS_PER_S, Nanos, seconds_between};
use flows::Flows;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// What is seen of a request that goes on. `flow` is its own number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sample {
    /// It arrived: its first byte's time, and its size with its head, bytes.
    Start { flow: u64, at_ns: Nanos, request_bytes: u64, ask: Ask },
    /// `segments` more pieces of its stream that are tokens. A piece counts as one token throughout.
    Token { flow: u64, at_ns: Nanos, segments: u32 },
    /// Its end; `complete` unless it was broken off.
    End { flow: u64, at_ns: Nanos, complete: bool },
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// No body, such as a poll of an engine's health: no work.
    Nothing,
    /// One answer at the end. Whether it waits or is served cannot be seen.
    Whole,
    /// A stream, or nobody knows.
    Stream,
}

/// What the service must keep to: `quantile` of the times to first token, and of the gaps between tokens, lie below.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slo {
    pub ttft_ms: f64,
    pub itl_ms: f64,
    /// Between 0 and 1.
    pub quantile: f64,
}

impl Default for Slo {
    /// What a reader of a chat takes for prompt and fluent.
    fn default() -> Self {
        Self { ttft_ms: 1_000.0, itl_ms: 100.0, quantile: 0.95 }
    }
}

/// Requests in the engine at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InFlight {
    /// Streams that have tokens.
    pub decoding: u32,
    /// Streams that have none yet: in prefill or in the queue.
    pub waiting: u32,
    /// Of `decoding` and `waiting`, those that the engine works on.
    pub batch: u32,
    /// Of `waiting`, those that it does not.
    pub queue: u32,
    /// Requests for one answer at the end, which are in none of these.
    pub whole: u32,
}

/// What breaks first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    Ttft,
    Itl,
    /// Neither, up to the engine's throughput.
    Throughput,
}

/// An engine as it was learned, and the load that it will bear.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Streams served at once; None where no request was seen to wait for a place.
    pub slots: Option<u32>,
    /// Most streams that had tokens at the same time.
    pub streams_max: u32,
    /// Time of a step by the streams in it, from one on, ms.
    pub itl_ms: Vec<f64>,
    /// Work of a prompt: of any, and of each KiB of its request, ms.
    pub prefill_ms: f64,
    pub prefill_ms_per_kib: f64,
    /// Requests per second, of the kind that was seen, at which the objective breaks, and what may as well be true.
    pub knee_per_s: f64,
    pub knee_per_s_low: f64,
    pub knee_per_s_high: f64,
    pub bound: Bound,
    /// Requests per second that the engine serves when it is never idle.
    pub throughput_per_s: f64,
    /// How far the learned engine is from the seen one over the same requests: mean relative error of the times.
    pub error: f64,
    /// Streams that this rests on.
    pub streams: u32,
}

/// Time over which the offered load is counted.
const LOAD_OVER_NS: Nanos = 15 * NS_PER_S;
/// Arrivals kept for that.
const ARRIVALS_KEPT: usize = 16_384;
/// Streams without which nothing is estimated.
const STREAMS_NEEDED: usize = 30;

/// One engine, watched from outside.
#[derive(Clone, Debug, Default)]
pub struct Outside {
    flows: Flows,
    arrivals_ns: VecDeque<Nanos>,
    /// The first arrival ever, since when the load is known.
    since_ns: Option<Nanos>,
    slots: Option<u32>,
}

impl Outside {
    /// Takes the next sample.
    pub fn observe(&mut self, sample: &Sample) {
        if let Sample::Start { at_ns, ask: Ask::Whole | Ask::Stream, .. } = *sample {
            self.since_ns.get_or_insert(at_ns);
            if self.arrivals_ns.len() >= ARRIVALS_KEPT {
                self.arrivals_ns.pop_front();
            }
            self.arrivals_ns.push_back(at_ns);
        }
        self.flows.observe(sample);
    }

    /// Who is in the engine after the latest sample. `now_ns` lets go of what has long been silent.
    pub fn in_flight(&mut self, now_ns: Nanos) -> InFlight {
        self.flows.forget_silent(now_ns);
        let (decoding, waiting, whole) = self.flows.counts();
        let free = self.slots.map_or(waiting, |slots| slots.saturating_sub(decoding));
        let prefilling = waiting.min(free);
        InFlight { decoding, waiting, batch: decoding + prefilling, queue: waiting - prefilling, whole }
    }

    /// Requests per second over the last seconds; fewer of them where it is not watched for so long.
    pub fn load_per_s(&self, now_ns: Nanos) -> f64 {
        let Some(since_ns) = self.since_ns else { return 0.0 };
        let from_ns = now_ns.saturating_sub(LOAD_OVER_NS);
        let over_s = seconds_between(from_ns.max(since_ns), now_ns).max(1.0);
        self.arrivals_ns.iter().filter(|at_ns| **at_ns >= from_ns && **at_ns <= now_ns).count() as f64 / over_s
    }

    /// Sets how many streams are known to be served at once, as an estimate of a copy of this found it.
    pub fn set_slots(&mut self, slots: Option<u32>) {
        self.slots = slots;
    }

    /// Learns the engine and finds its knee; None until enough streams have ended. Takes up to a second of a core.
    pub fn estimate(&self, slo: &Slo) -> Option<Estimate> {
        let seen = self.flows.seen();
        (seen.streams.len() >= STREAMS_NEEDED).then(|| knee::estimate(&seen, slo)).flatten()
    }
}
