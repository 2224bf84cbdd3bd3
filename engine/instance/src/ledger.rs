//! What the engine counts: written by the step thread, read by the control socket and /metrics.

use crate::clock;
use engine_core::SchedulerStats;
use engine_wire::control::{EngineState, FinishedRequest, Outcome, StartPhases, StepPhases, Telemetry};
use metrics::histogram;
use std::collections::VecDeque;
use telemetry::table;

/// Ended requests kept between two reports.
pub(crate) const FINISHED_LIMIT: usize = 1024;

/// Totals since the engine began, and the requests that ended since the last report.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub started_at_ns: u64,
    pub ready_at_ns: Option<u64>,
    pub phases: StartPhases,
    pub scheduler: SchedulerStats,
    /// Tokens of which vectors were made.
    pub encode_tokens_total: u64,
    pub step_phases: StepPhases,
    pub output_tokens_total: u64,
    /// Accepted and not yet known to the scheduler: they came while the model loads.
    waiting_outside: usize,
    requests_total: u64,
    cancelled_total: u64,
    finished: VecDeque<FinishedRequest>,
    finished_dropped_total: u64,
}

impl Ledger {
    pub fn new(started_at_ns: u64) -> Self {
        let phases = StartPhases { began_at_ns: started_at_ns, ..StartPhases::default() };
        Self { started_at_ns, phases, ..Self::default() }
    }

    /// Milliseconds from the process's beginning to `at_ns`.
    pub fn since_start_ms(&self, at_ns: u64) -> f64 {
        at_ns.saturating_sub(self.started_at_ns) as f64 / 1e6
    }

    /// A request was accepted and is on its way to the step thread.
    pub fn request_began(&mut self) {
        self.requests_total += 1;
        self.waiting_outside += 1;
    }

    /// The step thread took it off the way, or will never see it.
    pub fn request_taken(&mut self) {
        self.waiting_outside = self.waiting_outside.saturating_sub(1);
    }

    /// Takes the record of an ended request; the oldest one makes room.
    pub fn request_ended(&mut self, record: FinishedRequest, model: &str) {
        if record.outcome == Outcome::Cancelled {
            self.cancelled_total += 1;
        }
        if record.outcome == Outcome::Finished && record.output_tokens > 0 {
            let model = record.adapter.as_deref().unwrap_or(model);
            let labels = || [("model", model.to_string()), ("vantage", "engine".to_string())];
            histogram!(table::TTFT_SECONDS.name, &labels()).record(record.ttft_ms / 1e3);
            if let Some(itl_ms) = record.itl_ms_mean {
                histogram!(table::ITL_SECONDS.name, &labels()).record(itl_ms / 1e3);
            }
        }
        engine_http::vllm::finished(model, &record);
        if self.finished.len() == FINISHED_LIMIT {
            self.finished.pop_front();
            self.finished_dropped_total += 1;
        }
        self.finished.push_back(record);
    }

    /// Everything but the ended requests, which stay for the controller.
    pub fn peek(&self, state: EngineState) -> Telemetry {
        let count = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        Telemetry {
            at_ns: clock::monotonic_ns(),
            state,
            ready_at_ns: self.ready_at_ns,
            running: count(self.scheduler.running),
            waiting: count(self.scheduler.waiting + self.waiting_outside),
            kv_blocks_total: count(self.scheduler.kv_blocks_total),
            kv_blocks_used: count(self.scheduler.kv_blocks_used),
            prefill_tokens_total: self.scheduler.prefill_tokens_total,
            decode_tokens_total: self.scheduler.decode_tokens_total,
            encode_tokens_total: self.encode_tokens_total,
            output_tokens_total: self.output_tokens_total,
            prefix_hit_tokens_total: self.scheduler.prefix_hit_tokens_total,
            prefix_miss_tokens_total: self.scheduler.prefix_miss_tokens_total,
            drafts_total: self.scheduler.drafts_total,
            draft_tokens_total: self.scheduler.draft_tokens_total,
            draft_tokens_accepted_total: self.scheduler.draft_tokens_accepted_total,
            requests_total: self.requests_total,
            cancelled_total: self.cancelled_total,
            steps_total: self.scheduler.steps_total,
            preemptions_total: self.scheduler.preemptions_total,
            step_phases: self.step_phases,
            busy_ns_total: self.step_phases.forward_ns,
            resident_bytes: clock::resident_bytes(),
            phases: self.phases.clone(),
            finished: Vec::new(),
            finished_dropped_total: self.finished_dropped_total,
        }
    }

    /// The report to the controller, with the requests that ended since the last one.
    pub fn report(&mut self, state: EngineState) -> Telemetry {
        let finished = self.finished.drain(..).collect();
        Telemetry { finished, ..self.peek(state) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(request_id: usize, outcome: Outcome) -> FinishedRequest {
        FinishedRequest {
            request_id: request_id.to_string(),
            adapter: None,
            prompt_tokens: 1,
            cached_tokens: 0,
            output_tokens: 1,
            queue_ms: 0.0,
            ttft_ms: 1.0,
            itl_ms_mean: None,
            arrived_at_ns: 0,
            first_token_at_ns: 1,
            last_token_at_ns: 1,
            outcome,
            cut_at_limit: false,
        }
    }

    #[test]
    fn ended_requests_are_reported_once_and_bounded() {
        let mut ledger = Ledger::new(0);
        for id in 0..FINISHED_LIMIT + 3 {
            ledger.request_began();
            ledger.request_ended(record(id, if id == 5 { Outcome::Cancelled } else { Outcome::Finished }), "m");
        }
        assert!(ledger.peek(EngineState::Ready).finished.is_empty());
        let report = ledger.report(EngineState::Ready);
        assert_eq!(report.finished.len(), FINISHED_LIMIT);
        assert_eq!(report.finished[0].request_id, "3");
        assert_eq!(report.finished_dropped_total, 3);
        assert_eq!((report.requests_total, report.cancelled_total), (FINISHED_LIMIT as u64 + 3, 1));
        assert!(ledger.report(EngineState::Ready).finished.is_empty());
    }
}
