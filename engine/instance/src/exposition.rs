//! /metrics of an engine by itself. Histograms are recorded as requests end; gauges and totals are taken
//! from the ledger when somebody asks, so the step thread pays nothing for them.

use crate::error::EngineError;
use crate::shared::Shared;
use engine_wire::control::Telemetry;
use metrics::{counter, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use telemetry::{Kind, table, vllm};

/// One recorder for a process, whoever asks first.
static RECORDER: Mutex<Option<PrometheusHandle>> = Mutex::new(None);

/// Installs the recorder of this process, once.
pub(crate) fn install() -> Result<PrometheusHandle, EngineError> {
    // Held to the end: of two engines of one process, the one that comes second must get the recorder that was installed.
    let mut installed = RECORDER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = &*installed {
        return Ok(handle.clone());
    }
    let failed = |message: String| EngineError::BadOption { message: format!("metrics: {message}") };
    let mut builder = PrometheusBuilder::new();
    for metric in telemetry::exported() {
        if let Kind::Histogram(bounds) = metric.kind {
            builder = builder
                .set_buckets_for_metric(Matcher::Full(metric.name.to_string()), bounds)
                .map_err(|error| failed(error.to_string()))?;
        }
    }
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    // Somebody else's recorder stays; then this handle shows nothing, which is no reason not to serve.
    if metrics::set_global_recorder(recorder).is_err() {
        tracing::warn!("another metrics recorder is installed: /metrics stays empty");
    }
    tokio::spawn(keep_up(handle.clone()));
    Ok(installed.insert(handle).clone())
}

/// Between two compactions of histogram samples that nobody has scraped.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Without this a histogram keeps every sample until somebody asks for it, and under a controller nobody does.
async fn keep_up(handle: PrometheusHandle) {
    loop {
        tokio::time::sleep(UPKEEP_EVERY).await;
        handle.run_upkeep();
    }
}

/// What /metrics says, each time it is asked.
pub(crate) fn render(
    handle: PrometheusHandle,
    shared: Arc<Shared>,
) -> impl Fn() -> String + Clone + Send + Sync + 'static {
    move || {
        let telemetry = shared.ledger().peek(shared.state());
        record(&shared.identity.model, &telemetry);
        handle.render()
    }
}

fn record(model: &str, telemetry: &Telemetry) {
    let labels = [("model", model.to_string())];
    gauge!(table::KV_BLOCKS_TOTAL.name, &labels).set(f64::from(telemetry.kv_blocks_total));
    gauge!(table::KV_BLOCKS_USED.name, &labels).set(f64::from(telemetry.kv_blocks_used));
    gauge!(table::ENGINE_RUNNING_SEQUENCES.name, &labels).set(f64::from(telemetry.running));
    gauge!(table::ENGINE_WAITING_SEQUENCES.name, &labels).set(f64::from(telemetry.waiting));
    // Whole seconds, as the exporter's counters are integers.
    counter!(table::ENGINE_BUSY_SECONDS_TOTAL.name, &labels).absolute(telemetry.busy_ns_total / 1_000_000_000);
    counter!(table::ENGINE_PREEMPTIONS_TOTAL.name, &labels).absolute(telemetry.preemptions_total);
    let kv_share = f64::from(telemetry.kv_blocks_used) / f64::from(telemetry.kv_blocks_total.max(1));
    vllm::load(model, telemetry.running, telemetry.waiting, kv_share);
    engine_http::vllm::totals(telemetry).set(model);
    let phases = [
        ("prefill", telemetry.prefill_tokens_total),
        ("decode", telemetry.decode_tokens_total),
        ("encode", telemetry.encode_tokens_total),
    ];
    for (phase, tokens) in phases {
        let labels = [("model", model.to_string()), ("phase", phase.to_string())];
        counter!(table::ENGINE_TOKENS_TOTAL.name, &labels).absolute(tokens);
    }
    let rejected = telemetry.draft_tokens_total.saturating_sub(telemetry.draft_tokens_accepted_total);
    for (outcome, tokens) in [("accepted", telemetry.draft_tokens_accepted_total), ("rejected", rejected)] {
        let labels = [("model", model.to_string()), ("outcome", outcome.to_string())];
        counter!(table::SPEC_TOKENS_TOTAL.name, &labels).absolute(tokens);
    }
    let outcomes = [("hit", telemetry.prefix_hit_tokens_total), ("miss", telemetry.prefix_miss_tokens_total)];
    for (outcome, tokens) in outcomes {
        let labels = [("model", model.to_string()), ("outcome", outcome.to_string())];
        counter!(table::PREFIX_CACHE_TOKENS_TOTAL.name, &labels).absolute(tokens);
    }
}
