//! Handles of the metrics that belong to one model. They are looked up once, at the model's first request,
//! because a lookup by name and labels costs more than the rest of the gateway's bookkeeping.

use engine_http::{AccessOutcome, AccessRecord};
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

/// Metric handles of one model.
pub struct Meters {
    pub arrivals: Counter,
    pub repetitions: Counter,
    pub held: Gauge,
    pub in_flight: Gauge,
    pub resumed: Counter,
    pub hold_seconds: Histogram,
    pub overhead_seconds: Histogram,
    pub ttft_seconds: Histogram,
    pub itl_seconds: Histogram,
}

impl Meters {
    pub fn new(model: &str) -> Self {
        let model = model.to_owned();
        let gateway = [("model", model.clone()), ("vantage", "gateway".to_owned())];
        Self {
            arrivals: counter!(telemetry::ARRIVALS_TOTAL.name, "model" => model.clone()),
            repetitions: counter!(telemetry::REPETITIONS_TOTAL.name, "model" => model.clone()),
            held: gauge!(telemetry::HELD_REQUESTS.name, "model" => model.clone()),
            in_flight: gauge!(telemetry::IN_FLIGHT_REQUESTS.name, "model" => model.clone()),
            resumed: counter!(telemetry::RESUMED_STREAMS_TOTAL.name, "model" => model.clone()),
            hold_seconds: histogram!(telemetry::HOLD_SECONDS.name, "model" => model.clone()),
            overhead_seconds: histogram!(telemetry::GATEWAY_OVERHEAD_SECONDS.name, "model" => model),
            ttft_seconds: histogram!(telemetry::TTFT_SECONDS.name, &gateway),
            itl_seconds: histogram!(telemetry::ITL_SECONDS.name, &gateway),
        }
    }
}

impl std::fmt::Debug for Meters {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Meters")
    }
}

/// Counts a request that no instance saw.
pub fn count_rejected(model: &str, reason: &'static str) {
    counter!(telemetry::REJECTED_TOTAL.name, "model" => model.to_owned(), "reason" => reason).increment(1);
}

/// Counts a stream that ended with an error.
pub fn count_failed(model: &str, reason: &'static str) {
    counter!(telemetry::FAILED_STREAMS_TOTAL.name, "model" => model.to_owned(), "reason" => reason).increment(1);
}

/// Meters what a client got. The HTTP layer's record is the source, not the tokens passed to it, because only
/// that layer knows which of them were taken: a client may leave, or a stop string end the text, with tokens
/// still on their way. Prompt tokens count when there was any answer to them.
pub fn meter(record: &AccessRecord) {
    if record.output_tokens == 0 && record.outcome != AccessOutcome::Finished {
        return;
    }
    let labels = [("model", record.model.clone()), ("tenant", record.tenant.clone())];
    counter!(telemetry::PROMPT_TOKENS_TOTAL.name, &labels).increment(u64::from(record.prompt_tokens));
    counter!(telemetry::OUTPUT_TOKENS_TOTAL.name, &labels).increment(u64::from(record.output_tokens));
}
