//! The life of one request: held until an instance can take it, sent there, its tokens passed on, and taken
//! elsewhere when the instance dies. One task per request; whatever it waits for, the deadline and the
//! client's disconnect end it, because both stand around the whole of it.

use crate::connection::Connection;
use crate::demand::DemandGuard;
use crate::endpoint::{Choice, Lease};
use crate::gateway::Shared;
use crate::hop::{self, HopStream, Setback};
use crate::meters::{count_failed, count_rejected, token_counters};
use crate::model::ModelState;
use crate::outlet::Outlet;
use crate::records::{Outcome, RECORD_INSTANCES, RequestRecord};
use engine_http::{ApiError, RequestContext};
use engine_wire::hop::{FinishReason, GenerateRequest, HopEvent};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::time::{sleep, sleep_until, timeout, timeout_at};

/// How a request ended, other than well.
#[derive(Debug)]
pub enum Ending {
    ClientGone,
    /// With the label for the metrics.
    Failed(ApiError, &'static str),
}

/// One request and all that is known of its way so far.
pub struct Active {
    shared: Arc<Shared>,
    model: Arc<ModelState>,
    /// Revision that it was tokenized for.
    revision: String,
    context: RequestContext,
    /// `emitted` grows with every token delivered.
    request: GenerateRequest,
    outlet: Outlet,
    demand: DemandGuard,
    progress: Progress,
    output_counter: metrics::Counter,
    prompt_counter: metrics::Counter,
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
    instances: Vec<String>,
    resumes: u32,
    /// Tokens that the request brought along as emitted already.
    emitted_before: usize,
    first_token_at: Option<Instant>,
    last_token_at: Option<Instant>,
    cached_tokens: u32,
    overhead_recorded: bool,
}

impl Active {
    pub fn new(
        shared: Arc<Shared>,
        model: Arc<ModelState>,
        revision: String,
        context: RequestContext,
        request: GenerateRequest,
        outlet: Outlet,
    ) -> Self {
        let (prompt_counter, output_counter) = token_counters(&model.name, &context.tenant);
        let demand = DemandGuard::new(model.clone());
        let progress = Progress { emitted_before: request.emitted.len(), ..Progress::default() };
        Self { shared, model, revision, context, request, outlet, demand, progress, output_counter, prompt_counter }
    }

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

    fn deadline_passed(&self) -> Ending {
        let deadline_ms = self.context.deadline.saturating_duration_since(self.context.arrived_at).as_millis() as u64;
        let stage = if self.demand.is_held() { "while it waited for an instance" } else { "before it was complete" };
        Ending::Failed(ApiError::DeadlineExceeded { deadline_ms, stage }, "deadline")
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
        let stopped = emitted.last().is_some_and(|token| stop.stop_token_ids.contains(token));
        if stopped && emitted.len() > stop.min_tokens as usize {
            return Some(FinishReason::Stop);
        }
        (emitted.len() >= stop.max_tokens as usize).then_some(FinishReason::Length)
    }

    /// Holds the request until it has a place at an instance and a connection to it. Requests that are held
    /// for the first time go in the order of their arrival; those that come back from an instance have had
    /// their turn.
    async fn acquire(&mut self) -> Result<(Lease, Connection), Ending> {
        let mut version = self.model.subscribe();
        let mut turn: Option<Turn> = None;
        loop {
            version.mark_unchanged();
            let may_go = self.progress.admitted || turn.is_some() || self.model.queued.load(Ordering::Acquire) == 0;
            let mut retry_at = None;
            if may_go {
                match self.choose()? {
                    Choice::Leased(lease) => match self.connect(&lease).await? {
                        Some(connection) => {
                            self.progress.admitted = true;
                            return Ok((lease, connection));
                        }
                        None => continue,
                    },
                    Choice::None { retry_at: at } => retry_at = at,
                }
            }
            self.hold()?;
            if may_go {
                // The place in the queue is taken before waiting, by this very check of `turn`.
                if !self.progress.admitted && turn.is_none() {
                    turn = Some(self.take_turn().await?);
                    continue;
                }
                self.wait_for_change(&mut version, retry_at).await?;
            } else {
                turn = Some(self.take_turn().await?);
            }
        }
    }

    fn choose(&self) -> Result<Choice, Ending> {
        let limit = self.shared.options.endpoint_in_flight_limit;
        self.model.choose(&self.revision, limit).ok_or_else(|| {
            let message = format!("Model `{}` was removed or replaced while the request waited", self.model.name);
            Ending::Failed(ApiError::Unavailable { message, retry_after_s: Some(1) }, "model_changed")
        })
    }

    /// A connection from the pool or a fresh one. `None` when the instance cannot be reached: it is avoided
    /// from now on, and the request looks for another one.
    async fn connect(&mut self, lease: &Lease) -> Result<Option<Connection>, Ending> {
        let options = &self.shared.options;
        let opened = match lease.endpoint.take_idle() {
            Some(connection) => Ok(connection),
            None => Connection::open(lease.endpoint.addr, options.connect_timeout).await,
        };
        match opened {
            Err(error) => {
                tracing::warn!(instance = lease.endpoint.instance, error, "an instance cannot be reached");
                lease.endpoint.failed(Instant::now(), options.quarantine);
                self.progress.last_setback = error;
                Ok(None)
            }
            Ok(connection) => {
                // An instance that is still loading lets the request wait inside; for the controller it is
                // a held one until then.
                if lease.endpoint.is_ready() {
                    self.demand.fly()
                } else {
                    self.hold()?
                }
                Ok(Some(connection))
            }
        }
    }

    /// Counts the request as held. The first time it may find the queue full.
    fn hold(&mut self) -> Result<(), Ending> {
        let limit = (!self.progress.admitted).then_some(self.shared.options.hold_limit);
        match self.demand.hold(limit) {
            Ok(true) => {
                self.progress.unserved_since.get_or_insert_with(Instant::now);
                self.shared.demand_changed.notify_one();
                self.outlet.waiting();
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(retry_after_s) => {
                let limit = self.shared.options.hold_limit;
                let error = ApiError::QueueFull { model: self.model.name.clone(), limit, retry_after_s };
                Err(Ending::Failed(error, "queue_full"))
            }
        }
    }

    fn hold_ends_at(&self) -> Instant {
        self.progress.unserved_since.unwrap_or_else(Instant::now) + self.shared.options.hold_timeout
    }

    fn held_too_long(&self) -> Ending {
        let cause = match self.progress.last_setback.as_str() {
            "" => "none is running yet".to_owned(),
            setback => format!("last trouble: {setback}"),
        };
        let message = format!(
            "No instance of model `{}` could take the request within {} s: {cause}",
            self.model.name,
            self.shared.options.hold_timeout.as_secs_f32()
        );
        let retry_after_s = Some(self.model.hold_book().retry_after_s());
        Ending::Failed(ApiError::Unavailable { message, retry_after_s }, "hold_timeout")
    }

    async fn take_turn(&self) -> Result<Turn, Ending> {
        let queued = Queued::new(self.model.clone());
        let lock = timeout_at(self.hold_ends_at().into(), self.model.turn.clone().lock_owned());
        let lock = lock.await.map_err(|_| self.held_too_long())?;
        Ok(Turn { _lock: lock, _queued: queued })
    }

    async fn wait_for_change(
        &self,
        version: &mut tokio::sync::watch::Receiver<u64>,
        retry_at: Option<Instant>,
    ) -> Result<(), Ending> {
        let ends_at = self.hold_ends_at();
        let until = retry_at.map_or(ends_at, |at| at.min(ends_at));
        if timeout_at(until.into(), version.changed()).await.is_err() && Instant::now() >= ends_at {
            return Err(self.held_too_long());
        }
        Ok(())
    }

    /// Sends the request to an instance and passes its tokens on. The inner result is the finished stream, or
    /// what went wrong.
    async fn attempt(&mut self, lease: &Lease, connection: Connection) -> Result<Result<HopStream, Setback>, Ending> {
        self.note_attempt(lease);
        let request = match hop::http_request(lease, &self.context, &self.request) {
            Ok(request) => request,
            Err(setback) => return Ok(Err(setback)),
        };
        let shared = self.shared.clone();
        let send = hop::send(lease, connection, request, &shared.options);
        let mut stream = match until_ready(&self.model, lease, &mut self.demand, send).await {
            Ok(stream) => stream,
            Err(setback) => return Ok(Err(setback)),
        };
        let mut first = true;
        loop {
            let next = if first {
                until_ready(&self.model, lease, &mut self.demand, stream.next()).await
            } else if stream.has_next() {
                stream.next().await
            } else {
                let stall = self.shared.options.stall_timeout;
                timeout(stall, stream.next())
                    .await
                    .unwrap_or_else(|_| Err(Setback::Broken(format!("no token for {} s", stall.as_secs_f32()))))
            };
            match next {
                Ok(HopEvent::Tokens(tokens)) if tokens.is_empty() => {}
                Ok(HopEvent::Tokens(tokens)) => {
                    if let Err(setback) = self.deliver(lease, tokens).await? {
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

    /// Passes tokens on. More than were asked for are a sign of a confused instance and are not passed on.
    async fn deliver(&mut self, lease: &Lease, tokens: Vec<u32>) -> Result<Result<(), Setback>, Ending> {
        if self.request.emitted.len() + tokens.len() > self.request.stop.max_tokens as usize {
            let setback = Setback::Broken("the instance sent more tokens than were asked for".to_owned());
            return Ok(Err(setback));
        }
        self.served(lease);
        self.outlet.send(HopEvent::Tokens(tokens.clone())).await.map_err(|_| Ending::ClientGone)?;
        let now = Instant::now();
        if self.progress.first_token_at.is_none() {
            self.progress.first_token_at = Some(now);
            let ttft = now.saturating_duration_since(self.context.arrived_at);
            self.model.meters().ttft_seconds.record(ttft.as_secs_f64());
        }
        self.progress.last_token_at = Some(now);
        self.model.output_tokens_total.fetch_add(tokens.len() as u64, Ordering::Relaxed);
        self.output_counter.increment(tokens.len() as u64);
        self.request.emitted.extend(tokens);
        Ok(Ok(()))
    }

    /// The instance does its work: the request is no longer held, and past trouble is forgotten.
    fn served(&mut self, lease: &Lease) {
        self.demand.fly();
        lease.endpoint.worked();
        if self.progress.first_token_at.is_none() {
            let prompt_tokens = self.request.prompt.len() as u64;
            self.model.prompt_tokens_total.fetch_add(prompt_tokens, Ordering::Relaxed);
            self.prompt_counter.increment(prompt_tokens);
        }
        self.progress.unserved_since = None;
        self.progress.broken = 0;
    }

    /// After a setback: gives up, or avoids the instance and lets `serve` go on.
    async fn set_back(&mut self, lease: &Lease, setback: Setback) -> Result<(), Ending> {
        let options = &self.shared.options;
        let (message, broke) = match setback {
            Setback::Final(error) => return Err(Ending::Failed(error, "refused")),
            Setback::Refused(message) => (message, false),
            Setback::Broken(message) => (message, true),
        };
        tracing::warn!(
            request_id = self.context.request_id,
            model = self.model.name,
            instance = lease.endpoint.instance,
            emitted = self.request.emitted.len(),
            message,
            "an instance failed a request, which goes on elsewhere"
        );
        lease.endpoint.failed(Instant::now(), options.quarantine);
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

    /// Closes the books on the request and tells the client how it ended.
    async fn finish(mut self, served: Result<Option<Finished>, Ending>) {
        let hold = self.demand.held_for();
        self.demand.leave();
        let produced = self.progress.first_token_at.is_some();
        let (outcome, error) = match &served {
            Ok(_) => (Outcome::Finished, None),
            Err(Ending::ClientGone) => (Outcome::Disconnected, None),
            Err(Ending::Failed(error, reason)) => {
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
        self.shared.records.push(record);
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

    fn record(&self, hold: Duration, outcome: Outcome, error: Option<String>) -> RequestRecord {
        let progress = &self.progress;
        let output_tokens = self.request.emitted.len() - progress.emitted_before;
        let since_arrival = |at: Instant| ms(at.saturating_duration_since(self.context.arrived_at));
        let itl_ms = match (progress.first_token_at, progress.last_token_at) {
            (Some(first), Some(last)) if output_tokens > 1 => Some(ms(last - first) / (output_tokens - 1) as f64),
            _ => None,
        };
        let duration = self.context.arrived_at.elapsed();
        let now_unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        RequestRecord {
            request_id: self.context.request_id.clone(),
            model: self.model.name.clone(),
            tenant: self.context.tenant.clone(),
            trace_parent: self.context.trace_parent.clone(),
            peer: self.context.peer,
            arrived_unix_ms: now_unix.saturating_sub(duration).as_millis() as u64,
            prompt_tokens: u32::try_from(self.request.prompt.len()).unwrap_or(u32::MAX),
            output_tokens: u32::try_from(output_tokens).unwrap_or(u32::MAX),
            cached_tokens: progress.cached_tokens,
            hold_ms: ms(hold),
            ttft_ms: progress.first_token_at.map(since_arrival),
            itl_ms,
            duration_ms: ms(duration),
            instances: progress.instances.clone(),
            resumes: progress.resumes,
            outcome,
            error,
        }
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
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

/// The turn to look for an instance; dropping it lets the next held request have it.
struct Turn {
    _lock: tokio::sync::OwnedMutexGuard<()>,
    _queued: Queued,
}

/// Counts a request that waits for its turn or has it.
struct Queued(Arc<ModelState>);

impl Queued {
    fn new(model: Arc<ModelState>) -> Self {
        model.queued.fetch_add(1, Ordering::AcqRel);
        Self(model)
    }

    fn counter(&self) -> &AtomicUsize {
        &self.0.queued
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.counter().fetch_sub(1, Ordering::AcqRel);
    }
}

/// Waits for `work`; meanwhile counts the request as in flight as soon as its instance has loaded.
async fn until_ready<T>(
    model: &Arc<ModelState>,
    lease: &Lease,
    demand: &mut DemandGuard,
    work: impl Future<Output = T>,
) -> T {
    if !demand.is_held() {
        return work.await;
    }
    let mut version = model.subscribe();
    tokio::pin!(work);
    loop {
        if lease.endpoint.is_ready() {
            demand.fly();
            return work.await;
        }
        tokio::select! {
            biased;
            done = &mut work => return done,
            changed = version.changed() => if changed.is_err() { return work.await },
        }
    }
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
