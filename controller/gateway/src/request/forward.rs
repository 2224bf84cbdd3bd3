//! A request that is passed on as it came, to an engine that speaks the API by itself: held and placed like any other.
//! Until the first byte of an answer it is tried elsewhere when an instance fails. After it nobody else can go on with
//! it, because another engine's output need not be the same; the client is told so.

use super::{Active, Asked, Ending};
use crate::connection::Connection;
use crate::endpoint::{EndpointState, Lease};
use crate::forward::{self, Answer, ForwardStream, excerpt};
use crate::hop::{self, Setback};
use crate::outlet::Outlet;
use engine_http::{ApiError, ForwardPart, ForwardRequest, ForwardUsage, ForwardedWhole};
use std::hash::Hasher;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::time::{sleep, sleep_until, timeout};

/// An instance that answers with a server error works, so it is not avoided by others, and the request may well be what
/// is wrong: so many such answers are enough.
const ERROR_ANSWERS: u32 = 3;

/// The way to the client: an answer in one piece at its start, or else a stream.
pub type ForwardOutlet = Outlet<ForwardPart, Option<ForwardedWhole>>;

/// A request as it came, and what has come of it.
pub struct ForeignRequest {
    request: ForwardRequest,
    /// Bytes of an answer went to the client.
    begun: bool,
    error_answers: u32,
    usage: ForwardUsage,
}

impl ForeignRequest {
    pub fn new(request: ForwardRequest) -> Self {
        Self { request, begun: false, error_answers: 0, usage: ForwardUsage::default() }
    }
}

impl Asked for ForeignRequest {
    fn model(&self) -> &str {
        &self.request.model
    }

    fn hash(&self, hasher: &mut dyn Hasher) {
        hasher.write(self.request.path.as_bytes());
        hasher.write(&self.request.body);
    }

    fn prompt_tokens(&self) -> usize {
        self.usage.prompt_tokens as usize
    }

    fn emitted_tokens(&self) -> usize {
        self.usage.output_tokens as usize
    }
}

/// An answer that is complete.
enum Done {
    Whole(ForwardedWhole),
    /// The stream whose last event was passed on, to be read to its end.
    Stream(Box<ForwardStream>, Arc<EndpointState>),
}

impl Done {
    /// A server error that another instance may not have; 501 says that the engine has no such function.
    fn error_answer(&self) -> Option<&ForwardedWhole> {
        match self {
            Self::Whole(whole) if whole.status >= 500 && whole.status != 501 => Some(whole),
            _ => None,
        }
    }
}

impl Active<ForeignRequest> {
    /// Runs the request to its end, whichever that is.
    pub async fn run_forward(mut self, outlet: ForwardOutlet) {
        let deadline = self.context.deadline.into();
        let interval = self.shared.options.forward_waiting_interval;
        let is_stream = self.request.request.stream;
        let served = tokio::select! {
            biased;
            () = outlet.closed() => Err(Ending::ClientGone),
            () = sleep_until(deadline) => Err(self.deadline_passed()),
            () = keep_alive(&outlet, interval), if is_stream => Err(Ending::ClientGone),
            served = self.serve_forward(&outlet) => served,
        };
        self.close(served.as_ref().err());
        match served {
            Err(Ending::Failed(error, _)) => outlet.fail(error),
            Err(Ending::ClientGone) => {}
            Ok(Done::Whole(whole)) => drop(outlet.start(Ok(Some(whole)))),
            Ok(Done::Stream(stream, endpoint)) => {
                // Whoever is gone meanwhile needs no end.
                let _ = outlet.emit(ForwardPart::End(self.request.usage)).await;
                drop(outlet);
                if let Some(connection) = hop::read_tail(stream.connection, stream.body).await {
                    endpoint.put_idle(connection, &self.shared.options);
                }
            }
        }
    }

    /// Attempts until there is an answer or no hope.
    async fn serve_forward(&mut self, outlet: &ForwardOutlet) -> Result<Done, Ending> {
        loop {
            let (lease, connection) = self.acquire().await?;
            match self.attempt_forward(&lease, connection, outlet).await? {
                Ok(done) => match done.error_answer().map(|whole| excerpt(&whole.body)) {
                    Some(message) if self.may_ask_again(&lease, &message) => {
                        sleep(self.shared.options.resume_backoff * self.request.error_answers).await;
                    }
                    _ => return Ok(done),
                },
                Err(setback) if self.request.begun => return Err(self.broken_off(&lease, setback)),
                Err(setback) => self.set_back(&lease, setback).await?,
            }
        }
    }

    /// After a server error: whether another attempt is worth it, elsewhere if there is an elsewhere.
    fn may_ask_again(&mut self, lease: &Lease, message: &str) -> bool {
        let (request_id, instance) = (&self.context.request_id, &lease.endpoint.instance);
        tracing::debug!(request_id, instance, message, "an engine answered with a server error");
        self.request.error_answers += 1;
        self.progress.avoid = Some(instance.clone());
        self.request.error_answers < ERROR_ANSWERS
    }

    /// The engine died, or fell silent, behind the first byte of its answer.
    fn broken_off(&self, lease: &Lease, setback: Setback) -> Ending {
        let message = match setback {
            Setback::Final(error) => return Ending::Failed(error, "refused"),
            Setback::Refused(message) | Setback::Broken(message) => message,
        };
        let (model, instance) = (&self.model.name, &lease.endpoint.instance);
        if lease.endpoint.failed(Instant::now(), self.shared.options.quarantine) {
            tracing::warn!(model, instance, message, "an instance broke off its answers");
        }
        let message = format!(
            "The engine of model `{model}` broke off in the middle of its answer ({message}). What came before this is \
             not all of it, and no other instance can go on from there: ask again."
        );
        Ending::Failed(ApiError::Unavailable { message, retry_after_s: None }, "broken_off")
    }

    /// Sends the request to an instance and passes its answer on. The inner result is the complete answer, or what
    /// went wrong.
    async fn attempt_forward(
        &mut self,
        lease: &Lease,
        connection: Connection,
        outlet: &ForwardOutlet,
    ) -> Result<Result<Done, Setback>, Ending> {
        self.note_attempt(lease);
        let ForwardRequest { path, body, .. } = &self.request.request;
        let request = match hop::raw_request(lease, &self.context, path, body.clone()) {
            Ok(request) => request,
            Err(setback) => return Ok(Err(setback)),
        };
        let mut working = Working::begin(&lease.endpoint);
        match forward::send(lease, connection, request, &self.shared.options).await {
            Ok(Answer::Whole(whole, connection)) => {
                self.served(lease);
                self.count(whole.usage);
                working.answered = Some((whole.usage, 0));
                if let Some(connection) = connection {
                    lease.endpoint.put_idle(connection, &self.shared.options);
                }
                Ok(Ok(Done::Whole(whole)))
            }
            Ok(Answer::Stream(stream)) => self.pass_on(lease, Box::new(stream), &mut working, outlet).await,
            Err(setback) => Ok(Err(setback)),
        }
    }

    /// Passes a stream on to its end.
    async fn pass_on(
        &mut self,
        lease: &Lease,
        mut stream: Box<ForwardStream>,
        working: &mut Working,
        outlet: &ForwardOutlet,
    ) -> Result<Result<Done, Setback>, Ending> {
        let stall = self.shared.options.stall_timeout;
        loop {
            let next = if self.request.begun {
                let silent = |_| Err(Setback::Broken(format!("nothing came for {} s", stall.as_secs_f32())));
                timeout(stall, stream.next()).await.unwrap_or_else(silent)
            } else {
                // A long prompt is silent for as long as it takes; only the deadline counts.
                stream.next().await
            };
            let (bytes, tokens) = match next {
                Ok(Some(events)) => events,
                Ok(None) => {
                    let counted = self.request.usage.output_tokens;
                    self.count(stream.usage());
                    working.answered = Some((stream.usage(), counted));
                    return Ok(Ok(Done::Stream(stream, lease.endpoint.clone())));
                }
                Err(setback) => return Ok(Err(setback)),
            };
            self.served(lease);
            self.request.begun = true;
            outlet.emit(ForwardPart::Events { bytes, tokens }).await.map_err(|_| Ending::ClientGone)?;
            if tokens > 0 {
                self.tokens_came();
                self.request.usage.output_tokens += tokens;
                self.model.output_tokens_total.fetch_add(u64::from(tokens), Ordering::Relaxed);
                lease.endpoint.work.produced(tokens);
            }
        }
    }

    /// Takes in the tokens of a complete answer, of which some may be counted already.
    fn count(&mut self, usage: ForwardUsage) {
        let uncounted = usage.output_tokens.saturating_sub(self.request.usage.output_tokens);
        self.model.output_tokens_total.fetch_add(u64::from(uncounted), Ordering::Relaxed);
        self.model.prompt_tokens_total.fetch_add(u64::from(usage.prompt_tokens), Ordering::Relaxed);
        self.progress.cached_tokens = usage.cached_tokens;
        self.request.usage = usage;
    }
}

/// Counts a request as work of its engine while it is there.
struct Working {
    endpoint: Arc<EndpointState>,
    answered: Option<(ForwardUsage, u32)>,
}

impl Working {
    fn begin(endpoint: &Arc<EndpointState>) -> Self {
        endpoint.work.begin();
        Self { endpoint: endpoint.clone(), answered: None }
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.endpoint.work.end(self.answered);
    }
}

/// Says after each interval in which nothing was sent that the request is alive. Never ends.
async fn keep_alive(outlet: &ForwardOutlet, interval: Duration) {
    loop {
        let sent = outlet.sent();
        sleep(interval).await;
        if outlet.sent() == sent {
            outlet.try_emit(ForwardPart::Waiting);
        }
    }
}
