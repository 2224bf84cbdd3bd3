//! Every bound of the gateway in one place. The defaults suit a single node; the daemon's configuration may
//! set each of them, and the tests shrink them so that a time-out is reached in milliseconds.

use crate::text::{TextLoader, load_checkpoint};
use std::sync::Arc;
use std::time::Duration;

/// Limits and time-outs. All bounds are per gateway unless they say otherwise.
#[derive(Clone)]
pub struct GatewayOptions {
    /// Requests of one model that may wait for an instance; one more is answered 429.
    pub hold_limit: usize,
    /// Longest time without an instance; the request's own deadline may be sooner.
    pub hold_timeout: Duration,
    /// Silence after which `StreamEvent::Waiting` is sent, so that the client's connection stays alive.
    pub waiting_interval: Duration,
    /// The same for a request that is forwarded as it came. Longer, because only its engine can say that it is wrong,
    /// and a status is what clients understand best: once anything was sent, an error can only be an event.
    pub forward_waiting_interval: Duration,
    /// Longest time a TCP connect to an instance may take.
    pub connect_timeout: Duration,
    /// Longest silence of an instance between two of its tokens; then it counts as dead. Before its first
    /// token only the deadline counts, because a long prompt is silent for as long as it takes.
    pub stall_timeout: Duration,
    /// Broken attempts in a row without one new token, after which the stream fails.
    pub resume_limit: u32,
    /// Pause before the second broken attempt in a row is followed by the next; doubles each time.
    pub resume_backoff: Duration,
    /// Time for which an instance that failed is avoided; doubles with each failure in a row, to 16 times.
    /// A changed endpoint list ends it at once.
    pub quarantine: Duration,
    /// Requests that one instance gets at once; beyond that they are held here.
    pub endpoint_in_flight_limit: u32,
    /// Idle connections kept per instance.
    pub idle_connections: usize,
    /// Finished requests that `access_records` remembers.
    pub record_limit: usize,
    /// Reads a model's tokenizer, template and limits.
    pub load_text: TextLoader,
}

impl Default for GatewayOptions {
    fn default() -> Self {
        Self {
            hold_limit: 256,
            hold_timeout: Duration::from_secs(60),
            waiting_interval: Duration::from_millis(1500),
            forward_waiting_interval: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(1),
            stall_timeout: Duration::from_secs(30),
            resume_limit: 5,
            resume_backoff: Duration::from_millis(50),
            quarantine: Duration::from_millis(500),
            endpoint_in_flight_limit: 1024,
            idle_connections: 32,
            record_limit: 8192,
            load_text: Arc::new(load_checkpoint),
        }
    }
}
