//! The step loop: one plain thread that owns the scheduler and the device, so that no lock and no await
//! stands between two steps.
//!
//! Between steps it takes new requests and drops those that nobody waits for any more: a client that went
//! away has dropped its end of the channel, which needs no message and cannot be lost in a full queue.

use crate::clock;
use crate::embed::{self, EmbedWork};
use crate::guides::{self, Guided};
use crate::limits;
use crate::request::{self, Live, Message, Times, Work};
use crate::shared::Shared;
use crate::timings::{Lap, Timings};
use engine_core::{
    EndReason, Forward, ForwardError, LogitsRow, Sampled, Scheduler, SequenceEvent, SequenceId, Step, Submission,
    SubmitError, Submitted,
};
use engine_http::ApiError;
use engine_wire::control::{Outcome, StepPhases};
use engine_wire::hop::{FinishReason, HopEvent};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;
use tokio::runtime::Handle;

/// Everything the step thread owns.
pub(crate) struct StepLoop {
    shared: Arc<Shared>,
    messages: Receiver<Message>,
    /// For last events to slow clients.
    runtime: Handle,
    scheduler: Scheduler,
    forward: Box<dyn Forward>,
    vocab: usize,
    live: BTreeMap<SequenceId, Live>,
    next_id: u64,
    logits: Vec<f32>,
    timings: Timings,
    output_tokens_total: u64,
}

impl StepLoop {
    pub fn new(
        shared: Arc<Shared>,
        messages: Receiver<Message>,
        runtime: Handle,
        scheduler: Scheduler,
        forward: Box<dyn Forward>,
    ) -> Self {
        let vocab = forward.shape().vocab;
        let (live, next_id, logits) = (BTreeMap::new(), 0, Vec::new());
        let timings = Timings::new(&shared.identity.model);
        let this = Self {
            shared,
            messages,
            runtime,
            scheduler,
            forward,
            vocab,
            live,
            next_id,
            logits,
            timings,
            output_tokens_total: 0,
        };
        this.publish();
        this
    }

    /// Runs until it is told to stop, or until nobody can send it anything more.
    pub fn run(mut self) {
        while self.take_messages() {
            self.reap();
            if let Err(error) = self.step() {
                // Nothing is answered: streams that break off are resumed at another instance.
                tracing::error!(%error, sequences = self.live.len(), "the device is lost, and this engine with it");
                return;
            }
            self.publish();
        }
        self.abandon();
    }

    /// Takes all messages that are there; sleeps for one when there is nothing else to do. False at the end.
    fn take_messages(&mut self) -> bool {
        if self.scheduler.is_idle() {
            match self.messages.recv() {
                Ok(Message::Work(work)) => self.accept(*work),
                Ok(Message::Embed(work)) => self.refuse(*work),
                Ok(Message::Stop) | Err(_) => return false,
            }
        }
        loop {
            match self.messages.try_recv() {
                Ok(Message::Work(work)) => self.accept(*work),
                Ok(Message::Embed(work)) => self.refuse(*work),
                Ok(Message::Stop) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    /// A request for vectors that came before it was known that there are none here.
    fn refuse(&self, work: EmbedWork) {
        self.shared.ledger().request_taken();
        work.answer.send(Err(embed::generates_text(&self.shared.identity.model)));
    }

    fn accept(&mut self, work: Work) {
        let Work { request_id, tenant, arrived_at_ns, request, guided, adapter, delivery } = work;
        self.shared.ledger().request_taken();
        let deadline_ns = delivery.deadline_ns(arrived_at_ns);
        let times = Times::new(request_id, request.prompt_tokens(), arrived_at_ns);
        let complete = guided.as_ref().is_some_and(Guided::is_complete);
        let live = Live::new(&request, times, guided, delivery, adapter);
        // A grammar's state moves on as tokens are delivered, and given tokens have nothing to look up.
        let speculate = live.guided.is_none() && request.given.is_empty();
        if live.delivery.is_abandoned() {
            return self.end(live, Outcome::Cancelled, None);
        }
        // Checked already when the model was loaded at its arrival; here for those that came earlier.
        if let Some(facts) = self.shared.facts.get()
            && let Err(error) = limits::check(&request, facts)
        {
            return self.end(live, Outcome::Failed, Some(Err(error)));
        }
        if complete {
            // Nothing may follow what was emitted, or the grammar is that of the empty text.
            return self.end(live, Outcome::Finished, Some(Ok(request::finished(EndReason::Stop, 0))));
        }
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let submission = Submission {
            id,
            tenant: tenant.into(),
            adapter: live.adapter.as_ref().map(|adapter| adapter.of_sequence()),
            prompt: request.prompt,
            emitted: request.emitted,
            limits: request::limits(request.stop, request.given.len()),
            priority: request.priority,
            deadline_ns,
            speculate,
        };
        match self.scheduler.submit(submission) {
            Ok(Submitted::Queued) => {
                self.live.insert(id, live);
            }
            Ok(Submitted::Ended(reason)) => self.end(live, Outcome::Finished, Some(Ok(request::finished(reason, 0)))),
            Err(error) => {
                let error = self.refusal(error);
                self.end(live, Outcome::Failed, Some(Err(error)));
            }
        }
    }

    fn refusal(&self, error: SubmitError) -> ApiError {
        match error {
            SubmitError::QueueFull { max_waiting } => {
                ApiError::QueueFull { model: self.shared.identity.model.clone(), limit: max_waiting, retry_after_s: 1 }
            }
            SubmitError::EmptyPrompt | SubmitError::TooLong { .. } => {
                ApiError::InvalidRequest { message: error.to_string(), param: Some("prompt".into()) }
            }
            SubmitError::DuplicateId => ApiError::Internal { message: error.to_string() },
        }
    }

    /// Drops the sequences whose client is gone or whose deadline has passed.
    fn reap(&mut self) {
        let now = Instant::now();
        let over = |live: &Live| live.delivery.is_abandoned() || live.delivery.deadline() <= now;
        let ids: Vec<SequenceId> = self.live.iter().filter(|(_, live)| over(live)).map(|(id, _)| *id).collect();
        for id in ids {
            self.scheduler.cancel(id);
            let Some(live) = self.live.remove(&id) else { continue };
            if live.delivery.is_abandoned() {
                self.end(live, Outcome::Cancelled, None);
            } else {
                let error = live.delivery.deadline_exceeded(live.times.stage());
                self.end(live, Outcome::Failed, Some(Err(error)));
            }
        }
    }

    /// One step, if there is anything to compute. An error when there will be no other.
    fn step(&mut self) -> Result<(), ForwardError> {
        let mut lap = Lap::start();
        let Some(step) = self.scheduler.schedule() else { return Ok(()) };
        let joined_at_ns = clock::monotonic_ns();
        for admitted in &step.admitted {
            if let Some(live) = self.live.get_mut(&admitted.id) {
                live.times.joined(joined_at_ns, admitted.cached_tokens);
            }
        }
        let schedule_ns = lap.ns();
        let result = self.forward.forward(&step.batch, &mut self.logits);
        let forward_ns = lap.ns();
        self.note_first_step();
        let events = match result {
            Ok(()) => self.sample(&step),
            Err(error @ ForwardError::Lost { .. }) => return Err(error),
            Err(error) => self.fail(&step, &error),
        };
        let sample_ns = lap.ns();
        self.scheduler.observe_step(step.batch.tokens.len(), forward_ns + sample_ns);
        for event in &events {
            self.deliver(*event);
        }
        self.flush(&events);
        let phases = StepPhases { schedule_ns, forward_ns, sample_ns, deliver_ns: lap.ns() };
        self.timings.step(phases, step.batch.tokens.len());
        Ok(())
    }

    /// Draws a token from each logits row, but for those that go on from a draft that was wrong.
    fn sample(&mut self, step: &Step) -> Vec<SequenceEvent> {
        let mut sampled = Vec::with_capacity(step.rows.len());
        let mut void = None;
        for (index, row) in step.rows.iter().enumerate() {
            if void == Some(row.sequence) {
                sampled.push(Sampled::Skipped);
                continue;
            }
            let drawn = self.sample_row(index, row);
            if row.draft.is_some_and(|draft| drawn != Sampled::Token(draft)) {
                void = Some(row.sequence);
            }
            sampled.push(drawn);
        }
        self.scheduler.complete(step.id, &sampled).unwrap_or_else(|error| {
            // Not reachable: the rows are counted from the very step that is in flight.
            tracing::error!(%error, "the scheduler refused a step's results");
            self.scheduler.fail(step.id, &all_of(step)).unwrap_or_default()
        })
    }

    fn sample_row(&mut self, index: usize, row: &LogitsRow) -> Sampled {
        let Some(live) = self.live.get_mut(&row.sequence) else { return Sampled::Failed };
        let Some(logits) = self.logits.get_mut(index * self.vocab..(index + 1) * self.vocab) else {
            return Sampled::Failed;
        };
        if !engine_runtime::all_finite(logits) {
            return Sampled::Failed;
        }
        let mut ends = Vec::new();
        if row.suppress_stop {
            ends.extend(self.scheduler.stop_tokens(row.sequence));
        }
        if live.guided.is_some() && live.ignore_eos {
            ends.extend_from_slice(&self.scheduler.rule().eos_token_ids);
        }
        live.draw(logits, row.position, &ends)
    }

    /// A step that failed: one sequence is lost when its logits are to blame, otherwise all that were in it.
    fn fail(&mut self, step: &Step, error: &ForwardError) -> Vec<SequenceEvent> {
        tracing::error!(%error, sequences = step.batch.sequences.len(), "a forward step failed");
        let lost = match error {
            ForwardError::NonFinite { sequence } if *sequence < step.batch.sequences.len() => vec![*sequence],
            _ => all_of(step),
        };
        self.scheduler.fail(step.id, &lost).unwrap_or_default()
    }

    fn deliver(&mut self, event: SequenceEvent) {
        let now_ns = clock::monotonic_ns();
        match event {
            SequenceEvent::Token { id, token } => {
                let Some(live) = self.live.get_mut(&id) else { return };
                self.output_tokens_total += u64::from(live.take_token(token, now_ns));
                self.note_first_token(now_ns);
            }
            SequenceEvent::Ended { id, reason } => {
                let Some(live) = self.live.remove(&id) else { return };
                let finished = request::finished(reason, live.times.cached_tokens());
                self.end(live, Outcome::Finished, Some(Ok(finished)));
            }
            SequenceEvent::Failed { id } => {
                let Some(live) = self.live.remove(&id) else { return };
                let error = live.failure.as_ref().map(|error| guides::refusal(error, "constraint"));
                let message = "The model could not compute the next token of this request.".to_string();
                self.end(live, Outcome::Failed, Some(Err(error.unwrap_or(ApiError::Internal { message }))));
            }
        }
    }

    /// Sends what a step has brought, one event for each sequence that goes on.
    fn flush(&mut self, events: &[SequenceEvent]) {
        let mut last = None;
        for event in events {
            if let SequenceEvent::Token { id, .. } = event
                && last.replace(*id) != Some(*id)
                && let Some(live) = self.live.get_mut(id)
            {
                live.delivery.flush();
            }
        }
    }

    /// Counts a request and sends its last event, if anybody waits for one. The count comes first: who has
    /// read the end of a stream finds it in the next report.
    fn end(&self, live: Live, outcome: Outcome, last: Option<Result<HopEvent, ApiError>>) {
        let cut = matches!(last, Some(Ok(HopEvent::Finished { reason: FinishReason::Length, .. })));
        let mut record = live.times.record(outcome, cut, clock::monotonic_ns());
        record.adapter = live.adapter.as_ref().map(|adapter| adapter.name.clone());
        let mut ledger = self.shared.ledger();
        ledger.request_ended(record, &self.shared.identity.model);
        ledger.scheduler = self.scheduler.stats();
        drop(ledger);
        if let Some(last) = last {
            live.delivery.finish(last, &self.runtime);
        }
    }

    /// Tells everybody who still waits that the engine ends.
    fn abandon(mut self) {
        for (id, live) in std::mem::take(&mut self.live) {
            self.scheduler.cancel(id);
            self.end(live, Outcome::Failed, Some(Err(ApiError::ShuttingDown)));
        }
        while let Ok(message) = self.messages.try_recv() {
            self.shared.ledger().request_taken();
            match message {
                Message::Work(work) => work.delivery.finish(Err(ApiError::ShuttingDown), &self.runtime),
                Message::Embed(work) => work.answer.send(Err(ApiError::ShuttingDown)),
                Message::Stop => {}
            }
        }
        self.publish();
    }

    fn publish(&self) {
        let mut ledger = self.shared.ledger();
        ledger.scheduler = self.scheduler.stats();
        ledger.step_phases = self.timings.totals();
        ledger.output_tokens_total = self.output_tokens_total;
    }

    fn note_first_step(&self) {
        let mut ledger = self.shared.ledger();
        if ledger.phases.first_step_ms.is_none() {
            ledger.phases.first_step_ms = Some(ledger.since_start_ms(clock::monotonic_ns()));
        }
    }

    fn note_first_token(&self, at_ns: u64) {
        let mut ledger = self.shared.ledger();
        if ledger.phases.first_token_ms.is_none() {
            ledger.phases.first_token_ms = Some(ledger.since_start_ms(at_ns));
        }
    }
}

/// Indices of all sequences of a step's batch.
fn all_of(step: &Step) -> Vec<usize> {
    (0..step.batch.sequences.len()).collect()
}
