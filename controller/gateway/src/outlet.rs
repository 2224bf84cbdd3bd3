//! The way from a request's task to the HTTP layer. Until something has been sent, an error can still become
//! an HTTP status; afterwards it can only be an event. The outlet knows which of the two it is.

use engine_http::ApiError;
use engine_http::backend::StreamEvent;
use engine_wire::hop::HopEvent;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, oneshot};

/// Events between the request's task and the HTTP layer. Few, so that a client's disconnect leaves few tokens
/// that were metered and not sent, and a slow client soon slows its own sequence.
const EVENTS: usize = 8;

/// Takes, once, how the answer started or what went wrong before.
type Start<S> = oneshot::Sender<Result<S, ApiError>>;

/// The client is gone.
#[derive(Debug, PartialEq)]
pub struct ClientGone;

/// Sends events `E` to one client, after saying by an `S` how the answer starts: the default one if nobody says
/// otherwise. Clones send to the same one.
pub struct Outlet<E = StreamEvent, S = ()> {
    events: mpsc::Sender<Result<E, ApiError>>,
    started: Arc<Mutex<Option<Start<S>>>>,
    sent: Arc<AtomicU64>,
}

impl<E, S> Clone for Outlet<E, S> {
    fn clone(&self) -> Self {
        Self { events: self.events.clone(), started: self.started.clone(), sent: self.sent.clone() }
    }
}

/// The receiving ends: how the answer started, and its events.
pub struct OutletReceiver<E = StreamEvent, S = ()> {
    pub started: oneshot::Receiver<Result<S, ApiError>>,
    pub events: mpsc::Receiver<Result<E, ApiError>>,
}

impl Outlet {
    /// One that nobody listens to.
    pub fn silent() -> Self {
        Self::new().0
    }

    /// Sends an event, as fast as the client takes it.
    pub async fn send(&self, event: HopEvent) -> Result<(), ClientGone> {
        self.emit(StreamEvent::Hop(event)).await
    }

    /// Says that the request is alive. Skipped when the client has not even taken the events before.
    pub fn waiting(&self) {
        self.try_emit(StreamEvent::Waiting);
    }
}

impl<E: Send + 'static, S: Default> Outlet<E, S> {
    pub fn new() -> (Self, OutletReceiver<E, S>) {
        let (events, events_receiver) = mpsc::channel(EVENTS);
        let (started, started_receiver) = oneshot::channel();
        let outlet = Self { events, started: Arc::new(Mutex::new(Some(started))), sent: Arc::default() };
        (outlet, OutletReceiver { started: started_receiver, events: events_receiver })
    }

    /// Says how the answer starts, if nothing was said before; `true` if it was heard.
    pub fn start(&self, result: Result<S, ApiError>) -> bool {
        let started = self.started.lock().unwrap_or_else(PoisonError::into_inner).take();
        started.is_some_and(|started| started.send(result).is_ok())
    }

    /// Sends an event, as fast as the client takes it.
    pub async fn emit(&self, event: E) -> Result<(), ClientGone> {
        self.start(Ok(S::default()));
        self.events.send(Ok(event)).await.map_err(|_| ClientGone)?;
        self.sent.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Sends an event if there is room for it.
    pub fn try_emit(&self, event: E) {
        self.start(Ok(S::default()));
        if self.events.try_send(Ok(event)).is_ok() {
            self.sent.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Ends the stream with an error: as the answer if nothing was sent yet, else as an event.
    pub fn fail(self, error: ApiError) {
        if self.start(Err(error.clone())) {
            return;
        }
        // The channel may be full because the client reads slowly: the last word waits beside it, and ends
        // when the client takes it or goes.
        if let Err(mpsc::error::TrySendError::Full(item)) = self.events.try_send(Err(error)) {
            tokio::spawn(async move {
                let last_word = tokio::time::timeout(LAST_WORD_TIMEOUT, self.events.send(item));
                let _ = last_word.await;
            });
        }
    }

    /// Resolves when the client is gone.
    pub async fn closed(&self) {
        self.events.closed().await;
    }

    /// Events sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// Time that a slow client has for taking the final error.
const LAST_WORD_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
