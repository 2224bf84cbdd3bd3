//! What the step thread, the HTTP routes and the control socket share.

use crate::ledger::Ledger;
use crate::limits::ModelFacts;
use crate::shelf::Shelf;
use engine_core::EncodeShape;
use engine_http::ApiError;
use engine_wire::control::EngineState;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Retry-After of a refusal, s: about the time in which a queue moves.
const RETRY_AFTER_S: u32 = 1;

/// Texts that may be inside for vectors: eight of the largest requests.
const MAX_TEXTS: usize = 16_384;

/// Who this engine is, fixed from its first moment.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub instance: String,
    pub model: String,
    pub revision: String,
    pub port: u16,
    pub cores: Vec<u32>,
    pub started_at_ns: u64,
}

/// One per engine.
pub(crate) struct Shared {
    pub identity: Identity,
    state: watch::Sender<EngineState>,
    /// The adapters beside the model.
    pub shelf: Shelf,
    /// Set when the model is loaded.
    pub facts: OnceLock<ModelFacts>,
    /// Set instead when the model is an encoder.
    pub encoder: OnceLock<EncodeShape>,
    ledger: Mutex<Ledger>,
    /// One permit for each request inside, from its acceptance to the hand-over of its last event.
    slots: Arc<Semaphore>,
    slots_total: u32,
    max_queue: usize,
    /// One permit for each text inside, because their vectors are gathered here.
    texts: Arc<Semaphore>,
}

impl Shared {
    /// `max_inside` requests may be inside at once, those in the batch included.
    pub fn new(identity: Identity, max_queue: usize, max_inside: usize) -> Self {
        let slots_total = u32::try_from(max_inside.min(Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        let ledger = Ledger::new(identity.started_at_ns);
        let shelf = Shelf::new(&identity.model);
        Self {
            identity,
            shelf,
            state: watch::Sender::new(EngineState::Loading),
            facts: OnceLock::new(),
            encoder: OnceLock::new(),
            texts: Arc::new(Semaphore::new(MAX_TEXTS)),
            ledger: Mutex::new(ledger),
            slots: Arc::new(Semaphore::new(slots_total as usize)),
            slots_total,
            max_queue,
        }
    }

    pub fn state(&self) -> EngineState {
        *self.state.borrow()
    }

    /// The model can compute. A drain that began meanwhile goes on.
    pub fn set_ready(&self) {
        self.state.send_if_modified(|state| {
            let loading = *state == EngineState::Loading;
            if loading {
                *state = EngineState::Ready;
            }
            loading
        });
    }

    /// Waits until the model can compute, or never will. The caller bounds the wait.
    pub async fn loaded(&self) {
        // Fails only for a sender that is gone, which is a part of this.
        let _ = self.state.subscribe().wait_for(|state| *state != EngineState::Loading).await;
    }

    /// From here on no new request is taken.
    pub fn set_draining(&self) {
        self.state.send_replace(EngineState::Draining);
    }

    /// A poisoned lock is used on: the ledger holds counters, which are consistent one by one.
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a request in, or says why not.
    pub fn enter(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        if self.state() == EngineState::Draining {
            return Err(ApiError::ShuttingDown);
        }
        self.slots.clone().try_acquire_owned().map_err(|_| ApiError::QueueFull {
            model: self.identity.model.clone(),
            limit: self.max_queue,
            retry_after_s: RETRY_AFTER_S,
        })
    }

    /// Lets a request for vectors in, or says why not: the places of the request and of its texts.
    pub fn enter_texts(&self, texts: usize) -> Result<[OwnedSemaphorePermit; 2], ApiError> {
        let slot = self.enter()?;
        let wanted = u32::try_from(texts).unwrap_or(u32::MAX);
        let places = self.texts.clone().try_acquire_many_owned(wanted).map_err(|_| ApiError::Unavailable {
            message: format!(
                "The engine of model `{}` has too many texts waiting: {MAX_TEXTS} can be inside at a time.",
                self.identity.model
            ),
            retry_after_s: Some(RETRY_AFTER_S),
        })?;
        Ok([slot, places])
    }

    /// Waits until no request is inside. The caller bounds the wait.
    pub async fn emptied(&self) {
        // Fails only for a closed semaphore, which this one never is.
        let _ = self.slots.acquire_many(self.slots_total).await;
    }
}
