//! One simulated engine: it starts, serves a batch of sequences at a speed that falls as the batch grows,
//! and drains. Requests carry the tokens they still need, so that a stream that loses its engine goes on
//! elsewhere from where it was.

use controller_core::Nanos;
use controller_core::snapshot::{InstanceState, InstanceView, Placement};
use std::collections::VecDeque;

/// A request on its way, with the tokens that it still needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    pub id: usize,
    pub arrived_ns: Nanos,
    pub prompt_tokens: u32,
    pub remaining_tokens: f64,
}

/// How fast a model's engine is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Tokens per second of a sequence by itself.
    pub tokens_per_s: f64,
    /// How much each further sequence slows all down; 0 means batching is free, 1 that it gains nothing.
    pub batch_slowdown: f64,
    /// Sequences at once.
    pub max_batch: usize,
}

/// An engine process.
#[derive(Clone, Debug)]
pub struct Engine {
    pub model: String,
    pub revision: String,
    pub state: InstanceState,
    pub placement: Placement,
    pub spawned_at_ns: Nanos,
    pub ready_at_ns: Option<Nanos>,
    pub drain_deadline_ns: Option<Nanos>,
    pub speed: Speed,
    pub running: Vec<Request>,
    pub waiting: VecDeque<Request>,
    last_used_at_ns: Nanos,
    advanced_ns: Nanos,
    busy_ns: u64,
    prefill_tokens: u64,
    decode_tokens: f64,
    finished: u64,
}

impl Engine {
    /// A process that has just been spawned.
    pub fn spawn(model: &str, revision: &str, placement: Placement, speed: Speed, now_ns: Nanos) -> Self {
        Self {
            model: model.to_owned(),
            revision: revision.to_owned(),
            state: InstanceState::Starting,
            placement,
            spawned_at_ns: now_ns,
            ready_at_ns: None,
            drain_deadline_ns: None,
            speed,
            running: Vec::new(),
            waiting: VecDeque::new(),
            last_used_at_ns: now_ns,
            advanced_ns: now_ns,
            busy_ns: 0,
            prefill_tokens: 0,
            decode_tokens: 0.0,
            finished: 0,
        }
    }

    /// Requests at this engine.
    pub fn load(&self) -> usize {
        self.running.len() + self.waiting.len()
    }

    /// Takes a request into the batch or the queue.
    pub fn submit(&mut self, request: Request, now_ns: Nanos) {
        self.last_used_at_ns = now_ns;
        self.waiting.push_back(request);
        self.admit();
    }

    /// Serves until `now_ns` and returns what was finished. The caller comes back at each `next_finish_ns`, so
    /// the batch is constant within a call.
    pub fn advance(&mut self, now_ns: Nanos) -> Vec<Request> {
        let dt_ns = now_ns.saturating_sub(self.advanced_ns);
        self.advanced_ns = now_ns;
        if self.running.is_empty() {
            return Vec::new();
        }
        let tokens = self.tokens_per_s_each() * dt_ns as f64 / 1e9;
        self.busy_ns += dt_ns;
        self.last_used_at_ns = now_ns;
        self.decode_tokens += tokens * self.running.len() as f64;
        for request in &mut self.running {
            request.remaining_tokens -= tokens;
        }
        let (done, going): (Vec<_>, Vec<_>) =
            self.running.drain(..).partition(|request| request.remaining_tokens <= 1e-6);
        self.running = going;
        self.finished += done.len() as u64;
        self.admit();
        done
    }

    /// When the next sequence will be finished, if the batch stays as it is.
    pub fn next_finish_ns(&self) -> Option<Nanos> {
        let least = self.running.iter().map(|request| request.remaining_tokens).min_by(f64::total_cmp)?;
        let seconds = least.max(0.0) / self.tokens_per_s_each();
        Some(self.advanced_ns + (seconds * 1e9).ceil() as u64 + 1)
    }

    /// Takes all requests out: the process is gone and their streams go on elsewhere.
    pub fn abandon(&mut self) -> Vec<Request> {
        self.running.drain(..).chain(self.waiting.drain(..)).collect()
    }

    /// As the controller sees it.
    pub fn view(&self, now_ns: Nanos) -> InstanceView {
        InstanceView {
            observed_at_ns: now_ns,
            model: self.model.clone(),
            revision: self.revision.clone(),
            state: self.state,
            placement: self.placement.clone(),
            spawned_at_ns: self.spawned_at_ns,
            ready_at_ns: self.ready_at_ns,
            running: self.running.len() as u32,
            waiting: self.waiting.len() as u32,
            prefill_tokens_total: self.prefill_tokens,
            decode_tokens_total: self.decode_tokens as u64,
            requests_total: self.finished,
            busy_ns_total: self.busy_ns,
            steps_total: 0,
            last_used_at_ns: self.last_used_at_ns.max(self.ready_at_ns.unwrap_or(0)),
            resident_bytes: self.placement.bytes(),
            disturbed: false,
        }
    }

    fn tokens_per_s_each(&self) -> f64 {
        let others = self.running.len().saturating_sub(1) as f64;
        self.speed.tokens_per_s / (1.0 + self.speed.batch_slowdown * others)
    }

    fn admit(&mut self) {
        while self.running.len() < self.speed.max_batch {
            let Some(request) = self.waiting.pop_front() else { return };
            self.prefill_tokens += u64::from(request.prompt_tokens);
            self.running.push(request);
        }
    }
}
