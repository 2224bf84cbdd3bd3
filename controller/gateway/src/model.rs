//! One model in the gateway: what the route table says of it, the requests for it, and the counters. It is
//! kept when the model is removed, so that totals never fall if the name comes back.

use crate::conversations::Conversations;
use crate::demand::{HoldBook, ModelDemand};
use crate::endpoint::{Choice, EndpointState, choose};
use crate::meters::Meters;
use crate::routes::{Endpoint, ModelRoute};
use engine_text::TextModel;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::{OnceCell, watch};

/// A model's text part, loaded at most once per revision.
pub type TextCell = Arc<OnceCell<Arc<TextModel>>>;

/// State of one model name.
#[derive(Debug)]
pub struct ModelState {
    pub name: String,
    routing: Mutex<Routing>,
    /// Changes whenever `choose` may answer differently.
    version: watch::Sender<u64>,
    pub arrivals_total: AtomicU64,
    pub in_flight: AtomicU32,
    pub prompt_tokens_total: AtomicU64,
    pub output_tokens_total: AtomicU64,
    /// Requests that wait for their turn or have it.
    pub queued: AtomicUsize,
    /// Held requests go in the order in which they asked for this lock: tokio's is fair.
    pub turn: Arc<tokio::sync::Mutex<()>>,
    book: Mutex<HoldBook>,
    conversations: Mutex<Conversations>,
    meters: OnceLock<Meters>,
}

#[derive(Default)]
struct Routing {
    route: Option<Arc<ModelRoute>>,
    text: TextCell,
    listed: Vec<Endpoint>,
    endpoints: Vec<Arc<EndpointState>>,
}

impl std::fmt::Debug for Routing {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Routing").field("route", &self.route).field("listed", &self.listed).finish()
    }
}

impl ModelState {
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            routing: Mutex::default(),
            version: watch::Sender::new(0),
            arrivals_total: AtomicU64::new(0),
            in_flight: AtomicU32::new(0),
            prompt_tokens_total: AtomicU64::new(0),
            output_tokens_total: AtomicU64::new(0),
            queued: AtomicUsize::new(0),
            turn: Arc::default(),
            book: Mutex::default(),
            conversations: Mutex::default(),
            meters: OnceLock::new(),
        }
    }

    fn routing(&self) -> MutexGuard<'_, Routing> {
        self.routing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn hold_book(&self) -> MutexGuard<'_, HoldBook> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn conversations(&self) -> MutexGuard<'_, Conversations> {
        self.conversations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn meters(&self) -> &Meters {
        self.meters.get_or_init(|| Meters::new(&self.name))
    }

    /// Wakes its receivers when an endpoint may have become available.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// The model's row in the route table and its text cell; `None` when it is not registered.
    pub fn route(&self) -> Option<(Arc<ModelRoute>, TextCell)> {
        let routing = self.routing();
        routing.route.clone().map(|route| (route, routing.text.clone()))
    }

    /// Endpoints as of the last route table.
    pub fn endpoints(&self) -> Vec<Arc<EndpointState>> {
        self.routing().endpoints.clone()
    }

    /// Takes over what a new route table says of this model, and the states of the endpoints that it lists. A new
    /// list ends quarantines: the controller has looked at the instances since.
    pub fn update(
        &self,
        route: Option<&Arc<ModelRoute>>,
        text: TextCell,
        listed: &[Endpoint],
        endpoints: Vec<Arc<EndpointState>>,
    ) {
        let mut routing = self.routing();
        let mut changed = routing.route.as_ref() != route;
        routing.route = route.cloned();
        routing.text = text;
        if routing.listed != listed {
            changed = true;
            for (endpoint, listed) in endpoints.iter().zip(listed) {
                endpoint.set_ready(listed.ready);
                endpoint.pardon();
            }
            routing.endpoints = endpoints;
            routing.listed = listed.to_vec();
        }
        drop(routing);
        if changed {
            self.version.send_modify(|version| *version += 1);
        }
    }

    /// Takes a place at the least loaded endpoint of `revision`, at `last` only if there is no other; `None` when the model is gone or is another
    /// revision by now, so that no stream mixes the outputs of two.
    pub fn choose(&self, revision: &str, in_flight_limit: u32, last: Option<&str>) -> Option<Choice> {
        let routing = self.routing();
        if routing.route.as_ref().is_none_or(|route| route.revision != revision) {
            return None;
        }
        Some(choose(&routing.endpoints, in_flight_limit, last, &self.version))
    }

    /// The counters now.
    pub fn demand(&self) -> ModelDemand {
        let (turns_total, turns) = self.conversations().turns();
        let book = self.hold_book();
        ModelDemand {
            arrivals_total: self.arrivals_total.load(Ordering::Relaxed),
            held: u32::try_from(book.len()).unwrap_or(u32::MAX),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            prompt_tokens_total: self.prompt_tokens_total.load(Ordering::Relaxed),
            output_tokens_total: self.output_tokens_total.load(Ordering::Relaxed),
            turns_total,
            turns,
            oldest_held_ms: book.oldest().map(|since| since.elapsed().as_millis() as u64),
        }
    }
}
