//! The gateway as a whole: a `Backend` for the HTTP layer on one side, the route table and the demand
//! counters for the controller on the other.

use crate::demand::ModelDemand;
use crate::endpoint::EndpointState;
use crate::meters::{count_rejected, meter};
use crate::model::{ModelState, TextCell};
use crate::options::GatewayOptions;
use crate::outlet::Outlet;
use crate::records::{AccessEntry, Records, RequestRecord};
use crate::refused::Refused;
use crate::request::{Active, Asked, ForeignRequest, ForwardOutlet};
use crate::routes::{Endpoint, ModelRoute, RouteTable};
use crate::text::TextModels;
use crate::work::EndpointLoad;
use engine_http::backend::TokenStream;
use engine_http::{AccessHook, ApiError, Backend, ForwardRequest, Forwarded, ModelCard, RequestContext};
use engine_text::TextModel;
use engine_wire::hop::{EmbedRequest, Embedded, GenerateRequest};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Instant;
use tokio::sync::{Notify, oneshot, watch};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

/// The front door. Clones are the same gateway.
#[derive(Clone)]
pub struct Gateway {
    shared: Arc<Shared>,
}

/// What all requests share.
pub struct Shared {
    pub options: GatewayOptions,
    models: RwLock<BTreeMap<String, Arc<ModelState>>>,
    /// Models whose requests are passed on as they came.
    forwarded: RwLock<Arc<BTreeSet<String>>>,
    /// Every endpoint that is listed or still has requests, by instance.
    endpoints: RwLock<BTreeMap<String, Weak<EndpointState>>>,
    texts: TextModels,
    pub records: Records,
    pub refused: Refused,
    /// Wakes the controller when a request is held.
    pub demand_changed: Notify,
    draining: AtomicBool,
    http_requests_total: AtomicU64,
    /// Requests whose tasks run.
    active: watch::Sender<usize>,
    /// The table that requests meet.
    followed: watch::Sender<Arc<RouteTable>>,
}

impl Gateway {
    /// Starts a gateway that follows `routes` until their sender is dropped. The table that is in it now counts as
    /// published, an empty one too: a registry may have no model. Must be called within a tokio runtime, and
    /// after the metrics recorder is installed.
    pub fn new(options: GatewayOptions, mut routes: watch::Receiver<Arc<RouteTable>>) -> Self {
        let shared = Arc::new(Shared {
            texts: TextModels::new(options.load_text.clone()),
            records: Records::new(options.record_limit),
            refused: Refused::default(),
            options,
            models: RwLock::default(),
            forwarded: RwLock::default(),
            endpoints: RwLock::default(),
            demand_changed: Notify::new(),
            draining: AtomicBool::new(false),
            http_requests_total: AtomicU64::new(0),
            active: watch::Sender::new(0),
            followed: watch::Sender::new(Arc::default()),
        });
        let first = routes.borrow_and_update().clone();
        shared.follow(&first);
        shared.followed.send_replace(first);
        let follower = Arc::downgrade(&shared);
        tokio::spawn(async move {
            while routes.changed().await.is_ok() {
                let table = routes.borrow_and_update().clone();
                let Some(shared) = follower.upgrade() else { return };
                shared.follow(&table);
                shared.followed.send_replace(table);
            }
        });
        Self { shared }
    }

    /// The route table as requests meet it: one that is seen here holds for the next request.
    pub fn followed(&self) -> watch::Receiver<Arc<RouteTable>> {
        self.shared.followed.subscribe()
    }

    /// Demand on every model that is registered or still has requests.
    pub fn demand(&self) -> BTreeMap<String, ModelDemand> {
        let models = self.shared.models.read().unwrap_or_else(PoisonError::into_inner);
        let demand = models.iter().map(|(name, model)| (name.clone(), model.demand(), model.route().is_some()));
        demand
            .filter(|(_, demand, registered)| *registered || demand.held > 0 || demand.in_flight > 0)
            .map(|(name, demand, _)| (name, demand))
            .collect()
    }

    /// Work at an instance; none once the route table lists it no more and its last request has ended, after which it
    /// can be stopped and nothing is lost.
    pub fn load(&self, instance: &str) -> Option<EndpointLoad> {
        let endpoints = self.shared.endpoints.read().unwrap_or_else(PoisonError::into_inner);
        endpoints.get(instance)?.upgrade().map(|endpoint| endpoint.work.load())
    }

    /// Resolves when a request was held since the last call resolved; for one waiter, the controller's loop.
    pub async fn demand_changed(&self) {
        self.shared.demand_changed.notified().await;
    }

    /// Wraps the whole of the data port's routes, fallback included, so that every HTTP request is counted
    /// whatever becomes of it: that total can be compared with the kernel's.
    pub fn counted(&self, routes: BoxedFilter<(Response,)>) -> BoxedFilter<(Response,)> {
        let shared = self.shared.clone();
        let count = warp::any().map(move || {
            shared.http_requests_total.fetch_add(1, Ordering::Relaxed);
        });
        count.untuple_one().and(routes).boxed()
    }

    /// What the HTTP layer calls with its record of each generation request: it is metered and kept.
    pub fn access_hook(&self) -> AccessHook {
        let shared = self.shared.clone();
        Arc::new(move |record| {
            meter(&record);
            shared.records.accessed(record);
        })
    }

    /// HTTP requests that came through [`Gateway::counted`] so far.
    pub fn http_requests_total(&self) -> u64 {
        self.shared.http_requests_total.load(Ordering::Relaxed)
    }

    /// The latest `limit` HTTP requests for a generation, newest first, with what the gateway did for each.
    pub fn access_records(&self, limit: usize) -> Vec<AccessEntry> {
        self.shared.records.accesses(limit)
    }

    /// The latest `limit` generations that ended, newest first.
    pub fn generation_records(&self, limit: usize) -> Vec<RequestRecord> {
        self.shared.records.generations(limit)
    }

    /// Refuses new requests from now on. Running and held ones go on.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::Release);
    }

    /// Requests that are held or running.
    pub fn active_requests(&self) -> usize {
        *self.shared.active.borrow()
    }

    /// Resolves when no request is held or running. The caller bounds the wait.
    pub async fn idle(&self) {
        let mut active = self.shared.active.subscribe();
        // The sender lives as long as `self`, so that waiting cannot fail.
        let _ = active.wait_for(|active| *active == 0).await;
    }
}

impl Gateway {
    /// Counts a request's arrival at its model, and lets it in unless the gateway ends. What repeats a refused
    /// request is counted apart: it is demand that was counted already.
    fn admit<R: Asked>(&self, context: &RequestContext, request: &R) -> Result<Admitted, ApiError> {
        let name = request.model();
        let model = self.shared.model(name)?;
        let (route, text) = model.route().ok_or_else(|| ApiError::ModelNotFound { model: name.to_owned() })?;
        let key = self.shared.refused.key(&context.tenant, name, |hasher| request.hash(hasher));
        if self.shared.refused.is_repetition(key, Instant::now()) {
            model.meters().repetitions.increment(1);
        } else {
            model.arrivals_total.fetch_add(1, Ordering::Relaxed);
            model.meters().arrivals.increment(1);
            let (now, at_ns) = (Instant::now(), engine_http::clock::monotonic_ns());
            model.conversations().take(&context.tenant, request.prompt(), now, at_ns);
        }
        if self.shared.draining.load(Ordering::Acquire) {
            count_rejected(&model.name, "shutting_down");
            return Err(ApiError::ShuttingDown);
        }
        Ok(Admitted { model, route, text, key })
    }
}

/// A request that was let in.
struct Admitted {
    model: Arc<ModelState>,
    route: Arc<ModelRoute>,
    text: TextCell,
    /// By which its repetition is known.
    key: u64,
}

impl Shared {
    fn model(&self, name: &str) -> Result<Arc<ModelState>, ApiError> {
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
        models.get(name).cloned().ok_or_else(|| ApiError::ModelNotFound { model: name.to_owned() })
    }

    /// Takes over a route table.
    fn follow(self: &Arc<Self>, table: &RouteTable) {
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        for name in table.models.keys() {
            models.entry(name.clone()).or_insert_with(|| Arc::new(ModelState::new(name)));
        }
        let mut cells: BTreeMap<String, TextCell> = BTreeMap::new();
        for (route, cell) in models.values().filter_map(|model| model.route()) {
            cells.insert(route.text_revision().to_owned(), cell);
        }
        // One state for an endpoint, however many names are served there.
        let mut states: Vec<Arc<EndpointState>> = models.values().flat_map(|model| model.endpoints()).collect();
        for (name, model) in models.iter() {
            let Some(route) = table.models.get(name) else {
                model.update(None, TextCell::default(), &[], Vec::new());
                continue;
            };
            let listed = table.endpoints.get(name).map(Vec::as_slice).unwrap_or_default();
            let endpoints = listed.iter().map(|endpoint| shared_state(&mut states, endpoint)).collect();
            let known = cells.get(route.text_revision()).cloned();
            let cell = known.clone().unwrap_or_default();
            model.update(Some(route), cell.clone(), listed, endpoints);
            if known.is_none() && route.engine.is_none() {
                cells.insert(route.text_revision().to_owned(), cell.clone());
                let (texts, route) = (self.texts.clone(), route.clone());
                tokio::spawn(async move { texts.get(&route, &cell).await.map(drop) });
            }
        }
        let forwarded = table.models.values().filter(|route| route.engine.is_some()).map(|route| route.name.clone());
        *self.forwarded.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(forwarded.collect());
        let mut known = self.endpoints.write().unwrap_or_else(PoisonError::into_inner);
        known.extend(states.iter().map(|state| (state.instance.clone(), Arc::downgrade(state))));
        // Those that are gone from the table live on with their last request.
        drop(states);
        known.retain(|_, state| state.strong_count() > 0);
    }
}

/// The state of an endpoint that was there before, or a fresh one.
fn shared_state(states: &mut Vec<Arc<EndpointState>>, listed: &Endpoint) -> Arc<EndpointState> {
    let known = states.iter().find(|known| known.instance == listed.instance && known.addr == listed.addr);
    if let Some(known) = known {
        return known.clone();
    }
    let state = Arc::new(EndpointState::new(listed));
    states.push(state.clone());
    state
}

impl Backend for Gateway {
    fn models(&self) -> Vec<ModelCard> {
        let models = self.shared.models.read().unwrap_or_else(PoisonError::into_inner);
        let routes = models.values().filter_map(|model| model.route());
        routes
            .map(|(route, _)| ModelCard {
                name: route.name.clone(),
                revision: route.revision.clone(),
                created_unix_s: route.created_unix_s,
                context_tokens: route.context_tokens,
                root: route.base.as_ref().map_or(&route.name, |base| &base.root).clone(),
                parent: route.base.as_ref().map(|base| base.name.clone()),
            })
            .collect()
    }

    async fn text(&self, model: &str) -> Result<Arc<TextModel>, ApiError> {
        let not_found = || ApiError::ModelNotFound { model: model.to_owned() };
        let (route, cell) = self.shared.model(model)?.route().ok_or_else(not_found)?;
        if let Some(engine) = &route.engine {
            let message = format!("The model `{model}` is served by {engine}, whose tokenizer is its own affair.");
            return Err(ApiError::InvalidRequest { message, param: Some("model".to_owned()) });
        }
        self.shared.texts.get(&route, &cell).await
    }

    async fn generate(&self, context: RequestContext, mut request: GenerateRequest) -> Result<TokenStream, ApiError> {
        let Admitted { model, route, text, key } = self.admit(&context, &request)?;
        request.adapter_revision = route.base.is_some().then(|| route.revision.clone());
        let (outlet, receiver) = Outlet::new();
        let active = ActiveCount::new(self.shared.clone());
        let shared = self.shared.clone();
        let running = Active::new(shared, model, (route.revision.clone(), text), context, (request, key), outlet);
        tokio::spawn(async move {
            running.run().await;
            drop(active);
        });
        match receiver.started.await {
            Ok(Ok(())) => Ok(TokenStream { events: receiver.events }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(ApiError::Internal { message: "The request's task ended without an answer".to_owned() }),
        }
    }

    async fn embed(&self, context: RequestContext, request: EmbedRequest) -> Result<Embedded, ApiError> {
        let Admitted { model, route, text, key } = self.admit(&context, &request)?;
        let (sender, answer) = oneshot::channel();
        let active = ActiveCount::new(self.shared.clone());
        let (shared, revision) = (self.shared.clone(), route.revision.clone());
        let running = Active::new(shared, model, (revision, text), context, (request, key), Outlet::silent());
        // A task of its own, so that a client that leaves does not take the request's record with it.
        tokio::spawn(async move {
            running.run_embed(sender).await;
            drop(active);
        });
        let lost = |_| ApiError::Internal { message: "The request's task ended without an answer".to_owned() };
        answer.await.map_err(lost)?
    }

    fn forwarded(&self) -> Arc<BTreeSet<String>> {
        self.shared.forwarded.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn forward(&self, context: RequestContext, request: ForwardRequest) -> Result<Forwarded, ApiError> {
        let request = ForeignRequest::new(request);
        let Admitted { model, route, text, key } = self.admit(&context, &request)?;
        let (outlet, receiver) = ForwardOutlet::new();
        let active = ActiveCount::new(self.shared.clone());
        let (shared, revision) = (self.shared.clone(), route.revision.clone());
        let running = Active::new(shared, model, (revision, text), context, (request, key), Outlet::silent());
        tokio::spawn(async move {
            running.run_forward(outlet).await;
            drop(active);
        });
        match receiver.started.await {
            Ok(Ok(Some(whole))) => Ok(Forwarded::Whole(whole)),
            Ok(Ok(None)) => Ok(Forwarded::Stream(receiver.events)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(ApiError::Internal { message: "The request's task ended without an answer".to_owned() }),
        }
    }

    fn ready(&self) -> Result<(), String> {
        if self.shared.draining.load(Ordering::Acquire) {
            return Err("the gateway is shutting down".to_owned());
        }
        Ok(())
    }
}

/// Counts a request's task while it runs.
struct ActiveCount(Arc<Shared>);

impl ActiveCount {
    fn new(shared: Arc<Shared>) -> Self {
        shared.active.send_modify(|active| *active += 1);
        Self(shared)
    }
}

impl Drop for ActiveCount {
    fn drop(&mut self) {
        self.0.active.send_modify(|active| *active -= 1);
    }
}
