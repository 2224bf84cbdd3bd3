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

/// Takes, once, whether the stream started or what went wrong before.
type Start = oneshot::Sender<Result<(), ApiError>>;

/// The client is gone.
#[derive(Debug, PartialEq)]
pub struct ClientGone;

/// Sends to one client. Clones send to the same one.
#[derive(Clone)]
pub struct Outlet {
    events: mpsc::Sender<Result<StreamEvent, ApiError>>,
    started: Arc<Mutex<Option<Start>>>,
    sent: Arc<AtomicU64>,
}

/// The receiving ends: whether the stream started, and its events.
pub struct OutletReceiver {
    pub started: oneshot::Receiver<Result<(), ApiError>>,
    pub events: mpsc::Receiver<Result<StreamEvent, ApiError>>,
}

impl Outlet {
    pub fn new() -> (Self, OutletReceiver) {
        let (events, events_receiver) = mpsc::channel(EVENTS);
        let (started, started_receiver) = oneshot::channel();
        let outlet = Self { events, started: Arc::new(Mutex::new(Some(started))), sent: Arc::default() };
        (outlet, OutletReceiver { started: started_receiver, events: events_receiver })
    }

    /// One that nobody listens to.
    pub fn silent() -> Self {
        Self::new().0
    }

    fn start(&self, result: Result<(), ApiError>) -> bool {
        let started = self.started.lock().unwrap_or_else(PoisonError::into_inner).take();
        started.is_some_and(|started| started.send(result).is_ok())
    }

    /// Sends an event, as fast as the client takes it.
    pub async fn send(&self, event: HopEvent) -> Result<(), ClientGone> {
        self.start(Ok(()));
        self.events.send(Ok(StreamEvent::Hop(event))).await.map_err(|_| ClientGone)?;
        self.sent.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Says that the request is alive. Skipped when the client has not even taken the events before.
    pub fn waiting(&self) {
        self.start(Ok(()));
        if self.events.try_send(Ok(StreamEvent::Waiting)).is_ok() {
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
