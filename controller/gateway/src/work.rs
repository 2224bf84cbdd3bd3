//! What is known of an engine that tells nothing of itself: the work that goes through the gateway to it. Totals only
//! grow, so that the controller may read them as often or as rarely as it likes, and learn from them as it does from
//! the telemetry of its own engines.

use engine_http::ForwardUsage;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Work of one endpoint.
#[derive(Debug, Default)]
pub struct Work(Mutex<Totals>);

#[derive(Debug, Default)]
struct Totals {
    running: u32,
    /// Since when it has something to do.
    busy_since: Option<Instant>,
    busy: Duration,
    requests: u64,
    cancelled: u64,
    prompt_tokens: u64,
    cached_tokens: u64,
    output_tokens: u64,
}

/// Work of one endpoint at one moment; totals since the gateway knows of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointLoad {
    /// Requests that it has taken and not answered to their end.
    pub running: u32,
    /// Time with at least one of them.
    pub busy: Duration,
    pub requests_total: u64,
    /// Of these, those that were not answered to their end.
    pub cancelled_total: u64,
    pub prompt_tokens_total: u64,
    pub cached_tokens_total: u64,
    pub output_tokens_total: u64,
}

impl Work {
    fn totals(&self) -> MutexGuard<'_, Totals> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request was handed over.
    pub fn begin(&self) {
        let mut totals = self.totals();
        totals.running += 1;
        totals.busy_since.get_or_insert_with(Instant::now);
    }

    /// Tokens came back.
    pub fn produced(&self, tokens: u32) {
        self.totals().output_tokens += u64::from(tokens);
    }

    /// A request is over; with its usage, of which `counted` output tokens are counted already, when it was answered.
    pub fn end(&self, answered: Option<(ForwardUsage, u32)>) {
        let mut totals = self.totals();
        totals.running -= 1;
        if totals.running == 0
            && let Some(since) = totals.busy_since.take()
        {
            totals.busy += since.elapsed();
        }
        totals.requests += 1;
        match answered {
            Some((usage, counted)) => {
                totals.prompt_tokens += u64::from(usage.prompt_tokens);
                totals.cached_tokens += u64::from(usage.cached_tokens);
                totals.output_tokens += u64::from(usage.output_tokens.saturating_sub(counted));
            }
            None => totals.cancelled += 1,
        }
    }

    /// The work until now.
    pub fn load(&self) -> EndpointLoad {
        let totals = self.totals();
        EndpointLoad {
            running: totals.running,
            busy: totals.busy + totals.busy_since.map(|since| since.elapsed()).unwrap_or_default(),
            requests_total: totals.requests,
            cancelled_total: totals.cancelled,
            prompt_tokens_total: totals.prompt_tokens,
            cached_tokens_total: totals.cached_tokens,
            output_tokens_total: totals.output_tokens,
        }
    }
}
