//! The step thread of an encoder: it owns the queue of texts and the device, and between steps it takes new requests
//! and drops those that nobody waits for any more.
//!
//! A request's vectors are gathered here until the last one is computed. Its texts go into several steps when they are
//! many, with others' texts between them, so a step is short and nobody waits for a whole large request.

use crate::clock;
use crate::embed::{self, EmbedAnswer, EmbedWork};
use crate::request::{Message, Times};
use crate::shared::Shared;
use crate::timings::{Lap, Timings};
use engine_core::{Encode, EncodeId, EncodeQueue, EncodeShape, EncodeStep, ForwardError, SchedulerStats};
use engine_http::ApiError;
use engine_wire::control::{Outcome, StepPhases};
use engine_wire::hop::Embedded;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;
use tokio::runtime::Handle;

/// Tokens of a step: enough that products pass over the weights for many tokens at once, and about a tenth of a second
/// of a small model on two cores, which is how long a new request may have to wait.
const STEP_TOKENS: usize = 512;

/// Everything the step thread owns.
pub(crate) struct EncodeLoop {
    shared: Arc<Shared>,
    messages: Receiver<Message>,
    /// For refusals of requests that a slow client made.
    runtime: Handle,
    queue: EncodeQueue,
    device: Box<dyn Encode>,
    shape: EncodeShape,
    live: BTreeMap<EncodeId, Live>,
    next_id: u64,
    vectors: Vec<f32>,
    timings: Timings,
    steps_total: u64,
    tokens_total: u64,
}

/// A request of which some vector is missing.
struct Live {
    times: Times,
    answer: EmbedAnswer,
    /// All vectors; room for them is made with the first.
    numbers: Vec<f32>,
    texts: usize,
    missing: usize,
    /// A vector of it was not finite.
    failed: bool,
    began: bool,
}

impl EncodeLoop {
    pub fn new(shared: Arc<Shared>, messages: Receiver<Message>, runtime: Handle, device: Box<dyn Encode>) -> Self {
        let timings = Timings::new(&shared.identity.model);
        let this = Self {
            shared,
            messages,
            runtime,
            queue: EncodeQueue::new(STEP_TOKENS),
            shape: device.shape(),
            device,
            live: BTreeMap::new(),
            next_id: 0,
            vectors: Vec::new(),
            timings,
            steps_total: 0,
            tokens_total: 0,
        };
        this.publish();
        this
    }

    /// Runs until it is told to stop, or until nobody can send it anything more.
    pub fn run(mut self) {
        while self.take_messages() {
            self.reap();
            self.step();
            self.publish();
        }
        for id in self.live.keys().copied().collect::<Vec<_>>() {
            self.end(id, Outcome::Failed, |_| Some(Err(ApiError::ShuttingDown)));
        }
        while let Ok(message) = self.messages.try_recv() {
            self.refuse(message, &ApiError::ShuttingDown);
        }
        self.publish();
    }

    /// Takes all messages that are there; sleeps for one when there is nothing else to do. False at the end.
    fn take_messages(&mut self) -> bool {
        if self.queue.is_empty() {
            match self.messages.recv() {
                Ok(Message::Stop) | Err(_) => return false,
                Ok(message) => self.take(message),
            }
        }
        loop {
            match self.messages.try_recv() {
                Ok(Message::Stop) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
                Ok(message) => self.take(message),
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Embed(work) => self.accept(*work),
            other => self.refuse(other, &embed::makes_embeddings(&self.shared.identity.model)),
        }
    }

    fn refuse(&self, message: Message, error: &ApiError) {
        self.shared.ledger().request_taken();
        match message {
            Message::Work(work) => work.delivery.finish(Err(error.clone()), &self.runtime),
            Message::Embed(work) => work.answer.send(Err(error.clone())),
            Message::Stop => {}
        }
    }

    fn accept(&mut self, work: EmbedWork) {
        let EmbedWork { request_id, tenant, arrived_at_ns, request, answer } = work;
        self.shared.ledger().request_taken();
        let tokens = request.texts.iter().map(Vec::len).sum();
        let id = EncodeId(self.next_id);
        self.next_id += 1;
        let texts = request.texts.len();
        let times = Times::new(request_id, tokens, arrived_at_ns);
        let live = Live { times, answer, numbers: Vec::new(), texts, missing: texts, failed: false, began: false };
        self.live.insert(id, live);
        // Checked already when the model was loaded at its arrival; here for those that came earlier.
        if let Err(error) = embed::check(&request, &self.shape) {
            return self.end(id, Outcome::Failed, |_| Some(Err(error)));
        }
        self.queue.submit(id, &tenant.into(), request.texts);
    }

    /// Drops the requests whose client is gone or whose deadline has passed.
    fn reap(&mut self) {
        let now = Instant::now();
        let over = |live: &Live| live.answer.is_abandoned() || live.answer.deadline() <= now;
        let ids: Vec<EncodeId> = self.live.iter().filter(|(_, live)| over(live)).map(|(id, _)| *id).collect();
        for id in ids {
            let abandoned = self.live.get(&id).is_some_and(|live| live.answer.is_abandoned());
            if abandoned {
                self.end(id, Outcome::Cancelled, |_| None);
            } else {
                self.end(id, Outcome::Failed, |live| Some(Err(live.answer.deadline_exceeded())));
            }
        }
    }

    /// One step, if there is anything to compute.
    fn step(&mut self) {
        let mut lap = Lap::start();
        let Some(step) = self.queue.schedule() else { return };
        let joined_at_ns = clock::monotonic_ns();
        for (id, _) in &step.rows {
            if let Some(live) = self.live.get_mut(id).filter(|live| !live.began) {
                live.began = true;
                live.times.joined(joined_at_ns, 0);
            }
        }
        let schedule_ns = lap.ns();
        let result = self.device.encode(&step.batch, &mut self.vectors);
        let forward_ns = lap.ns();
        self.tokens_total += step.batch.tokens.len() as u64;
        self.note_first_step();
        // Before the answers: who has one finds its tokens in the next report.
        self.publish();
        match result {
            Ok(()) => self.deliver(&step),
            Err(error) => self.fail(&step, &error),
        }
        let phases = StepPhases { schedule_ns, forward_ns, sample_ns: 0, deliver_ns: lap.ns() };
        self.timings.step(phases, step.batch.tokens.len());
    }

    fn deliver(&mut self, step: &EncodeStep) {
        let dimensions = self.shape.dimensions;
        for ((id, index), vector) in step.rows.iter().zip(self.vectors.chunks_exact(dimensions)) {
            let Some(live) = self.live.get_mut(id) else { continue };
            if !vector.iter().all(|number| number.is_finite()) {
                live.failed = true;
                continue;
            }
            live.numbers.resize(live.texts * dimensions, 0.0);
            live.numbers[index * dimensions..(index + 1) * dimensions].copy_from_slice(vector);
            live.missing -= 1;
        }
        for id in requests(step) {
            match self.live.get(&id) {
                Some(live) if live.failed => self.end(id, Outcome::Failed, |_| Some(Err(failed()))),
                Some(live) if live.missing == 0 => self.end(id, Outcome::Finished, |live| {
                    Some(Ok(Embedded { dimensions, numbers: std::mem::take(&mut live.numbers) }))
                }),
                _ => {}
            }
        }
    }

    /// A step that failed: all requests that were in it are lost.
    fn fail(&mut self, step: &EncodeStep, error: &ForwardError) {
        tracing::error!(%error, texts = step.rows.len(), "a forward step failed");
        for id in requests(step) {
            self.end(id, Outcome::Failed, |_| Some(Err(failed())));
        }
    }

    /// Counts a request and sends its answer, if anybody waits for one.
    fn end(
        &mut self,
        id: EncodeId,
        outcome: Outcome,
        answer: impl FnOnce(&mut Live) -> Option<Result<Embedded, ApiError>>,
    ) {
        self.queue.cancel(id);
        let Some(mut live) = self.live.remove(&id) else { return };
        let answer = answer(&mut live);
        let record = live.times.record(outcome, false, clock::monotonic_ns());
        self.shared.ledger().request_ended(record, &self.shared.identity.model);
        if let Some(result) = answer {
            live.answer.send(result);
        }
    }

    fn publish(&self) {
        let waiting = self.live.values().filter(|live| !live.began).count();
        let mut ledger = self.shared.ledger();
        let running = self.live.len() - waiting;
        ledger.scheduler =
            SchedulerStats { running, waiting, steps_total: self.steps_total, ..SchedulerStats::default() };
        ledger.encode_tokens_total = self.tokens_total;
        ledger.step_phases = self.timings.totals();
    }

    fn note_first_step(&mut self) {
        self.steps_total += 1;
        let mut ledger = self.shared.ledger();
        if ledger.phases.first_step_ms.is_none() {
            ledger.phases.first_step_ms = Some(ledger.since_start_ms(clock::monotonic_ns()));
        }
    }
}

/// Requests that have a text in a step, each once.
fn requests(step: &EncodeStep) -> BTreeSet<EncodeId> {
    step.rows.iter().map(|(id, _)| *id).collect()
}

fn failed() -> ApiError {
    ApiError::Internal { message: "The model could not compute a vector of this request.".to_owned() }
}
