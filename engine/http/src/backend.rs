//! The seam between the API and whatever serves it: the local step loop in an engine, the hold queue
//! and router in the gateway.

use crate::forward::{ForwardRequest, Forwarded};
use crate::{ApiError, RequestContext};
use engine_text::TextModel;
use engine_wire::hop::{EmbedRequest, Embedded, GenerateRequest, HopEvent};
use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Serves token requests. Cheap to clone.
pub trait Backend: Clone + Send + Sync + 'static {
    /// The models that may be named, for `/v1/models`.
    fn models(&self) -> Vec<ModelCard>;

    /// Tokenizer, template and limits of a model; `ApiError::ModelNotFound` when there is none by that name.
    fn text(&self, model: &str) -> impl Future<Output = Result<Arc<TextModel>, ApiError>> + Send;

    /// Starts a generation. Errors that are known before the first token come as `Err`, later ones as
    /// an `Err` item. Dropping the stream cancels the work.
    fn generate(
        &self,
        context: RequestContext,
        request: GenerateRequest,
    ) -> impl Future<Output = Result<TokenStream, ApiError>> + Send;

    /// Makes a vector of each text. Dropping the future cancels the work.
    fn embed(
        &self,
        context: RequestContext,
        request: EmbedRequest,
    ) -> impl Future<Output = Result<Embedded, ApiError>> + Send;

    /// Models whose engines speak the API by themselves: their requests go through [`Backend::forward`] as they came.
    fn forwarded(&self) -> Arc<BTreeSet<String>> {
        Arc::default()
    }

    /// Passes a request on to such an engine. Errors that are known before the first byte of the answer come as `Err`,
    /// later ones as an `Err` item. Dropping the answer cancels the work.
    fn forward(
        &self,
        _context: RequestContext,
        request: ForwardRequest,
    ) -> impl Future<Output = Result<Forwarded, ApiError>> + Send {
        async move { Err(ApiError::ModelNotFound { model: request.model }) }
    }

    /// Whether new requests can be taken, for `/readyz`; the text says why not.
    fn ready(&self) -> Result<(), String>;
}

/// Events of one generation. The channel is bounded: a slow client slows its own sequence, not the batch.
pub struct TokenStream {
    /// `Ok(StreamEvent::Waiting)` may come any number of times before the first token.
    pub events: mpsc::Receiver<Result<StreamEvent, ApiError>>,
}

/// What a Backend says while it generates.
#[derive(Clone, Debug, PartialEq)]
pub enum StreamEvent {
    /// Nothing yet, but the request is held and alive: becomes an SSE comment.
    Waiting,
    /// Tokens or the end. `HopEvent::Failed` never occurs here: failures are `Err` items.
    Hop(HopEvent),
}

/// One row of `/v1/models`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelCard {
    pub name: String,
    pub revision: String,
    pub created_unix_s: u64,
    pub context_tokens: u32,
    /// Where it comes from: its own name, or the name of an adapter's folder.
    pub root: String,
    /// The base model of an adapter.
    pub parent: Option<String>,
}
