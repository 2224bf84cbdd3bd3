//! The hop from gateway to engine: HTTP/1.1 over loopback TCP, `POST /v1/foreshock/generate` with a
//! [`GenerateRequest`], answered by server-sent events, each `data: ` line one [`HopEvent`] as JSON and
//! the last one `data: [DONE]`.
//!
//! Token ids travel, not text: a stream that is cut goes on elsewhere from `prompt` + `emitted`.
//! It is plain SSE on a TCP port so that the kernel's probes measure it like any other engine.
//! Trace context, deadline, tenant and request id travel as headers, named here.

use crate::TokenId;
use crate::sampling::{Sampling, StopRule};
use serde::{Deserialize, Serialize};

/// Path of the hop on an engine's port.
pub const GENERATE_PATH: &str = "/v1/foreshock/generate";
/// Header: request id, echoed in the answer. Also accepted from and returned to API clients.
pub const HEADER_REQUEST_ID: &str = "x-request-id";
/// Header: tenant of the request.
pub const HEADER_TENANT: &str = "x-foreshock-tenant";
/// Header: milliseconds that the request may still take, counted from its arrival.
pub const HEADER_DEADLINE_MS: &str = "x-foreshock-deadline-ms";
/// Header: W3C trace parent.
pub const HEADER_TRACEPARENT: &str = "traceparent";

/// One generation, in tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerateRequest {
    /// Model name, checked by the engine against the one it serves.
    pub model: String,
    /// Prompt tokens, at least one.
    pub prompt: Vec<TokenId>,
    /// Tokens already sent to the client by an instance that died; the stream goes on after them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub emitted: Vec<TokenId>,
    #[serde(default)]
    pub sampling: Sampling,
    #[serde(default)]
    pub stop: StopRule,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// End of sequence, a stop token, or (HTTP layer) a stop string.
    Stop,
    /// `max_tokens` or the context is used up.
    Length,
}

/// One event of a token stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HopEvent {
    /// New tokens, in order; never those of `emitted`. An end-of-sequence token that ends the stream is included.
    Tokens(Vec<TokenId>),
    /// The stream is complete.
    Finished {
        reason: FinishReason,
        /// Prompt tokens that came from the prefix cache.
        cached_tokens: u32,
    },
    /// The stream ends here with an error, in the OpenAI error's words.
    Failed { status: u16, code: String, message: String },
}
