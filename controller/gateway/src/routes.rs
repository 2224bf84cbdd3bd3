//! What the controller tells the gateway: which models exist and where they are served. Published whole
//! through a `tokio::sync::watch`, so a request always sees one consistent table.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// Models and endpoints at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteTable {
    pub models: BTreeMap<String, Arc<ModelRoute>>,
    /// Endpoints that take new requests (starting ones too: their port is bound and requests wait inside).
    pub endpoints: BTreeMap<String, Vec<Endpoint>>,
}

/// A registered model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelRoute {
    pub name: String,
    pub revision: String,
    pub path: PathBuf,
    pub created_unix_s: u64,
    pub context_tokens: u32,
    /// For an adapter: what it changes.
    pub base: Option<BaseRoute>,
    /// An engine that speaks the API by itself: requests go to it as they came, and no tokenizer is loaded for them.
    pub engine: Option<String>,
}

/// The model under an adapter, whose instances and tokenizer it has.
#[derive(Clone, Debug, PartialEq)]
pub struct BaseRoute {
    pub name: String,
    pub revision: String,
    /// Name of the adapter's folder.
    pub root: String,
}

impl ModelRoute {
    /// Revision of the weights that the tokenizer belongs to.
    pub fn text_revision(&self) -> &str {
        self.base.as_ref().map_or(&self.revision, |base| &base.revision)
    }
}

/// One engine's port.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    pub instance: String,
    pub addr: SocketAddr,
    /// False while it loads: preferred last.
    pub ready: bool,
}
