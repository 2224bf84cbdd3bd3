//! One HTTP request as the kernel saw it.

use serde::Serialize;
use std::net::SocketAddr;

/// Timeline of one request at one watched port. Times are CLOCK_MONOTONIC ns; 0 where not seen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RequestRecord {
    /// Watched port and who listens there.
    pub port: u16,
    pub role: PortRole,
    pub client: SocketAddr,
    /// Number of the request on its connection, from 0.
    pub sequence: u32,
    /// Request line up to a query, such as `POST /v1/completions HTTP/1.1`; at most 64 bytes.
    pub line: String,
    /// SYN of the connection; only meaningful for `sequence` 0.
    pub syn_ns: u64,
    pub start_ns: u64,
    pub first_byte_ns: u64,
    /// First `data:` event that is a token; 0 for an answer that is not a stream.
    pub first_token_ns: u64,
    pub last_byte_ns: u64,
    /// HTTP status of the answer, 0 when none was seen.
    pub status: u16,
    pub request_bytes: u64,
    pub response_bytes: u64,
    /// `data:` segments: a lower bound on tokens, since segments coalesce.
    pub data_segments: u32,
    /// Mean gap between `data:` segments after the first token, ns; 0 when there were none.
    pub itl_ns_mean: u64,
    pub end: RequestEnd,
}

/// Who listens on a watched port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PortRole {
    /// Demand: requests as clients send them.
    Gateway,
    /// Service: requests as one engine instance answers them.
    Engine { model: String, instance: String },
}

impl PortRole {
    /// Whether what is asked here is demand; at an engine behind the gateway it is the same requests again.
    pub fn counts_demand(&self) -> bool {
        match self {
            Self::Gateway => true,
            Self::Engine { .. } => false,
        }
    }

    /// Value of the metric label `port_role`.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Engine { .. } => "engine",
        }
    }
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestEnd {
    /// Still going on: only in a record looked up before its end.
    InProgress,
    Complete,
    /// The connection was closed or reset before the answer was complete.
    Aborted,
    /// Forgotten for want of room in a map or the ring.
    Lost,
}
