//! The life of one request: held until an instance can take it, sent there, its tokens passed on, and taken
//! elsewhere when the instance dies. One task per request; whatever it waits for, the deadline and the
//! client's disconnect end it, because both stand around the whole of it.

mod books;
mod embed;
mod forward;
mod hold;

pub use forward::{ForeignRequest, ForwardOutlet};

use crate::connection::Connection;
use crate::demand::DemandGuard;
use crate::endpoint::Lease;
use crate::gateway::Shared;
use crate::hop::{self, HopStream, Setback};
use crate::meters::{count_failed, count_rejected};
use crate::model::{ModelState, TextCell};
use crate::outlet::Outlet;
use crate::records::{Outcome, RECORD_INSTANCES};
use engine_http::{ApiError, RequestContext};
use engine_wire::hop::{EmbedRequest, FinishReason, GENERATE_PATH, GenerateRequest, HopEvent};
use std::hash::Hasher;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::time::{sleep, sleep_until, timeout, timeout_at};

/// How a request ended, other than well.
#[derive(Debug)]
pub enum Ending {
    ClientGone,
    /// With the label for the metrics.
    Failed(ApiError, &'static str),
}

/// What is asked of an instance.
pub trait Asked {
    fn model(&self) -> &str;
    /// Feeds what tells one question from another.
    fn hash(&self, hasher: &mut dyn Hasher);
    /// Tokens that a conversation is known by; none of what is no turn of one.
    fn prompt(&self) -> &[u32] {
        &[]
    }
    fn prompt_tokens(&self) -> usize;
    /// Tokens that the client has already.
    fn emitted_tokens(&self) -> usize;
}

impl Asked for GenerateRequest {
    fn model(&self) -> &str {
        &self.model
    }

    fn hash(&self, hasher: &mut dyn Hasher) {
        hash_tokens(&self.prompt, hasher);
        hash_tokens(&self.given, hasher);
    }

    fn prompt(&self) -> &[u32] {
        &self.prompt
    }

    fn prompt_tokens(&self) -> usize {
        GenerateRequest::prompt_tokens(self)
    }

    fn emitted_tokens(&self) -> usize {
        self.drawn(self.emitted.len())
    }
}

impl Asked for EmbedRequest {
    fn model(&self) -> &str {
        &self.model
    }

    fn hash(&self, hasher: &mut dyn Hasher) {
        self.texts.iter().for_each(|text| hash_tokens(text, hasher));
    }

    fn prompt_tokens(&self) -> usize {
        self.texts.iter().map(Vec::len).sum()
    }

    fn emitted_tokens(&self) -> usize {
        0
    }
}

fn hash_tokens(tokens: &[u32], hasher: &mut dyn Hasher) {
    hasher.write_usize(tokens.len());
    tokens.iter().for_each(|token| hasher.write_u32(*token));
}

/// One request and all that is known of its way so far.
pub struct Active<R = GenerateRequest> {
    shared: Arc<Shared>,
    model: Arc<ModelState>,
    /// Revision that it was tokenized for.
    revision: String,
    /// Knows the model's end-of-sequence tokens.
    text: TextCell,
    context: RequestContext,
    /// `emitted` grows with every token delivered.
    request: R,
    /// By which its repetition is known, should it be refused.
    key: u64,
    outlet: Outlet,
    demand: DemandGuard,
    progress: Progress,
}

/// Times and counts of one request.
#[derive(Default)]
struct Progress {
    /// It has had its turn in the queue of held requests.
    admitted: bool,
    /// Since when it is without service; ends with each new token.
    unserved_since: Option<Instant>,
    /// Broken attempts since the last new token.
    broken: u32,
    last_setback: String,
    /// An instance to go to only where there is no other: it answered this request with an error.
    avoid: Option<String>,
    instances: Vec<String>,
    resumes: u32,
    /// Tokens that the request brought along as emitted already.
    emitted_before: usize,
    first_token_at: Option<Instant>,
    last_token_at: Option<Instant>,
    cached_tokens: u32,
    overhead_recorded: bool,
}

impl<R: Asked> Active<R> {
    pub fn new(
        shared: Arc<Shared>,
        model: Arc<ModelState>,
        (revision, text): (String, TextCell),
        context: RequestContext,
        (request, key): (R, u64),
        outlet: Outlet,
    ) -> Self {
        Self {
            demand: DemandGuard::new(model.clone()),
            progress: Progress { emitted_before: request.emitted_tokens(), ..Progress::default() },
            shared,
            model,
            revision,
            text,
            context,
            request,
            key,
            outlet,
        }
    }

    fn deadline_passed(&self) -> Ending {
        let deadline_ms = self.context.deadline.saturating_duration_since(self.context.arrived_at).as_millis() as u64;
        let stage = if self.demand.is_held() { "while it waited for an instance" } else { "before it was complete" };
        Ending::Failed(ApiError::DeadlineExceeded { deadline_ms, stage }, "deadline")
    }

    fn note_attempt(&mut self, lease: &Lease) {
        let progress = &mut self.progress;
        if progress.instances.len() < RECORD_INSTANCES {
            progress.instances.push(lease.endpoint.instance.clone());
        }
        if progress.first_token_at.is_some() {
            progress.resumes += 1;
            self.model.meters().resumed.increment(1);
        }
        if !progress.overhead_recorded {
            progress.overhead_recorded = true;
            let overhead = self.context.arrived_at.elapsed().saturating_sub(self.demand.held_for());
            self.model.meters().overhead_seconds.record(overhead.as_secs_f64());
        }
    }

    /// The instance does its work: the request is no longer held, and past trouble is forgotten.
    fn served(&mut self, lease: &Lease) {
        self.demand.fly();
        lease.endpoint.worked();
        if self.progress.first_token_at.is_none() {
            let prompt_tokens = self.request.prompt_tokens() as u64;
            self.model.prompt_tokens_total.fetch_add(prompt_tokens, Ordering::Relaxed);
        }
        self.progress.unserved_since = None;
        self.progress.broken = 0;
    }

    /// Tokens were passed on.
    fn tokens_came(&mut self) {
        let now = Instant::now();
        if self.progress.first_token_at.is_none() {
            self.progress.first_token_at = Some(now);
            let ttft = now.saturating_duration_since(self.context.arrived_at);
            self.model.meters().ttft_seconds.record(ttft.as_secs_f64());
        }
        self.progress.last_token_at = Some(now);
    }

    /// After a setback: gives up, or avoids the instance and lets `serve` go on.
    async fn set_back(&mut self, lease: &Lease, setback: Setback) -> Result<(), Ending> {
        let options = &self.shared.options;
        let (message, broke) = match setback {
            Setback::Final(error) => return Err(Ending::Failed(error, "refused")),
            Setback::Refused(message) => (message, false),
            Setback::Broken(message) => (message, true),
        };
        let (model, instance) = (&self.model.name, &lease.endpoint.instance);
        if lease.endpoint.failed(Instant::now(), options.quarantine) {
            tracing::warn!(model, instance, message, "an instance failed; its requests go on elsewhere");
        }
        let emitted = self.request.emitted_tokens();
        tracing::debug!(
            request_id = self.context.request_id,
            instance,
            emitted,
            message,
            "a request goes on elsewhere"
        );
        self.progress.unserved_since.get_or_insert_with(Instant::now);
        if broke {
            self.progress.broken += 1;
            if self.progress.broken >= options.resume_limit {
                let message = format!(
                    "No instance of model `{}` could go on with the request after {} attempts: {message}",
                    self.model.name, self.progress.broken
                );
                return Err(Ending::Failed(ApiError::Unavailable { message, retry_after_s: Some(1) }, "instances"));
            }
            if self.progress.broken > 1 {
                sleep(options.resume_backoff * (1 << (self.progress.broken - 2).min(6))).await;
            }
        }
        self.progress.last_setback = message;
        Ok(())
    }

    /// Closes the books on the request, which ended well or otherwise.
    fn close(&mut self, ending: Option<&Ending>) {
        let hold = self.demand.held_for();
        self.demand.leave();
        let produced = self.progress.first_token_at.is_some();
        let (outcome, error) = match ending {
            None => (Outcome::Finished, None),
            Some(Ending::ClientGone) => (Outcome::Cancelled, None),
            Some(Ending::Failed(error, reason)) => {
                if !produced {
                    self.shared.refused.note(self.key, Instant::now());
                }
                if self.progress.instances.is_empty() {
                    count_rejected(&self.model.name, reason);
                } else {
                    count_failed(&self.model.name, reason);
                }
                (if produced { Outcome::Failed } else { Outcome::Rejected }, Some(error.to_string()))
            }
        };
        let record = self.record(hold, outcome, error);
        if let Some(itl_ms) = record.itl_ms {
            self.model.meters().itl_seconds.record(itl_ms / 1000.0);
        }
        self.shared.records.generated(record);
    }
}

impl Active {
    /// Runs the request to its end, whichever that is.
    pub async fn run(mut self) {
        let outlet = self.outlet.clone();
        let deadline = self.context.deadline.into();
        let interval = self.shared.options.waiting_interval;
        let served = tokio::select! {
            biased;
            () = outlet.closed() => Err(Ending::ClientGone),
            () = sleep_until(deadline) => Err(self.deadline_passed()),
            () = keep_alive(&outlet, interval) => Err(Ending::ClientGone),
            served = self.serve() => served,
        };
        drop(outlet);
        self.finish(served).await;
    }

    /// Attempts until the stream is finished or hopeless.
    async fn serve(&mut self) -> Result<Option<Finished>, Ending> {
        loop {
            if let Some(reason) = self.already_complete() {
                let finished = HopEvent::Finished { reason, cached_tokens: self.progress.cached_tokens };
                self.outlet.send(finished).await.map_err(|_| Ending::ClientGone)?;
                return Ok(None);
            }
            let (lease, connection) = self.acquire().await?;
            match self.attempt(&lease, connection).await? {
                Ok(stream) => return Ok(Some(Finished { lease, stream })),
                Err(setback) => self.set_back(&lease, setback).await?,
            }
        }
    }

    /// A stream whose last token was delivered and whose end was lost with its instance needs no other one.
    fn already_complete(&self) -> Option<FinishReason> {
        let emitted = &self.request.emitted;
        if emitted.len() <= self.progress.emitted_before {
            return None;
        }
        let stop = &self.request.stop;
        let text = self.text.get().filter(|_| !stop.ignore_eos);
        let ends =
            |token| stop.stop_token_ids.contains(token) || text.is_some_and(|text| text.eos_ids().contains(token));
        let may_stop = emitted.len() >= stop.min_tokens as usize && emitted.len() > self.request.given.len();
        if may_stop && emitted.last().is_some_and(ends) {
            return Some(FinishReason::Stop);
        }
        (emitted.len() >= stop.max_tokens as usize).then_some(FinishReason::Length)
    }

    /// Sends the request to an instance and passes its tokens on. The inner result is the finished stream, or
    /// what went wrong.
    async fn attempt(&mut self, lease: &Lease, connection: Connection) -> Result<Result<HopStream, Setback>, Ending> {
        self.note_attempt(lease);
        let request = match hop::http_request(lease, &self.context, GENERATE_PATH, &self.request) {
            Ok(request) => request,
            Err(setback) => return Ok(Err(setback)),
        };
        let shared = self.shared.clone();
        let send = hop::send(lease, connection, request, &shared.options);
        let ends_at = self.hold_ends_at();
        let sent = until_ready(&self.model, lease, &mut self.demand, ends_at, send).await;
        let mut stream = match sent.ok_or_else(|| self.held_too_long())? {
            Ok(stream) => stream,
            Err(setback) => return Ok(Err(setback)),
        };
        let mut first = true;
        loop {
            let next = if first {
                let next = until_ready(&self.model, lease, &mut self.demand, ends_at, stream.next()).await;
                next.ok_or_else(|| self.held_too_long())?
            } else if stream.has_next() {
                stream.next().await
            } else {
                let stall = self.shared.options.stall_timeout;
                timeout(stall, stream.next())
                    .await
                    .unwrap_or_else(|_| Err(Setback::Broken(format!("no token for {} s", stall.as_secs_f32()))))
            };
            match next {
                Ok(event) if event.tokens().is_some_and(<[u32]>::is_empty) => {}
                Ok(event @ (HopEvent::Tokens(_) | HopEvent::Scored { .. })) => {
                    if let Err(setback) = self.deliver(lease, event).await? {
                        return Ok(Err(setback));
                    }
                    first = false;
                }
                Ok(finished) => {
                    if let HopEvent::Finished { cached_tokens, .. } = finished {
                        self.progress.cached_tokens = cached_tokens;
                    }
                    self.served(lease);
                    self.outlet.send(finished).await.map_err(|_| Ending::ClientGone)?;
                    return Ok(Ok(stream));
                }
                Err(setback) => return Ok(Err(setback)),
            }
        }
    }

    /// Passes tokens on. More than were asked for are a sign of a confused instance and are not passed on.
    async fn deliver(&mut self, lease: &Lease, event: HopEvent) -> Result<Result<(), Setback>, Ending> {
        let tokens = event.tokens().unwrap_or_default().to_vec();
        if self.request.emitted.len() + tokens.len() > self.request.stop.max_tokens as usize {
            let setback = Setback::Broken("the instance sent more tokens than were asked for".to_owned());
            return Ok(Err(setback));
        }
        self.served(lease);
        self.outlet.send(event).await.map_err(|_| Ending::ClientGone)?;
        self.tokens_came();
        let drawn_before = self.request.drawn(self.request.emitted.len());
        self.request.emitted.extend(tokens);
        let drawn = self.request.drawn(self.request.emitted.len()) - drawn_before;
        self.model.output_tokens_total.fetch_add(drawn as u64, Ordering::Relaxed);
        Ok(Ok(()))
    }

    /// Tells the client how the request ended, its books being closed.
    async fn finish(mut self, served: Result<Option<Finished>, Ending>) {
        self.close(served.as_ref().err());
        let Self { outlet, shared, .. } = self;
        match served {
            Err(Ending::Failed(error, _)) => outlet.fail(error),
            Err(Ending::ClientGone) | Ok(None) => {}
            Ok(Some(finished)) => {
                drop(outlet);
                finished.recycle(&shared).await;
            }
        }
    }
}

/// A stream that came to its end, with the place that it still takes.
struct Finished {
    lease: Lease,
    stream: HopStream,
}

impl Finished {
    /// Gives the place back, then the connection once its last bytes are read.
    async fn recycle(self, shared: &Shared) {
        let endpoint = self.lease.endpoint.clone();
        drop(self.lease);
        if let Some(connection) = self.stream.into_idle().await {
            endpoint.put_idle(connection, &shared.options);
        }
    }
}

/// Waits for `work`; meanwhile counts the request as in flight as soon as its instance has loaded. `None` when
/// the instance is still loading at `hold_ends_at`.
async fn until_ready<T>(
    model: &Arc<ModelState>,
    lease: &Lease,
    demand: &mut DemandGuard,
    hold_ends_at: Instant,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut version = model.subscribe();
    tokio::pin!(work);
    while demand.is_held() {
        if lease.endpoint.is_ready() {
            demand.fly();
            break;
        }
        tokio::select! {
            biased;
            done = &mut work => return Some(done),
            changed = timeout_at(hold_ends_at.into(), version.changed()) => changed.ok()?.ok()?,
        }
    }
    Some(work.await)
}

/// Sends `Waiting` after each interval in which nothing else was sent. Never ends.
async fn keep_alive(outlet: &Outlet, interval: Duration) {
    loop {
        let sent = outlet.sent();
        sleep(interval).await;
        if outlet.sent() == sent {
            outlet.waiting();
        }
    }
}
