//! One record for each generation request, however it ended: what metering, metrics and the join with the
//! kernel's records are made from. It is emitted when the request's last state is dropped, so it cannot be forgotten.

use crate::RequestContext;
use crate::clock::monotonic_ns;
use engine_wire::hop::FinishReason;
use std::net::SocketAddr;
use std::sync::Arc;

/// Receives a record for each generation request. Runs on a server thread: must not block.
pub type AccessHook = Arc<dyn Fn(AccessRecord) + Send + Sync>;

/// One generation request as this hop saw it. Times are CLOCK_MONOTONIC, ns.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct AccessRecord {
    pub request_id: String,
    /// As the client named it; empty when the body could not be read.
    pub model: String,
    pub tenant: String,
    /// The client's socket address.
    pub peer: Option<SocketAddr>,
    pub arrived_at_ns: u64,
    /// Just before the bytes with the first token were handed to the connection.
    pub first_token_write_ns: Option<u64>,
    /// The same for the last token.
    pub last_token_write_ns: Option<u64>,
    /// The same for the last bytes of the answer, whatever they were.
    pub last_write_ns: Option<u64>,
    /// HTTP status of the answer's head. A stream that fails later still has 200 here.
    pub status: u16,
    pub stream: bool,
    pub prompt_tokens: u32,
    /// Prompt tokens that came from the prefix cache.
    pub cached_tokens: u32,
    /// Tokens taken from the backend for this client, the end-of-sequence token included.
    pub output_tokens: u32,
    /// Of the last choice that finished.
    pub finish: Option<FinishReason>,
    pub outcome: AccessOutcome,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessOutcome {
    /// Answered completely.
    Finished,
    /// The client went away.
    Cancelled,
    /// Accepted, then failed.
    Failed,
    /// Refused before any work.
    Rejected,
}

/// Holds the record while the request lives and emits it when dropped.
pub(crate) struct AccessGuard {
    pub record: AccessRecord,
    hook: AccessHook,
}

impl AccessGuard {
    pub fn new(context: &RequestContext, hook: AccessHook) -> Self {
        let record = AccessRecord {
            request_id: context.request_id.clone(),
            model: String::new(),
            tenant: context.tenant.clone(),
            peer: context.peer,
            arrived_at_ns: context.arrived_at_ns,
            first_token_write_ns: None,
            last_token_write_ns: None,
            last_write_ns: None,
            status: 200,
            stream: false,
            prompt_tokens: 0,
            cached_tokens: 0,
            output_tokens: 0,
            finish: None,
            // What it is if nobody says otherwise before it is dropped.
            outcome: AccessOutcome::Cancelled,
        };
        Self { record, hook }
    }

    /// Bytes are handed over now; `tokens` says whether they carry any. An output of nothing but its end carries
    /// its only token with the finish.
    pub fn note_write(&mut self, tokens: bool) {
        let now = monotonic_ns();
        self.record.last_write_ns = Some(now);
        if tokens || (self.record.first_token_write_ns.is_none() && self.record.output_tokens > 0) {
            self.record.first_token_write_ns.get_or_insert(now);
            self.record.last_token_write_ns = Some(now);
        }
    }
}

impl Drop for AccessGuard {
    fn drop(&mut self) {
        (self.hook)(self.record.clone());
    }
}
