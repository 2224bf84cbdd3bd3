//! The admin API: why things are as they are, and the registry. It has its own port, loopback unless told
//! otherwise, and no authentication of its own.
//!
//! Every error is OpenAI's error object. A POST must be `application/json`, which no web page can send
//! across origins without asking first.

use crate::adapters::add_adapter;
use crate::catalog::{CatalogError, CatalogWatch, add_model, remove_model};
use crate::foreign::{EngineAsk, add_foreign};
use crate::model_store::ModelStore;
use crate::observe::engine_view::{EngineView, EngineViews};
use crate::observe::outside::OutsideView;
use crate::registry::{Added, Registry, RegistryError};
use crate::view::{DECISIONS_SHOWN, View};
use controller_gateway::RouteTable;
use engine_http::error::{ErrorBody, ErrorObject};
use engine_store::{CheckpointError, StoreError, UnknownQuantisation};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use warp::http::{Response, StatusCode};
use warp::reject::Rejection;
use warp::{Filter, Reply};

/// Longest body of a POST, bytes.
const BODY_LIMIT_BYTES: u64 = 64 << 10;
/// How long a change of the registry may take to reach the gateway before the answer goes out anyway.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(2);

type Answer = Response<String>;
/// Something that the API shows and this crate does not own, as JSON; the number is a limit of rows.
pub type Show = Arc<dyn Fn(usize) -> serde_json::Value + Send + Sync>;

/// What the admin API answers from.
#[derive(Clone)]
pub struct Admin {
    pub view: View,
    /// The engines' processes as the kernel serves them.
    pub engines: EngineViews,
    pub catalog: CatalogWatch,
    /// The route table as the gateway follows it.
    pub routes: watch::Receiver<Arc<RouteTable>>,
    pub state_dir: PathBuf,
    /// Where models are taken in.
    pub store: ModelStore,
    /// Latest requests: kernel records and gateway access records.
    pub requests: Show,
    /// Which probes are attached, and what is lost without the others.
    pub probes: Show,
    /// What packets alone say of the engine on a port; None without probes.
    pub outside: Arc<dyn Fn(u16) -> Option<OutsideView> + Send + Sync>,
    /// GPUs as last read, and why there are none.
    pub gpus: Show,
    /// The metrics page.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

/// Body of a registration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AddModel {
    name: String,
    /// A GGUF file or a Hugging Face folder.
    path: Option<PathBuf>,
    /// What a folder's matrices are rounded to at load: `q8_0`, `q4_0` or `q4_1`.
    quantise: Option<String>,
    /// The engine that serves it, where that is not ours.
    engine: Option<EngineAsk>,
    /// For an adapter: the registered model that it changes.
    base: Option<String>,
    /// And its folder, in place of `path`.
    adapter: Option<PathBuf>,
}

/// What is to be registered: a model, or an adapter of a base.
enum Asked {
    Model(PathBuf),
    Adapter { base: String, path: PathBuf },
}

impl AddModel {
    /// Either form, whole and with an absolute path.
    fn asked(&self) -> Result<Asked, Box<Answer>> {
        let refused = |message: &str, param| Err(Box::new(error(StatusCode::BAD_REQUEST, message, Some(param))));
        let path = self.path.as_ref().or(self.adapter.as_ref());
        match (&self.path, &self.base, &self.adapter) {
            _ if self.engine.is_some() && self.quantise.is_some() => {
                refused("`quantise` is for our own engine only", "quantise")
            }
            _ if self.engine.is_some() && self.base.is_some() => {
                refused("Only our own engine serves adapters", "engine")
            }
            // This process's working folder means nothing to the caller.
            _ if path.is_some_and(|path| !path.is_absolute()) => {
                refused("The path must be absolute", if self.path.is_some() { "path" } else { "adapter" })
            }
            (Some(path), None, None) => Ok(Asked::Model(path.clone())),
            (None, Some(base), Some(path)) => Ok(Asked::Adapter { base: base.clone(), path: path.clone() }),
            (None, None, None) => refused("The `path` of a checkpoint is missing", "path"),
            (_, None, Some(_)) => refused("An adapter needs its `base`, the name of a registered model", "base"),
            (_, Some(_), None) => refused("`base` is given without `adapter`, the adapter's folder", "adapter"),
            (Some(_), ..) => refused("An adapter's folder is named by `adapter`, and there is `path` too", "path"),
        }
    }
}

/// All routes of the admin port. Never rejects: what nothing matches is answered 404 here.
pub fn routes(admin: Admin) -> impl Filter<Extract = (impl Reply,), Error = Infallible> + Clone {
    let query = || warp::query::<HashMap<String, String>>();
    let with = move || {
        let admin = admin.clone();
        warp::any().map(move || admin.clone())
    };
    // Paths before methods, so that an unknown path is not found rather than a wrong method.
    let get = warp::path!("v1" / "foreshock" / "decisions")
        .and(warp::get())
        .and(with())
        .and(query())
        .map(decisions)
        .or(warp::path!("v1" / "foreshock" / "snapshot").and(warp::get()).and(with()).map(snapshot))
        .unify()
        .or(warp::path!("v1" / "foreshock" / "ticks").and(warp::get()).and(with()).and(query()).map(ticks))
        .unify()
        .or(warp::path!("v1" / "foreshock" / "starts").and(warp::get()).and(with()).and(query()).map(starts))
        .unify()
        .or(warp::path!("v1" / "foreshock" / "spares").and(warp::get()).and(with()).map(spares))
        .unify()
        .or(warp::path!("v1" / "foreshock" / "instances").and(warp::get()).and(with()).map(instances))
        .unify()
        .or(warp::path!("v1" / "foreshock" / "requests").and(warp::get()).and(with()).and(query()).map(requests))
        .unify()
        .or(warp::path!("v1" / "foreshock" / "probes").and(warp::get()).and(with()).map(probes))
        .unify()
        .or(warp::path!("v1" / "foreshock" / "gpus").and(warp::get()).and(with()).map(gpus))
        .unify()
        .or(warp::path!("v1" / "foreshock" / "models").and(warp::get()).and(with()).map(models))
        .unify()
        .or(warp::path!("metrics").and(warp::get()).and(with()).map(metrics))
        .unify()
        .or(warp::path!("healthz").and(warp::get()).map(|| text(StatusCode::OK, "text/plain", "ok\n".to_owned())))
        .unify();
    let add = warp::path!("v1" / "foreshock" / "models")
        .and(warp::post())
        .and(with())
        .and(warp::header::optional::<String>("content-type"))
        .and(warp::body::content_length_limit(BODY_LIMIT_BYTES))
        .and(warp::body::bytes())
        .then(add);
    let remove = warp::path!("v1" / "foreshock" / "models" / ..)
        .and(warp::delete())
        .and(warp::path::tail())
        .and(with())
        .then(remove);
    get.or(add).unify().or(remove).unify().recover(refused).unify()
}

fn decisions(admin: Admin, query: HashMap<String, String>) -> Answer {
    match limit(&query) {
        Ok(limit) => list(&admin.view.decisions(query.get("model").map(String::as_str), limit)),
        Err(answer) => *answer,
    }
}

fn ticks(admin: Admin, query: HashMap<String, String>) -> Answer {
    match limit(&query) {
        Ok(limit) => list(&admin.view.ticks(limit)),
        Err(answer) => *answer,
    }
}

fn spares(admin: Admin) -> Answer {
    json(StatusCode::OK, &*admin.view.spares())
}

fn starts(admin: Admin, query: HashMap<String, String>) -> Answer {
    match limit(&query) {
        Ok(limit) => list(&admin.view.starts(query.get("model").map(String::as_str), limit)),
        Err(answer) => *answer,
    }
}

fn snapshot(admin: Admin) -> Answer {
    match admin.view.snapshot() {
        Some(snapshot) => json(StatusCode::OK, &*snapshot),
        None => error(StatusCode::SERVICE_UNAVAILABLE, "The controller has not made its first tick yet", None),
    }
}

fn instances(admin: Admin) -> Answer {
    #[derive(Serialize)]
    struct Row<'a> {
        instance: &'a str,
        #[serde(flatten)]
        row: &'a crate::fleet::Instance,
        /// None until it was looked at.
        kernel: Option<&'a EngineView>,
        /// What its packets say of it; null without probes.
        outside: Option<OutsideView>,
    }
    let (instances, engines) = (admin.view.instances(), admin.engines.all());
    let outside = |port: Option<u16>| port.and_then(|port| (admin.outside)(port));
    let rows = instances.iter().map(|(instance, row)| Row {
        instance,
        row,
        kernel: engines.get(instance),
        outside: outside(row.port),
    });
    list(&rows.collect::<Vec<_>>())
}

fn requests(admin: Admin, query: HashMap<String, String>) -> Answer {
    match limit(&query) {
        Ok(limit) => json(StatusCode::OK, &(admin.requests)(limit)),
        Err(answer) => *answer,
    }
}

fn probes(admin: Admin) -> Answer {
    json(StatusCode::OK, &(admin.probes)(DEFAULT_LIMIT))
}

fn gpus(admin: Admin) -> Answer {
    json(StatusCode::OK, &(admin.gpus)(DEFAULT_LIMIT))
}

fn models(admin: Admin) -> Answer {
    let models = admin.catalog.models().borrow().clone();
    list(&models.values().collect::<Vec<_>>())
}

fn metrics(admin: Admin) -> Answer {
    text(StatusCode::OK, "text/plain; version=0.0.4", (admin.metrics)())
}

async fn add(admin: Admin, content_type: Option<String>, body: bytes::Bytes) -> Answer {
    let is_json = content_type.is_some_and(|kind| kind.split(';').next().map(str::trim) == Some("application/json"));
    if !is_json {
        return error(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Type must be application/json", None);
    }
    let asked: AddModel = match serde_json::from_slice(&body) {
        Ok(asked) => asked,
        Err(wrong) => {
            let message = format!(
                "The body must be {{\"name\": ..., \"path\": ...}} (perhaps with \"quantise\" or \"engine\") \
                 or {{\"name\": ..., \"base\": ..., \"adapter\": ...}}: {wrong}"
            );
            return error(StatusCode::BAD_REQUEST, &message, None);
        }
    };
    let what = match asked.asked() {
        Ok(what) => what,
        Err(answer) => return *answer,
    };
    let quantise = match asked.quantise.as_deref().map(str::parse).transpose() {
        Ok(quantise) => quantise,
        Err(wrong) => {
            let wrong: UnknownQuantisation = wrong;
            return error(StatusCode::BAD_REQUEST, &wrong.to_string(), Some("quantise"));
        }
    };
    let (state_dir, store) = (admin.state_dir.clone(), admin.store.clone());
    let work = move || {
        let mut registry = Registry::connect(&state_dir)?;
        let (added, revision, record) = match what {
            Asked::Model(path) => {
                let (added, record) = match &asked.engine {
                    None => add_model(&mut registry, &store, &asked.name, &path, quantise, &mut |_| {})?,
                    Some(engine) => add_foreign(&mut registry, &asked.name, &path, engine)?,
                };
                (added, record.revision.clone(), serde_json::to_value(record))
            }
            Asked::Adapter { base, path } => {
                let (added, record) = add_adapter(&mut registry, &asked.name, &base, &path)?;
                let base = registry.model(&base)?.ok_or(RegistryError::NoBase { base })?;
                (added, record.revision(&base), serde_json::to_value(record))
            }
        };
        Ok((added, asked.name, revision, record.unwrap_or_default()))
    };
    let (added, name, revision, record) = match in_background(work).await {
        Ok(outcome) => outcome,
        Err(answer) => return *answer,
    };
    published(&admin, |table| table.models.get(&name).is_some_and(|route| route.revision == revision)).await;
    let status = if added == Added::New { StatusCode::CREATED } else { StatusCode::OK };
    json(status, &serde_json::json!({ "outcome": added, "model": record }))
}

async fn remove(tail: warp::path::Tail, admin: Admin) -> Answer {
    let Some(name) = percent_decoded(tail.as_str()) else {
        return error(StatusCode::BAD_REQUEST, "The model's name in the path is not valid UTF-8", Some("name"));
    };
    let (state_dir, store) = (admin.state_dir.clone(), admin.store.clone());
    let wanted = name.clone();
    let work = move || remove_model(&mut Registry::connect(&state_dir)?, &store, &wanted);
    match in_background(work).await {
        Ok(true) => {
            published(&admin, |table| !table.models.contains_key(&name)).await;
            json(StatusCode::OK, &serde_json::json!({ "name": name, "deleted": true }))
        }
        Ok(false) => {
            let message = format!("The model `{name}` is not registered");
            error(StatusCode::NOT_FOUND, &message, Some("name"))
        }
        Err(answer) => *answer,
    }
}

/// Disk work away from the reactor's threads.
async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CatalogError> + Send + 'static,
) -> Result<T, Box<Answer>> {
    let failed = |status, message: String, param| Err(Box::new(error(status, &message, param)));
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(CatalogError::Registry(wrong @ RegistryError::HasAdapters { .. }))) => {
            failed(StatusCode::CONFLICT, wrong.to_string(), Some("name"))
        }
        Ok(Err(CatalogError::Registry(wrong @ RegistryError::NameTaken { .. }))) => {
            failed(StatusCode::CONFLICT, wrong.to_string(), Some("name"))
        }
        Ok(Err(CatalogError::Registry(wrong @ RegistryError::NoBase { .. }))) => {
            failed(StatusCode::BAD_REQUEST, wrong.to_string(), Some("base"))
        }
        Ok(Err(CatalogError::Registry(wrong @ RegistryError::TooManyAdapters { .. }))) => {
            failed(StatusCode::BAD_REQUEST, wrong.to_string(), Some("base"))
        }
        Ok(Err(wrong @ CatalogError::Adapter { .. })) => {
            failed(StatusCode::BAD_REQUEST, wrong.to_string(), Some("adapter"))
        }
        Ok(Err(CatalogError::Store(wrong @ StoreError::Full { .. }))) => {
            failed(StatusCode::INSUFFICIENT_STORAGE, wrong.to_string(), None)
        }
        Ok(Err(CatalogError::Store(wrong @ StoreError::Busy { .. }))) => {
            failed(StatusCode::CONFLICT, wrong.to_string(), None)
        }
        Ok(Err(wrong @ CatalogError::Store(_))) => failed(StatusCode::INTERNAL_SERVER_ERROR, wrong.to_string(), None),
        Ok(Err(wrong @ CatalogError::Engine(_))) => failed(StatusCode::BAD_REQUEST, wrong.to_string(), Some("engine")),
        Ok(Err(wrong @ CatalogError::Registry(_))) => {
            failed(StatusCode::INTERNAL_SERVER_ERROR, wrong.to_string(), None)
        }
        Ok(Err(wrong @ CatalogError::Name { .. })) => failed(StatusCode::BAD_REQUEST, wrong.to_string(), Some("name")),
        Ok(Err(wrong @ CatalogError::Checkpoint { source: CheckpointError::Quantised { .. }, .. })) => {
            failed(StatusCode::BAD_REQUEST, wrong.to_string(), Some("quantise"))
        }
        Ok(Err(wrong)) => failed(StatusCode::BAD_REQUEST, wrong.to_string(), Some("path")),
        Err(_) => failed(StatusCode::INTERNAL_SERVER_ERROR, "The work ended without a result".to_owned(), None),
    }
}

/// Waits until the gateway knows of a change, so that the caller's next request finds it done.
async fn published(admin: &Admin, is_seen: impl Fn(&RouteTable) -> bool) {
    admin.catalog.poke();
    let mut routes = admin.routes.clone();
    let _ = tokio::time::timeout(PUBLISH_DEADLINE, routes.wait_for(|table| is_seen(table))).await;
}

const DEFAULT_LIMIT: usize = 100;

fn limit(query: &HashMap<String, String>) -> Result<usize, Box<Answer>> {
    match query.get("limit").map(|limit| limit.parse()) {
        None => Ok(DEFAULT_LIMIT),
        Some(Ok(limit)) if (1..=DECISIONS_SHOWN).contains(&limit) => Ok(limit),
        Some(_) => {
            let message = format!("`limit` must be a number from 1 to {DECISIONS_SHOWN}");
            Err(Box::new(error(StatusCode::BAD_REQUEST, &message, Some("limit"))))
        }
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

async fn refused(rejection: Rejection) -> Result<Answer, Infallible> {
    // A rejection names what every route had against the request; what is wrong with its body says most.
    let (status, message) = if rejection.find::<warp::reject::LengthRequired>().is_some() {
        (StatusCode::LENGTH_REQUIRED, "The body must come with a Content-Length")
    } else if rejection.find::<warp::reject::PayloadTooLarge>().is_some() {
        (StatusCode::PAYLOAD_TOO_LARGE, "The request body is larger than the limit of 65536 bytes")
    } else if rejection.is_not_found() {
        (StatusCode::NOT_FOUND, "There is nothing at this path of the admin port")
    } else if rejection.find::<warp::reject::MethodNotAllowed>().is_some() {
        (StatusCode::METHOD_NOT_ALLOWED, "Method not allowed for this path")
    } else {
        (StatusCode::BAD_REQUEST, "The request is malformed")
    };
    Ok(error(status, message, None))
}

fn list<T: Serialize>(rows: &[T]) -> Answer {
    json(StatusCode::OK, &serde_json::json!({ "object": "list", "data": rows }))
}

fn json<T: Serialize>(status: StatusCode, body: &T) -> Answer {
    match serde_json::to_string(body) {
        Ok(body) => text(status, "application/json", body),
        Err(wrong) => error(StatusCode::INTERNAL_SERVER_ERROR, &wrong.to_string(), None),
    }
}

fn error(status: StatusCode, message: &str, param: Option<&str>) -> Answer {
    let kind = if status.is_server_error() { "server_error" } else { "invalid_request_error" };
    let object = ErrorObject { message: message.to_owned(), kind, param: param.map(str::to_owned), code: None };
    // Strings always serialise.
    let body = serde_json::to_string(&ErrorBody { error: object }).unwrap_or_default();
    text(status, "application/json", body)
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert("content-type", warp::http::HeaderValue::from_static(kind));
    answer
}
