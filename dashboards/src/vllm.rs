//! The names under which vLLM exports the same figures, so that dashboards, autoscalers and routers made for it read
//! Foreshock unchanged. Label: `model_name`, as there. Recorded here, since gateway and engine both export them.

use crate::table::{Kind, LATENCY_BUCKETS_S, Metric};
use metrics::{counter, gauge, histogram};

/// Upper bounds for counts of tokens.
const TOKEN_BUCKETS: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0, 20_000.0, 50_000.0];

const MODEL: &[&str] = &["model_name"];

const fn metric(name: &'static str, kind: Kind, help: &'static str) -> Metric {
    Metric { name, kind, labels: MODEL, help }
}
const fn latency(name: &'static str, help: &'static str) -> Metric {
    metric(name, Kind::Histogram(LATENCY_BUCKETS_S), help)
}

const RUNNING: Metric = metric("vllm:num_requests_running", Kind::Gauge, "Sequences in running batches.");
const WAITING: Metric = metric("vllm:num_requests_waiting", Kind::Gauge, "Sequences waiting inside engines.");
const KV_USAGE: Metric = metric("vllm:kv_cache_usage_perc", Kind::Gauge, "KV blocks in use, 1 being all.");
const PREFIX_QUERIES: Metric =
    metric("vllm:prefix_cache_queries_total", Kind::Counter, "Tokens looked up in the prefix cache.");
const PREFIX_HITS: Metric = metric("vllm:prefix_cache_hits_total", Kind::Counter, "Tokens found in the prefix cache.");
const PREEMPTIONS: Metric =
    metric("vllm:num_preemptions_total", Kind::Counter, "Sequences that gave up their KV blocks for others.");
const DRAFTS: Metric = metric("vllm:spec_decode_num_drafts_total", Kind::Counter, "Drafts made.");
const DRAFT_TOKENS: Metric = metric("vllm:spec_decode_num_draft_tokens_total", Kind::Counter, "Tokens drafted.");
const ACCEPTED_TOKENS: Metric =
    metric("vllm:spec_decode_num_accepted_tokens_total", Kind::Counter, "Tokens drafted that were drawn as well.");
const PROMPT_TOKENS: Metric = metric("vllm:prompt_tokens_total", Kind::Counter, "Prompt tokens computed.");
const GENERATION_TOKENS: Metric = metric("vllm:generation_tokens_total", Kind::Counter, "Tokens generated.");
const SUCCESS: Metric = Metric {
    name: "vllm:request_success_total",
    kind: Kind::Counter,
    labels: &["model_name", "finished_reason"],
    help: "Requests that came to their end: stop, length or abort.",
};
const REQUEST_PROMPT_TOKENS: Metric =
    metric("vllm:request_prompt_tokens", Kind::Histogram(TOKEN_BUCKETS), "Prompt tokens of a request.");
const REQUEST_GENERATION_TOKENS: Metric =
    metric("vllm:request_generation_tokens", Kind::Histogram(TOKEN_BUCKETS), "Tokens generated for a request.");
const TTFT: Metric = latency("vllm:time_to_first_token_seconds", "From arrival at the engine to the first token.");
const ITL: Metric = latency("vllm:inter_token_latency_seconds", "Mean time between a request's tokens.");
const TPOT: Metric = latency("vllm:time_per_output_token_seconds", "The same by its older name.");
const E2E: Metric = latency("vllm:e2e_request_latency_seconds", "From arrival at the engine to the last token.");
const QUEUE: Metric = latency("vllm:request_queue_time_seconds", "From arrival at the engine to joining the batch.");
const PREFILL: Metric = latency("vllm:request_prefill_time_seconds", "From joining the batch to the first token.");
const DECODE: Metric = latency("vllm:request_decode_time_seconds", "From the first token to the last.");
const INFERENCE: Metric = latency("vllm:request_inference_time_seconds", "From joining the batch to the last token.");

/// All of them.
pub const METRICS: &[Metric] = &[
    RUNNING,
    WAITING,
    KV_USAGE,
    PREFIX_QUERIES,
    PREFIX_HITS,
    PREEMPTIONS,
    DRAFTS,
    DRAFT_TOKENS,
    ACCEPTED_TOKENS,
    PROMPT_TOKENS,
    GENERATION_TOKENS,
    SUCCESS,
    REQUEST_PROMPT_TOKENS,
    REQUEST_GENERATION_TOKENS,
    TTFT,
    ITL,
    TPOT,
    E2E,
    QUEUE,
    PREFILL,
    DECODE,
    INFERENCE,
];

/// A request that came to its end. Times in seconds, those of phases it did not reach are none.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub prompt_tokens: u32,
    pub output_tokens: u32,
    pub queue_s: f64,
    /// From arrival to the first token.
    pub ttft_s: Option<f64>,
    pub itl_s_mean: Option<f64>,
    /// From arrival to the last token.
    pub e2e_s: Option<f64>,
    /// `stop`, `length` or `abort`.
    pub finished_reason: &'static str,
}

/// Counts a request.
pub fn request(model: &str, request: &Request) {
    let labels = [("model_name", model.to_owned()), ("finished_reason", request.finished_reason.to_owned())];
    counter!(SUCCESS.name, &labels).increment(1);
    let record = |metric: &Metric, value: f64| {
        histogram!(metric.name, "model_name" => model.to_owned()).record(value);
    };
    record(&REQUEST_PROMPT_TOKENS, f64::from(request.prompt_tokens));
    record(&REQUEST_GENERATION_TOKENS, f64::from(request.output_tokens));
    record(&QUEUE, request.queue_s);
    if let Some(itl_s) = request.itl_s_mean {
        record(&ITL, itl_s);
        record(&TPOT, itl_s);
    }
    let (Some(ttft_s), Some(e2e_s)) = (request.ttft_s, request.e2e_s) else { return };
    record(&TTFT, ttft_s);
    record(&E2E, e2e_s);
    record(&PREFILL, (ttft_s - request.queue_s).max(0.0));
    record(&DECODE, (e2e_s - ttft_s).max(0.0));
    record(&INFERENCE, (e2e_s - request.queue_s).max(0.0));
}

/// Sequences in engines and waiting in them, and the share of KV blocks in use.
pub fn load(model: &str, running: u32, waiting: u32, kv_share: f64) {
    let set = |metric: &Metric, value: f64| gauge!(metric.name, "model_name" => model.to_owned()).set(value);
    set(&RUNNING, f64::from(running));
    set(&WAITING, f64::from(waiting));
    set(&KV_USAGE, kv_share);
}

/// Totals of one engine, or what they grew by.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub prompt_tokens: u64,
    pub generation_tokens: u64,
    pub prefix_queries: u64,
    pub prefix_hits: u64,
    pub preemptions: u64,
    pub drafts: u64,
    pub draft_tokens: u64,
    pub accepted_tokens: u64,
}

impl Totals {
    fn each(&self) -> [(&'static str, u64); 8] {
        [
            (PROMPT_TOKENS.name, self.prompt_tokens),
            (GENERATION_TOKENS.name, self.generation_tokens),
            (PREFIX_QUERIES.name, self.prefix_queries),
            (PREFIX_HITS.name, self.prefix_hits),
            (PREEMPTIONS.name, self.preemptions),
            (DRAFTS.name, self.drafts),
            (DRAFT_TOKENS.name, self.draft_tokens),
            (ACCEPTED_TOKENS.name, self.accepted_tokens),
        ]
    }

    /// What they grew by since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            prompt_tokens: self.prompt_tokens.saturating_sub(earlier.prompt_tokens),
            generation_tokens: self.generation_tokens.saturating_sub(earlier.generation_tokens),
            prefix_queries: self.prefix_queries.saturating_sub(earlier.prefix_queries),
            prefix_hits: self.prefix_hits.saturating_sub(earlier.prefix_hits),
            preemptions: self.preemptions.saturating_sub(earlier.preemptions),
            drafts: self.drafts.saturating_sub(earlier.drafts),
            draft_tokens: self.draft_tokens.saturating_sub(earlier.draft_tokens),
            accepted_tokens: self.accepted_tokens.saturating_sub(earlier.accepted_tokens),
        }
    }

    /// Exports them as they are: for the engine itself.
    pub fn set(&self, model: &str) {
        for (name, total) in self.each() {
            counter!(name, "model_name" => model.to_owned()).absolute(total);
        }
    }

    /// Adds them: for whoever sums over engines.
    pub fn add(&self, model: &str) {
        for (name, more) in self.each() {
            counter!(name, "model_name" => model.to_owned()).increment(more);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_theirs_and_stand_once() {
        let mut names: Vec<_> = METRICS.iter().map(|metric| metric.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), METRICS.len());
        for metric in METRICS {
            assert!(metric.name.starts_with("vllm:"), "{}", metric.name);
            assert_eq!(metric.kind == Kind::Counter, metric.name.ends_with("_total"), "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
        }
    }
}
