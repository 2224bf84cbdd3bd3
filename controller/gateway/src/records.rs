//! What became of the latest requests: one record each in a bounded ring, for the admin API and for joining
//! with what the kernel saw (by the client's address and the time of arrival). Prompts and keys are not in it.

use serde::Serialize;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

/// Instances named in a record; a stream that wandered further keeps the first ones.
pub const RECORD_INSTANCES: usize = 16;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Finished,
    /// The client went away.
    Disconnected,
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

/// The latest records.
#[derive(Debug)]
pub struct RecordRing {
    limit: usize,
    records: Mutex<VecDeque<RequestRecord>>,
}

impl RecordRing {
    pub fn new(limit: usize) -> Self {
        Self { limit, records: Mutex::default() }
    }

    /// Adds a record; the oldest one makes room.
    pub fn push(&self, record: RequestRecord) {
        if self.limit == 0 {
            return;
        }
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        if records.len() == self.limit {
            records.pop_front();
        }
        records.push_back(record);
    }

    /// The latest `limit` records, newest first.
    pub fn latest(&self, limit: usize) -> Vec<RequestRecord> {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.iter().rev().take(limit).cloned().collect()
    }
}
