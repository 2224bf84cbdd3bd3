//! This engine as a [`Backend`]: the OpenAI routes and the hop hand their requests to the step thread.

use crate::delivery::{CHANNEL_EVENTS, Delivery};
use crate::embed::{self, EmbedAnswer, EmbedWork};
use crate::guides::Guides;
use crate::limits;
use crate::request::{Message, Work};
use crate::shared::Shared;
use crate::shelf::HeldAdapter;
use crate::text::LazyText;
use engine_http::{ApiError, Backend, ModelCard, RequestContext, TokenStream};
use engine_text::TextModel;
use engine_wire::control::EngineState;
use engine_wire::hop::{EmbedRequest, Embedded, GenerateRequest};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use tokio::sync::{mpsc, oneshot};

/// Cheap to clone; all clones feed the same step thread.
#[derive(Clone)]
pub struct LocalBackend {
    shared: Arc<Shared>,
    /// Never full: a slot is taken first, and there is room for every slot.
    messages: SyncSender<Message>,
    text: Arc<LazyText>,
    guides: Arc<Guides>,
    created_unix_s: u64,
}

impl LocalBackend {
    pub(crate) fn new(
        shared: Arc<Shared>,
        messages: SyncSender<Message>,
        text: Arc<LazyText>,
        created_unix_s: u64,
    ) -> Self {
        let guides = Arc::new(Guides::new(text.clone()));
        Self { shared, messages, text, guides, created_unix_s }
    }

    fn check_name(&self, model: &str) -> Result<(), ApiError> {
        if model == self.shared.identity.model || self.shared.shelf.has(model, None) {
            return Ok(());
        }
        Err(ApiError::ModelNotFound { model: model.to_string() })
    }

    /// Hands a request to the step thread.
    fn send(&self, message: Message) -> Result<(), ApiError> {
        self.shared.ledger().request_began();
        if self.messages.try_send(message).is_ok() {
            return Ok(());
        }
        self.shared.ledger().request_taken();
        Err(ApiError::Unavailable { message: "The engine has stopped.".into(), retry_after_s: None })
    }
}

impl LocalBackend {
    /// The adapter that a request names, if it does not name the base model.
    async fn adapter(
        &self,
        context: &RequestContext,
        request: &GenerateRequest,
    ) -> Result<Option<Arc<HeldAdapter>>, ApiError> {
        let (name, revision) = (&request.model, request.adapter_revision.as_deref());
        if *name == self.shared.identity.model && revision.is_none() {
            return Ok(None);
        }
        if !self.shared.shelf.has(name, revision) {
            return Err(ApiError::ModelNotFound { model: name.clone() });
        }
        let held = async {
            self.shared.loaded().await;
            self.shared.shelf.hold(name, revision).await
        };
        let late = |_| ApiError::DeadlineExceeded {
            deadline_ms: context.deadline_ms(),
            stage: "while the adapter was loaded",
        };
        tokio::time::timeout_at(context.deadline.into(), held).await.map_err(late)?.map(Some)
    }
}

impl Backend for LocalBackend {
    fn models(&self) -> Vec<ModelCard> {
        // Until the model is loaded its context is not known.
        let encoder = || self.shared.encoder.get().map(|shape| shape.context_tokens);
        let decoder = self.shared.facts.get().map(|facts| facts.shape.context_tokens);
        let context_tokens = decoder.or_else(encoder).unwrap_or(0);
        let mut cards = vec![ModelCard {
            name: self.shared.identity.model.clone(),
            revision: self.shared.identity.revision.clone(),
            created_unix_s: self.created_unix_s,
            context_tokens: u32::try_from(context_tokens).unwrap_or(u32::MAX),
            root: self.shared.identity.model.clone(),
            parent: None,
        }];
        cards.extend(self.shared.shelf.cards(self.created_unix_s, context_tokens));
        cards
    }

    async fn text(&self, model: &str) -> Result<Arc<TextModel>, ApiError> {
        self.check_name(model)?;
        self.text.get().await
    }

    async fn generate(&self, context: RequestContext, request: GenerateRequest) -> Result<TokenStream, ApiError> {
        if self.shared.encoder.get().is_some() {
            self.check_name(&request.model)?;
            return Err(embed::makes_embeddings(&request.model));
        }
        let adapter = self.adapter(&context, &request).await?;
        if let Some(facts) = self.shared.facts.get() {
            limits::check(&request, facts)?;
        }
        let slot = self.shared.enter()?;
        let guided = match request.constraint.clone() {
            Some(constraint) => Some(self.guides.guide(constraint, request.emitted.clone()).await?),
            None => None,
        };
        let (sender, events) = mpsc::channel(CHANNEL_EVENTS);
        let work = Work {
            request_id: context.request_id,
            tenant: context.tenant,
            arrived_at_ns: context.arrived_at_ns,
            request,
            adapter,
            guided,
            delivery: Delivery::new(sender, context.arrived_at, context.deadline, slot),
        };
        self.send(Message::Work(Box::new(work)))?;
        Ok(TokenStream { events })
    }

    async fn embed(&self, context: RequestContext, request: EmbedRequest) -> Result<Embedded, ApiError> {
        self.check_name(&request.model)?;
        if self.shared.facts.get().is_some() {
            return Err(embed::generates_text(&request.model));
        }
        if let Some(shape) = self.shared.encoder.get() {
            embed::check(&request, shape)?;
        }
        let places = self.shared.enter_texts(request.texts.len())?;
        let (sender, answer) = oneshot::channel();
        let (arrived_at, deadline) = (context.arrived_at, context.deadline);
        let work = EmbedWork {
            request_id: context.request_id,
            tenant: context.tenant,
            arrived_at_ns: context.arrived_at_ns,
            request,
            answer: EmbedAnswer { sender, arrived_at, deadline, _places: places },
        };
        self.send(Message::Embed(Box::new(work)))?;
        // A channel that closes without an answer belongs to an engine that ends.
        answer.await.unwrap_or(Err(ApiError::ShuttingDown))
    }

    fn ready(&self) -> Result<(), String> {
        match self.shared.state() {
            EngineState::Ready => Ok(()),
            EngineState::Loading => Err("the model is loading".into()),
            EngineState::Draining => Err("the engine is draining".into()),
        }
    }
}
