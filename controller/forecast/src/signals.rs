//! What the kernel sees before a request is one.

use serde::{Deserialize, Serialize};

/// Early signals of one stretch of time; 0 where nobody counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Signals {
    /// Connections opened, 1/s.
    pub connections_per_s: f64,
    /// Connections that wait to be accepted, at the end of it.
    pub backlog: f64,
}
