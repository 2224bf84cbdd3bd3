//! This engine as a [`Backend`]: the OpenAI routes and the hop hand their requests to the step thread.

use crate::delivery::{CHANNEL_EVENTS, Delivery};
use crate::guides::Guides;
use crate::limits;
use crate::request::{Message, Work};
use crate::shared::Shared;
use crate::text::LazyText;
use engine_http::{ApiError, Backend, ModelCard, RequestContext, TokenStream};
use engine_text::TextModel;
use engine_wire::control::EngineState;
use engine_wire::hop::GenerateRequest;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use tokio::sync::mpsc;

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
        if model == self.shared.identity.model {
            return Ok(());
        }
        Err(ApiError::ModelNotFound { model: model.to_string() })
    }
}

impl Backend for LocalBackend {
    fn models(&self) -> Vec<ModelCard> {
        // Until the model is loaded its context is not known.
        let context_tokens = self.shared.facts.get().map_or(0, |facts| facts.shape.context_tokens);
        vec![ModelCard {
            name: self.shared.identity.model.clone(),
            revision: self.shared.identity.revision.clone(),
            created_unix_s: self.created_unix_s,
            context_tokens: u32::try_from(context_tokens).unwrap_or(u32::MAX),
        }]
    }

    async fn text(&self, model: &str) -> Result<Arc<TextModel>, ApiError> {
        self.check_name(model)?;
        self.text.get().await
    }

    async fn generate(&self, context: RequestContext, request: GenerateRequest) -> Result<TokenStream, ApiError> {
        self.check_name(&request.model)?;
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
            guided,
            delivery: Delivery::new(sender, context.arrived_at, context.deadline, slot),
        };
        self.shared.ledger().request_began();
        if self.messages.try_send(Message::Work(Box::new(work))).is_err() {
            self.shared.ledger().request_taken();
            return Err(ApiError::Unavailable { message: "The engine has stopped.".into(), retry_after_s: None });
        }
        Ok(TokenStream { events })
    }

    fn ready(&self) -> Result<(), String> {
        match self.shared.state() {
            EngineState::Ready => Ok(()),
            EngineState::Loading => Err("the model is loading".into()),
            EngineState::Draining => Err("the engine is draining".into()),
        }
    }
}
