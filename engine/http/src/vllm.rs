//! From an engine's own report to vLLM's metric names. Here, because the engine exports them and so does the gateway, and
//! the table of names knows no engine.

use engine_wire::control::{FinishedRequest, Telemetry};
use telemetry::vllm::{self, Request, Totals};

/// Counts a request that came to its end.
pub fn finished(model: &str, record: &FinishedRequest) {
    let since_arrival_s = |at_ns: u64| (at_ns > 0).then(|| at_ns.saturating_sub(record.arrived_at_ns) as f64 / 1e9);
    let request = Request {
        prompt_tokens: record.prompt_tokens,
        output_tokens: record.output_tokens,
        queue_s: record.queue_ms / 1e3,
        ttft_s: since_arrival_s(record.first_token_at_ns),
        itl_s_mean: record.itl_ms_mean.map(|itl_ms| itl_ms / 1e3),
        e2e_s: since_arrival_s(record.last_token_at_ns),
        finished_reason: record.finished_reason(),
    };
    vllm::request(model, &request);
}

/// Totals of an engine since it began.
pub fn totals(telemetry: &Telemetry) -> Totals {
    Totals {
        prompt_tokens: telemetry.prefill_tokens_total + telemetry.encode_tokens_total,
        generation_tokens: telemetry.output_tokens_total,
        prefix_queries: telemetry.prefix_hit_tokens_total + telemetry.prefix_miss_tokens_total,
        prefix_hits: telemetry.prefix_hit_tokens_total,
        preemptions: telemetry.preemptions_total,
        drafts: telemetry.drafts_total,
        draft_tokens: telemetry.draft_tokens_total,
        accepted_tokens: telemetry.draft_tokens_accepted_total,
    }
}
