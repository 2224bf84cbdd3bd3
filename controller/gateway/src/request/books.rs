//! What is written down about a request when it is over.

use super::{Active, Asked};
use crate::records::{Outcome, RequestRecord};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

impl<R: Asked> Active<R> {
    pub(super) fn record(&self, hold: Duration, outcome: Outcome, error: Option<String>) -> RequestRecord {
        let progress = &self.progress;
        let output_tokens = self.request.emitted_tokens() - progress.emitted_before;
        let since_arrival = |at: Instant| ms(at.saturating_duration_since(self.context.arrived_at));
        let itl_ms = match (progress.first_token_at, progress.last_token_at) {
            (Some(first), Some(last)) if output_tokens > 1 => Some(ms(last - first) / (output_tokens - 1) as f64),
            _ => None,
        };
        let duration = self.context.arrived_at.elapsed();
        let now_unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        RequestRecord {
            request_id: self.context.request_id.clone(),
            model: self.model.name.clone(),
            tenant: self.context.tenant.clone(),
            trace_parent: self.context.trace_parent.clone(),
            peer: self.context.peer,
            arrived_at_ns: self.context.arrived_at_ns,
            arrived_unix_ms: now_unix.saturating_sub(duration).as_millis() as u64,
            prompt_tokens: u32::try_from(self.request.prompt_tokens()).unwrap_or(u32::MAX),
            output_tokens: u32::try_from(output_tokens).unwrap_or(u32::MAX),
            cached_tokens: progress.cached_tokens,
            hold_ms: ms(hold),
            ttft_ms: progress.first_token_at.map(since_arrival),
            itl_ms,
            duration_ms: ms(duration),
            instances: progress.instances.clone(),
            resumes: progress.resumes,
            outcome,
            error,
        }
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
