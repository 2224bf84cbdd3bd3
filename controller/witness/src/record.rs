//! One HTTP request as the kernel saw it.

use crate::body::BodyFacts;
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
    /// Time that the connection waited to be accepted, at most, ns; 0 where not known. It may overlap the request.
    pub accept_wait_ns: u64,
    pub start_ns: u64,
    pub first_byte_ns: u64,
    /// First `data:` event that is a token; 0 for an answer that is not a stream.
    pub first_token_ns: u64,
    pub last_byte_ns: u64,
    /// HTTP status of the answer, 0 when none was seen.
    pub status: u16,
    pub request_bytes: u64,
    pub response_bytes: u64,
    /// Segments that the server's side sent again on the connection while the request went on.
    pub retransmits: u32,
    /// `data:` segments: a lower bound on tokens, since segments coalesce.
    pub data_segments: u32,
    /// Mean gap between `data:` segments after the first token, ns; 0 when there were none.
    pub itl_ns_mean: u64,
    /// `data:` segments that are tokens: those told apart by their text, and later ones of the same kind.
    pub tokens: u32,
    /// Gaps between them, ns: quantiles within a sixteenth, 0 when there were none.
    pub itl_ns_p50: u64,
    pub itl_ns_p99: u64,
    pub itl_ns_max: u64,
    /// What the seen beginning of the body says; None when there was no body or it was not seen.
    pub body: Option<BodyFacts>,
    /// Hash of method, path, announced length and seen body, under a key of this process: equal for a repeated
    /// request, and of no use elsewhere. 0 when nothing of the request was seen.
    pub fingerprint: u64,
    pub fidelity: Fidelity,
    pub vantage: Vantage,
    pub end: RequestEnd,
}

/// How well a request was seen; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fidelity {
    /// Bytes that are not understood, or whose beginning was missed.
    Bytes,
    /// One HTTP request.
    Counted,
    /// Its model as well.
    Named,
    /// The times of its tokens as well, if not always its model.
    Tokens,
}

/// Where a request was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Vantage {
    pub hop: Hop,
    /// Inode number of the network namespace of the server's socket, and the socket's cookie; 0 where unknown.
    pub net_namespace: u32,
    pub cookie: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Hop {
    /// As clients send it.
    Client,
    /// As an engine serves it.
    Engine,
}

/// What happens on a request that is going on, told as it is seen. Times are CLOCK_MONOTONIC ns; `flow` is the
/// request's own number, used once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowSample {
    /// The request is known as far as it ever will be. `at_ns` is its first segment's arrival, `request_bytes` its
    /// size with its head, where announced, else what was seen so far.
    Start {
        port: u16,
        flow: u64,
        at_ns: u64,
        request_bytes: u64,
        max_tokens: Option<u32>,
    },
    /// `segments` more `data:` segments that are tokens, more than one only where events between were lost.
    Token {
        port: u16,
        flow: u64,
        at_ns: u64,
        segments: u32,
    },
    End {
        port: u16,
        flow: u64,
        at_ns: u64,
        end: RequestEnd,
    },
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

    /// Which hop its requests are seen at.
    pub fn hop(&self) -> Hop {
        match self {
            Self::Gateway => Hop::Client,
            Self::Engine { .. } => Hop::Engine,
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
    /// The connection was closed before the answer was complete.
    Aborted,
    /// It was torn down: by a reset of either side, or since nothing was acknowledged any more.
    Reset,
    /// Forgotten for want of room in a map or the ring.
    Lost,
}
