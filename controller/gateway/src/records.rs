//! What became of the latest requests, in bounded rings, for the admin API and for joining with what the kernel
//! saw (by the client's address and the time of arrival). The HTTP layer's record of a request and the gateway's
//! records of its generations (one per choice) are kept apart and joined when somebody asks, because either may
//! come first. Prompts and keys are in neither.

use engine_http::AccessRecord;
use serde::Serialize;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

/// Instances named in a record; a stream that wandered further keeps the first ones.
pub const RECORD_INSTANCES: usize = 16;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Finished,
    /// The HTTP layer wanted no more: the client went away, or a stop string ended the text.
    Cancelled,
    /// Refused before an instance produced anything.
    Rejected,
    /// Ended with an error after its start.
    Failed,
}

/// One generation, from arrival to its end.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RequestRecord {
    pub request_id: String,
    pub model: String,
    pub tenant: String,
    pub trace_parent: String,
    /// The client's address.
    pub peer: Option<SocketAddr>,
    /// CLOCK_MONOTONIC, ns, as in the HTTP layer's record and the kernel's.
    pub arrived_at_ns: u64,
    pub arrived_unix_ms: u64,
    pub prompt_tokens: u32,
    /// Tokens delivered.
    pub output_tokens: u32,
    /// Prompt tokens that the finishing instance had in its prefix cache.
    pub cached_tokens: u32,
    /// Time without a ready instance.
    pub hold_ms: f64,
    pub ttft_ms: Option<f64>,
    /// Mean over the request's tokens after the first.
    pub itl_ms: Option<f64>,
    pub duration_ms: f64,
    /// Instances that it was sent to, in order.
    pub instances: Vec<String>,
    /// Times that it went on at another attempt after tokens had been delivered.
    pub resumes: u32,
    pub outcome: Outcome,
    /// What went wrong, if anything did.
    pub error: Option<String>,
}

/// One HTTP request for a generation: what the client got, and how the gateway came by it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AccessEntry {
    #[serde(flatten)]
    pub access: AccessRecord,
    /// One per choice; empty when it was refused before it reached the gateway's queue.
    pub generations: Vec<RequestRecord>,
}

/// The latest of both kinds.
#[derive(Debug)]
pub struct Records {
    accesses: Ring<AccessRecord>,
    generations: Ring<RequestRecord>,
}

impl Records {
    pub fn new(limit: usize) -> Self {
        Self { accesses: Ring::new(limit), generations: Ring::new(limit) }
    }

    pub fn accessed(&self, record: AccessRecord) {
        self.accesses.push(record);
    }

    pub fn generated(&self, record: RequestRecord) {
        self.generations.push(record);
    }

    /// The latest `limit` generations, newest first.
    pub fn generations(&self, limit: usize) -> Vec<RequestRecord> {
        self.generations.latest(limit)
    }

    /// The latest `limit` HTTP requests, newest first, each with its generations. Request ids may be the
    /// client's own and occur twice; the time of arrival tells them apart.
    pub fn accesses(&self, limit: usize) -> Vec<AccessEntry> {
        let mut generations: HashMap<(String, u64), Vec<RequestRecord>> = HashMap::new();
        for record in self.generations.latest(usize::MAX) {
            generations.entry((record.request_id.clone(), record.arrived_at_ns)).or_default().push(record);
        }
        let entry = |access: AccessRecord| {
            let key = (access.request_id.clone(), access.arrived_at_ns);
            AccessEntry { generations: generations.remove(&key).unwrap_or_default(), access }
        };
        self.accesses.latest(limit).into_iter().map(entry).collect()
    }
}

/// The latest `limit` items.
#[derive(Debug)]
struct Ring<T> {
    limit: usize,
    items: Mutex<VecDeque<T>>,
}

impl<T: Clone> Ring<T> {
    fn new(limit: usize) -> Self {
        Self { limit, items: Mutex::new(VecDeque::new()) }
    }

    /// Adds an item; the oldest one makes room.
    fn push(&self, item: T) {
        if self.limit == 0 {
            return;
        }
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        if items.len() == self.limit {
            items.pop_front();
        }
        items.push_back(item);
    }

    fn latest(&self, limit: usize) -> Vec<T> {
        let items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        items.iter().rev().take(limit).cloned().collect()
    }
}
