//! How to fetch, and how far a fetch is.

use std::{cell::Cell, collections::BTreeMap};

/// How to fetch. Credentials are given, never looked up: the environment is the caller's to read.
#[derive(Clone, Debug)]
pub struct Options {
    /// Requests on their way at once.
    pub parallel: usize,
    /// Bytes of a piece: what is asked for at once, and what a killed fetch loses at most of each request.
    pub piece_bytes: u64,
    /// Failures of one piece after which the fetch gives up.
    pub retries: u32,
    /// Pause after a piece's first failure; it doubles with each further one, up to 10 s.
    pub backoff_ms: u64,
    /// A remote that gives less than 64 KiB in so long has failed.
    pub stall_ms: u64,
    /// Where `hf://` is.
    pub hub_endpoint: String,
    /// For private and gated repositories there.
    pub hub_token: Option<String>,
    /// For `s3://`: names and values as AWS's tools know them from the environment, such as AWS_ACCESS_KEY_ID,
    /// AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL; AWS_SKIP_SIGNATURE=true for public buckets. Others are ignored.
    pub s3: BTreeMap<String, String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            parallel: 8,
            piece_bytes: 8 << 20,
            retries: 8,
            backoff_ms: 200,
            stall_ms: 30_000,
            hub_endpoint: "https://huggingface.co".into(),
            hub_token: None,
            s3: BTreeMap::new(),
        }
    }
}

/// How far a fetch is. The total grows while the files of a folder become known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of all files.
    pub total_bytes: u64,
    /// Of these, there.
    pub done_bytes: u64,
    /// Of the bytes that are there, those that an earlier fetch had brought.
    pub kept_bytes: u64,
    /// Bytes that came over the network, those of requests that failed later included.
    pub read_bytes: u64,
    /// Requests that failed and were made again.
    pub retries: u64,
}

/// Progress that several requests of one thread add to.
#[derive(Default)]
pub(crate) struct Counters(Cell<Progress>);

impl Counters {
    pub(crate) fn get(&self) -> Progress {
        self.0.get()
    }

    pub(crate) fn add(&self, change: impl FnOnce(&mut Progress)) {
        let mut now = self.0.get();
        change(&mut now);
        self.0.set(now);
    }
}
