//! What is known of a request before its body is read. It exists from the first handler on and goes
//! with the request through every hop.

use std::time::Instant;

/// Identity and limits of one request.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// From `x-request-id` when it is well formed (1 to 128 visible ASCII characters), else made here.
    pub request_id: String,
    /// One default tenant for now; the fair scheduler keys on it.
    pub tenant: String,
    /// API key as sent, if any. Never logged.
    pub key: Option<String>,
    /// When the request arrived here.
    pub arrived_at: Instant,
    /// When the answer is worthless. Every wait below is bounded by it.
    pub deadline: Instant,
    /// W3C trace parent: the client's, or a new one.
    pub trace_parent: String,
    /// The client's socket address, which joins this request with what the kernel saw.
    pub peer: Option<std::net::SocketAddr>,
}

/// Tenant of requests that name none.
pub const DEFAULT_TENANT: &str = "default";
