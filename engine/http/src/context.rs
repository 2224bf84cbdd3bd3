//! What is known of a request before its body is read. It exists from the first handler on and goes
//! with the request through every hop.

use crate::Limits;
use crate::clock::monotonic_ns;
use engine_wire::hop::{HEADER_DEADLINE_MS, HEADER_REQUEST_ID, HEADER_TENANT, HEADER_TRACEPARENT};
use std::collections::hash_map::RandomState;
use std::convert::Infallible;
use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use warp::Filter;
use warp::http::HeaderMap;

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
    /// The same moment on CLOCK_MONOTONIC, ns, to compare with the kernel's records.
    pub arrived_at_ns: u64,
    /// When the answer is worthless. Every wait below is bounded by it.
    pub deadline: Instant,
    /// W3C trace parent: the client's, or a new one.
    pub trace_parent: String,
    /// The client's socket address, which joins this request with what the kernel saw.
    pub peer: Option<SocketAddr>,
}

/// Tenant of requests that name none.
pub const DEFAULT_TENANT: &str = "default";

/// The client's address as [`crate::serve`] puts it into the request's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddr(pub SocketAddr);

/// Filter that makes the context. The only place where one is made from headers.
pub fn context(limits: Limits) -> impl Filter<Extract = (RequestContext,), Error = Infallible> + Clone {
    warp::ext::optional::<PeerAddr>()
        .and(warp::header::headers_cloned())
        .map(move |peer: Option<PeerAddr>, headers: HeaderMap| RequestContext::from_headers(&headers, peer, &limits))
}

impl RequestContext {
    /// Reads the headers; what is missing or malformed gets its default.
    pub fn from_headers(headers: &HeaderMap, peer: Option<PeerAddr>, limits: &Limits) -> Self {
        let arrived_at = Instant::now();
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let bearer = text("authorization").and_then(|value| value.split_once(' '));
        let key =
            bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, key)| key.trim().to_owned());
        let deadline_ms = text(HEADER_DEADLINE_MS).and_then(|value| value.trim().parse().ok());
        let allowed = deadline_ms.map_or(limits.deadline_default, Duration::from_millis).min(limits.deadline_max);
        Self {
            request_id: text(HEADER_REQUEST_ID)
                .filter(|id| is_visible(id, 128))
                .map_or_else(new_request_id, str::to_owned),
            tenant: text(HEADER_TENANT).filter(|tenant| is_visible(tenant, 64)).unwrap_or(DEFAULT_TENANT).to_owned(),
            key,
            arrived_at,
            arrived_at_ns: monotonic_ns(),
            deadline: arrived_at + allowed,
            trace_parent: text(HEADER_TRACEPARENT)
                .filter(|parent| is_trace_parent(parent))
                .map_or_else(new_trace_parent, str::to_owned),
            peer: peer.map(|PeerAddr(addr)| addr),
        }
    }

    /// Milliseconds from arrival to deadline, for messages.
    pub fn deadline_ms(&self) -> u64 {
        self.deadline.duration_since(self.arrived_at).as_millis() as u64
    }
}

fn is_visible(text: &str, length_max: usize) -> bool {
    !text.is_empty() && text.len() <= length_max && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Version 00 of W3C Trace Context: `00-<32 hex>-<16 hex>-<2 hex>`, neither id all zeros.
fn is_trace_parent(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let is_hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_id = |part: &str, length: usize| is_hex(part, length) && part.bytes().any(|byte| byte != b'0');
    matches!(parts[..], ["00", trace, span, flags] if is_id(trace, 32) && is_id(span, 16) && is_hex(flags, 2))
}

fn new_request_id() -> String {
    format!("req-{:016x}{:016x}", random_u64(), random_u64())
}

fn new_trace_parent() -> String {
    // `| 1`: an id of zeros only is invalid.
    format!("00-{:016x}{:016x}-{:016x}-01", random_u64() | 1, random_u64(), random_u64() | 1)
}

/// A number that nobody can guess cheaply: SipHash under a key that the standard library takes from the operating
/// system. Good for ids and for default seeds; not for secrets.
pub(crate) fn random_u64() -> u64 {
    RandomState::new().hash_one(0u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(headers: &[(&str, &str)]) -> RequestContext {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(
                warp::http::HeaderName::from_bytes(name.as_bytes()).expect("a header name"),
                value.parse().expect("a header value"),
            );
        }
        RequestContext::from_headers(&map, None, &Limits::default())
    }

    #[test]
    fn well_formed_headers_are_taken_over() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context = from(&[
            ("x-request-id", "abc-1"),
            ("x-foreshock-tenant", "acme"),
            ("authorization", "bearer sk-1"),
            ("x-foreshock-deadline-ms", "1500"),
            ("traceparent", parent),
        ]);
        assert_eq!(
            (context.request_id.as_str(), context.tenant.as_str(), context.key.as_deref(), context.deadline_ms()),
            ("abc-1", "acme", Some("sk-1"), 1500)
        );
        assert_eq!(context.trace_parent, parent);
    }

    #[test]
    fn malformed_headers_get_defaults() {
        for (name, value) in [
            ("x-request-id", "two words"),
            ("x-request-id", &"x".repeat(129)),
            ("x-foreshock-tenant", "two words"),
            ("authorization", "Basic abc"),
            ("x-foreshock-deadline-ms", "soon"),
            ("x-foreshock-deadline-ms", "-1"),
            ("traceparent", "00-00000000000000000000000000000000-b7ad6b7169203331-01"),
        ] {
            let context = from(&[(name, value)]);
            assert!(context.request_id.starts_with("req-") && context.request_id.len() == 36, "{name}");
            assert_eq!((context.tenant.as_str(), context.key.as_deref()), (DEFAULT_TENANT, None), "{name}");
            assert_eq!(context.deadline_ms(), 600_000, "{name}");
            assert!(is_trace_parent(&context.trace_parent) && context.trace_parent != value, "{name}");
        }
        assert_eq!(from(&[("x-foreshock-deadline-ms", "99999999999999")]).deadline_ms(), 3_600_000);
    }
}
