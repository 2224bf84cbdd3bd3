//! What one request may use of the server before its work begins.

use std::time::Duration;

/// Bounds on a request; the same on every route.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Largest body that is read.
    pub body_bytes_max: u64,
    /// Time for the whole body to arrive.
    pub body_timeout: Duration,
    /// Deadline of requests that set none.
    pub deadline_default: Duration,
    /// Longest deadline that a request may set.
    pub deadline_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 4 << 20,
            body_timeout: Duration::from_secs(10),
            deadline_default: Duration::from_secs(600),
            deadline_max: Duration::from_secs(3600),
        }
    }
}
