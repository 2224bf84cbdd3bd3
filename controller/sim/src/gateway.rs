//! The gateway's part in a run: hold what cannot be served, route what can, count everything once.

use crate::check::{Invariant, Violation, ensure};
use crate::engine::Request;
use controller_core::Nanos;
use std::collections::{BTreeMap, VecDeque};

/// Most requests held for one model; further ones are refused (429).
pub const HELD_MAX: usize = 256;

/// Queues and counters of the gateway.
#[derive(Clone, Debug, Default)]
pub struct Gateway {
    pub queues: BTreeMap<String, Queue>,
    /// How each request ended, by its number.
    pub outcomes: BTreeMap<usize, Outcome>,
    /// From arrival to being routed for the first time, ms.
    pub waited_ms: Vec<f64>,
}

/// One model's queue and counters.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    pub held: VecDeque<Request>,
    pub arrivals_total: u64,
    pub prompt_tokens_total: u64,
    pub output_tokens_total: u64,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Answered,
    Refused,
}

impl Gateway {
    /// A request arrives: it is held, to be routed as soon as something can serve it, or refused.
    pub fn arrive(&mut self, model: &str, request: Request) {
        let queue = self.queues.entry(model.to_owned()).or_default();
        queue.arrivals_total += 1;
        queue.prompt_tokens_total += u64::from(request.prompt_tokens);
        if queue.held.len() >= HELD_MAX {
            self.outcomes.insert(request.id, Outcome::Refused);
            return;
        }
        queue.held.push_back(request);
    }

    /// Streams that lost their engine come back to the front. They were admitted once and are never refused.
    pub fn come_back(&mut self, model: &str, requests: Vec<Request>) {
        let queue = self.queues.entry(model.to_owned()).or_default();
        for request in requests.into_iter().rev() {
            queue.held.push_front(request);
        }
    }

    /// A request is finished.
    pub fn answer(&mut self, model: &str, request: &Request, now_ns: Nanos) -> Result<(), Violation> {
        let before = self.outcomes.insert(request.id, Outcome::Answered);
        if let Some(queue) = self.queues.get_mut(model) {
            queue.output_tokens_total += 1;
        }
        ensure(before.is_none(), Invariant::AnsweredOnce, now_ns, || {
            format!("request {} of {model} was answered after {before:?}", request.id)
        })
    }

    /// Counters start from 0, as they do in a new process.
    pub fn restart_counters(&mut self) {
        for queue in self.queues.values_mut() {
            queue.arrivals_total = 0;
            queue.prompt_tokens_total = 0;
            queue.output_tokens_total = 0;
        }
    }
}
