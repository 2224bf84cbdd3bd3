//! One request for vectors: what is checked of it, how it goes to the step thread, and how its answer comes back.

use crate::limits::check_vocabulary;
use engine_core::EncodeShape;
use engine_http::ApiError;
use engine_wire::hop::{EmbedRequest, Embedded};
use std::time::Instant;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// A request as it is handed to the step thread.
pub(crate) struct EmbedWork {
    pub request_id: String,
    pub tenant: String,
    /// CLOCK_MONOTONIC, ns.
    pub arrived_at_ns: u64,
    pub request: EmbedRequest,
    pub answer: EmbedAnswer,
}

/// Sending end of one request's answer, with its places in the engine.
pub(crate) struct EmbedAnswer {
    pub sender: oneshot::Sender<Result<Embedded, ApiError>>,
    pub arrived_at: Instant,
    pub deadline: Instant,
    /// Of the request, and of each of its texts.
    pub _places: [OwnedSemaphorePermit; 2],
}

impl EmbedAnswer {
    /// Whether nobody waits any more.
    pub fn is_abandoned(&self) -> bool {
        self.sender.is_closed()
    }

    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The error for a request whose deadline has passed.
    pub fn deadline_exceeded(&self) -> ApiError {
        let deadline_ms = self.deadline.saturating_duration_since(self.arrived_at).as_millis() as u64;
        ApiError::DeadlineExceeded { deadline_ms, stage: "in the engine" }
    }

    pub fn send(self, result: Result<Embedded, ApiError>) {
        // A client that went away needs no answer.
        let _ = self.sender.send(result);
    }
}

/// Refuses a request that can never be served.
pub(crate) fn check(request: &EmbedRequest, shape: &EncodeShape) -> Result<(), ApiError> {
    let invalid = |message: String, param: String| Err(ApiError::InvalidRequest { message, param: Some(param) });
    if request.texts.is_empty() {
        return invalid("There is no text: send at least one.".to_owned(), "texts".to_owned());
    }
    for (index, text) in request.texts.iter().enumerate() {
        let param = format!("texts[{index}]");
        if text.is_empty() {
            return invalid(format!("{param} is empty: send at least one token."), param);
        }
        if text.len() > shape.context_tokens {
            let count = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
            let (context_tokens, tokens) = (count(shape.context_tokens), count(text.len()));
            return Err(ApiError::InputLength { context_tokens, param, tokens });
        }
        check_vocabulary(text, shape.vocab, &param)?;
    }
    Ok(())
}

/// The error for a generation that an encoder is asked for.
pub(crate) fn makes_embeddings(model: &str) -> ApiError {
    wrong_kind(format!("The model `{model}` makes embeddings and generates no text: use /v1/embeddings."))
}

/// The error for vectors that a decoder is asked for.
pub(crate) fn generates_text(model: &str) -> ApiError {
    wrong_kind(format!("The model `{model}` generates text and makes no embeddings."))
}

fn wrong_kind(message: String) -> ApiError {
    ApiError::InvalidRequest { message, param: Some("model".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_case(texts: Vec<Vec<u32>>, expected: Option<&str>) {
        let shape = EncodeShape { vocab: 50, dimensions: 4, context_tokens: 3 };
        let request = EmbedRequest { model: "m".to_owned(), texts };
        let message = check(&request, &shape).err().map(|error| error.to_string());
        match (expected, message) {
            (None, None) => {}
            (Some(expected), Some(message)) => assert!(message.contains(expected), "{message}"),
            (expected, message) => panic!("expected {expected:?}, got {message:?}"),
        }
    }

    #[test]
    fn requests_are_checked() {
        check_case(vec![vec![1, 2, 49], vec![0]], None);
        check_case(vec![], Some("at least one"));
        check_case(vec![vec![1], vec![]], Some("texts[1] is empty"));
        check_case(vec![vec![1], vec![1; 4]], Some("maximum context length is 3 tokens, but 'texts[1]' has 4"));
        check_case(vec![vec![1, 50]], Some("texts[0][1] is 50"));
    }
}
