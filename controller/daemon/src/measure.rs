//! The daemon's metrics. Each is named by the metric table, so nothing is spelled here.

use crate::actuate::Exit;
use crate::timeline::StartRecord;
use controller_core::action::{Action, ActionKind, Decision};
use controller_core::capacity::cold_start_quantiles_ms;
use controller_core::snapshot::{InstanceState, InstanceView, ModelName, Snapshot};
use controller_core::wake::cold_starts_ms;
use controller_core::{Nanos, State};
use engine_wire::control::{Outcome, Telemetry};
use metrics::{counter, gauge, histogram};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What one report of an engine adds to its last one.
pub fn telemetry(model: &str, last: Option<&Telemetry>, now: &Telemetry) {
    let model = model.to_owned();
    // Without an earlier report the totals are from before this controller: they are not its to count twice.
    if let Some(last) = last {
        for (phase, before, after) in [
            ("prefill", last.prefill_tokens_total, now.prefill_tokens_total),
            ("decode", last.decode_tokens_total, now.decode_tokens_total),
            ("encode", last.encode_tokens_total, now.encode_tokens_total),
        ] {
            counter!(telemetry::ENGINE_TOKENS_TOTAL.name, "model" => model.clone(), "phase" => phase)
                .increment(after.saturating_sub(before));
        }
        let drafted = now.draft_tokens_total.saturating_sub(last.draft_tokens_total);
        let accepted = now.draft_tokens_accepted_total.saturating_sub(last.draft_tokens_accepted_total);
        for (outcome, tokens) in [("accepted", accepted), ("rejected", drafted.saturating_sub(accepted))] {
            counter!(telemetry::SPEC_TOKENS_TOTAL.name, "model" => model.clone(), "outcome" => outcome)
                .increment(tokens);
        }
        for (outcome, before, after) in [
            ("hit", last.prefix_hit_tokens_total, now.prefix_hit_tokens_total),
            ("miss", last.prefix_miss_tokens_total, now.prefix_miss_tokens_total),
        ] {
            counter!(telemetry::PREFIX_CACHE_TOKENS_TOTAL.name, "model" => model.clone(), "outcome" => outcome)
                .increment(after.saturating_sub(before));
        }
        steps(&model, last, now);
        let totals = engine_http::vllm::totals;
        totals(now).since(&totals(last)).add(&model);
    }
    for request in &now.finished {
        engine_http::vllm::finished(&model, request);
    }
    for request in now.finished.iter().filter(|request| request.first_token_at_ns > 0) {
        let named = request.adapter.as_ref().unwrap_or(&model);
        let labels = [("model", named.clone()), ("vantage", "engine".to_owned())];
        histogram!(telemetry::TTFT_SECONDS.name, &labels).record(request.ttft_ms / 1e3);
        // A cancelled stream's mean is cut short by the client, not by the engine.
        if let (Some(itl_ms), Outcome::Finished) = (request.itl_ms_mean, request.outcome) {
            histogram!(telemetry::ITL_SECONDS.name, &labels).record(itl_ms / 1e3);
        }
    }
}

/// Phases and sizes of the steps between two reports. Each counts at the mean of those steps, so sums and counts
/// are exact and only the spread within a second is lost.
fn steps(model: &str, last: &Telemetry, now: &Telemetry) {
    let grown = |before: u64, after: u64| after.saturating_sub(before);
    counter!(telemetry::ENGINE_PREEMPTIONS_TOTAL.name, "model" => model.to_owned())
        .increment(grown(last.preemptions_total, now.preemptions_total));
    let steps = grown(last.steps_total, now.steps_total);
    if steps == 0 {
        return;
    }
    let count = usize::try_from(steps).unwrap_or(usize::MAX);
    for ((phase, before_ns), (_, after_ns)) in last.step_phases.each().into_iter().zip(now.step_phases.each()) {
        let mean_s = grown(before_ns, after_ns) as f64 / steps as f64 / 1e9;
        histogram!(telemetry::ENGINE_STEP_SECONDS.name, "model" => model.to_owned(), "phase" => phase)
            .record_many(mean_s, count);
    }
    let tokens = grown(last.prefill_tokens_total, now.prefill_tokens_total)
        + grown(last.decode_tokens_total, now.decode_tokens_total);
    histogram!(telemetry::ENGINE_STEP_TOKENS.name, "model" => model.to_owned())
        .record_many(tokens as f64 / steps as f64, count);
}

/// An instance became ready, this long after the decision to start it.
pub fn cold_start(model: &str, cold_start_ms: f64) {
    histogram!(telemetry::COLD_START_SECONDS.name, "model" => model.to_owned()).record(cold_start_ms / 1e3);
}

/// A start is over.
pub fn start(start: &StartRecord) {
    for (phase, ms) in start.phases() {
        let Some(ms) = ms else { continue };
        let labels =
            [("model", start.model.clone()), ("phase", phase.to_owned()), ("tier", start.tier.label().to_owned())];
        histogram!(telemetry::COLD_START_PHASE_SECONDS.name, &labels).record(ms / 1e3);
    }
}

/// An engine process ended.
pub fn exited(model: &str, exit: &Exit) {
    let labels = [("model", model.to_owned()), ("reason", exit.reason.label().to_owned())];
    counter!(telemetry::INSTANCE_EXITS_TOTAL.name, &labels).increment(1);
}

/// An action was applied, or was not.
pub fn action(decided: &BTreeMap<String, ModelName>, action: &Action, outcome: &'static str) {
    let (kind, model) = match &action.kind {
        ActionKind::Start { model, .. } => ("start", model.clone()),
        ActionKind::Drain { instance, .. } => ("drain", decided.get(instance).cloned().unwrap_or_default()),
        ActionKind::Prefetch { model, .. } => ("prefetch", model.clone()),
        ActionKind::Forget { model, .. } => ("forget", model.clone()),
    };
    if kind == "start" && outcome == "applied" {
        counter!(telemetry::COLD_STARTS_TOTAL.name, "model" => model.clone()).increment(1);
    }
    counter!(telemetry::ACTIONS_TOTAL.name, "model" => model, "kind" => kind, "outcome" => outcome).increment(1);
}

/// Decisions by reason, and the plan they made.
pub fn decisions(decisions: &[Decision]) {
    for decision in decisions {
        let model = decision.model.clone();
        let reason = reason_label(decision);
        counter!(telemetry::DECISIONS_TOTAL.name, "model" => model.clone(), "reason" => reason).increment(1);
        gauge!(telemetry::WANTED_INSTANCES.name, "model" => model.clone()).set(f64::from(decision.want));
    }
}

/// The reason as its serde name, which is the label that the API shows too.
pub fn reason_label(decision: &Decision) -> String {
    match serde_json::to_value(decision.reason) {
        Ok(serde_json::Value::String(label)) => label,
        _ => String::new(),
    }
}

/// Gauges over the whole snapshot. Keeps what must be set back to 0 when a model or a state empties, and
/// what rates are taken from.
#[derive(Debug, Default)]
pub struct Gauges {
    models: BTreeSet<ModelName>,
    rates: BTreeMap<ModelName, (Nanos, u64)>,
    busy_ns: BTreeMap<String, u64>,
    /// When instances were last looked at, and device time that is less than a second, by model.
    held_at_ns: Option<Nanos>,
    held_ns: BTreeMap<ModelName, u64>,
}

/// Arrival rates are taken over at least this long.
const RATE_WINDOW_NS: u64 = 2_000_000_000;

impl Gauges {
    /// Sets all of them.
    pub fn set(&mut self, state: &State, snapshot: &Snapshot, kv_blocks: &BTreeMap<ModelName, (u64, u64)>) {
        self.models.extend(snapshot.models.keys().cloned());
        self.models.extend(snapshot.instances.values().map(|instance| instance.model.clone()));
        for model in &self.models {
            let of_model = || snapshot.instances.values().filter(|instance| &instance.model == model);
            let (running, waiting) = set_instances(model, of_model());
            let (used, total) = kv_blocks.get(model).copied().unwrap_or_default();
            telemetry::vllm::load(model, running, waiting, used as f64 / total.max(1) as f64);
            gauge!(telemetry::KV_BLOCKS_USED.name, "model" => model.clone()).set(used as f64);
            gauge!(telemetry::KV_BLOCKS_TOTAL.name, "model" => model.clone()).set(total as f64);
        }
        gauge!(telemetry::MEMORY_PLACED_BYTES.name).set(placed_bytes(snapshot) as f64);
        gauge!(telemetry::MEMORY_BUDGET_BYTES.name).set(snapshot.node.memory_budget_bytes as f64);
        self.rates(snapshot);
        forecasts(state, snapshot);
        self.busy(snapshot);
        self.held(snapshot);
        let is_present = |model: &ModelName| {
            let mut instances = snapshot.instances.values();
            snapshot.models.contains_key(model) || instances.any(|instance| &instance.model == model)
        };
        for model in self.models.iter().filter(|model| !is_present(model)) {
            forget(model);
        }
        self.models.retain(is_present);
    }

    fn rates(&mut self, snapshot: &Snapshot) {
        self.rates.retain(|model, _| snapshot.models.contains_key(model));
        for (model, view) in &snapshot.models {
            let arrivals = view.demand.arrivals_total;
            let (since_ns, before) = *self.rates.entry(model.clone()).or_insert((snapshot.now_ns, arrivals));
            let elapsed_ns = snapshot.now_ns.saturating_sub(since_ns);
            if elapsed_ns < RATE_WINDOW_NS {
                continue;
            }
            let rate_per_s = arrivals.saturating_sub(before) as f64 / (elapsed_ns as f64 / 1e9);
            gauge!(telemetry::ACTUAL_REQUESTS_PER_SECOND.name, "model" => model.clone()).set(rate_per_s);
            self.rates.insert(model.clone(), (snapshot.now_ns, arrivals));
        }
    }

    /// Device time of all instances since the last look: what they cost, whether they work or idle.
    fn held(&mut self, snapshot: &Snapshot) {
        self.held_ns.retain(|model, _| self.models.contains(model));
        let since_ns = self.held_at_ns.replace(snapshot.now_ns).unwrap_or(snapshot.now_ns);
        let elapsed_ns = snapshot.now_ns.saturating_sub(since_ns);
        for instance in snapshot.instances.values() {
            let devices = instance.placement.cores().len() as u64;
            let held_ns = self.held_ns.entry(instance.model.clone()).or_insert(0);
            *held_ns = held_ns.saturating_add(elapsed_ns.saturating_mul(devices));
            let seconds = *held_ns / 1_000_000_000;
            *held_ns -= seconds * 1_000_000_000;
            counter!(telemetry::DEVICE_SECONDS_TOTAL.name, "model" => instance.model.clone()).increment(seconds);
        }
    }

    /// Whole seconds only can be counted, so what is less stays for the next time.
    fn busy(&mut self, snapshot: &Snapshot) {
        self.busy_ns.retain(|instance, _| snapshot.instances.contains_key(instance));
        for (id, instance) in &snapshot.instances {
            let counted = self.busy_ns.entry(id.clone()).or_insert(0);
            let seconds = instance.busy_ns_total.saturating_sub(*counted) / 1_000_000_000;
            *counted += seconds * 1_000_000_000;
            if seconds > 0 {
                counter!(telemetry::ENGINE_BUSY_SECONDS_TOTAL.name, "model" => instance.model.clone())
                    .increment(seconds);
            }
        }
    }
}

/// Memory of all instances: what is their own, and what they share once.
fn placed_bytes(snapshot: &Snapshot) -> u64 {
    let own: u64 = snapshot.instances.values().map(|instance| instance.placement.bytes()).sum();
    let used = snapshot.instances.values().filter_map(|instance| {
        let model = snapshot.models.get(&instance.model).filter(|model| model.revision == instance.revision)?;
        model.weights.as_ref().map(|weights| (&instance.revision, weights.bytes))
    });
    let shared: BTreeMap<_, u64> = used.collect();
    own + shared.values().sum::<u64>()
}

/// Quantiles of the forecast that are shown, and their labels.
const SHOWN: [(&str, f64); 3] = [("0.1", 0.1), ("0.5", 0.5), ("0.9", 0.9)];

/// The forecast at each model's cold-start horizon, which is where warming ahead is decided, and how it has done.
fn forecasts(state: &State, snapshot: &Snapshot) {
    for (model, view) in &snapshot.models {
        let (_, cold_start_ms_p90) = cold_start_quantiles_ms(&cold_starts_ms(view, &snapshot.node));
        let horizon_s = cold_start_ms_p90 / 1e3;
        let (Some(forecast), Some(expected)) = (state.forecast(model, horizon_s), state.expected(model)) else {
            continue;
        };
        for (quantile, q) in SHOWN {
            let labels = [("model", model.clone()), ("quantile", quantile.to_owned())];
            gauge!(telemetry::FORECAST_REQUESTS_PER_SECOND.name, &labels).set(forecast.rate_quantile(q));
        }
        if let Some(coverage) = expected.coverage() {
            gauge!(telemetry::FORECAST_COVERAGE_RATIO.name, "model" => model.clone()).set(coverage);
        }
        let regret = expected.reading(horizon_s).map_or(0.0, |reading| reading.regret);
        gauge!(telemetry::FORECAST_REGRET_RATIO.name, "model" => model.clone()).set(regret);
    }
}

/// A model that is gone wants and expects nothing; its last figures must not stand for ever.
fn forget(model: &str) {
    let model = model.to_owned();
    gauge!(telemetry::WANTED_INSTANCES.name, "model" => model.clone()).set(0.0);
    gauge!(telemetry::ACTUAL_REQUESTS_PER_SECOND.name, "model" => model.clone()).set(0.0);
    for (quantile, _) in SHOWN {
        let labels = [("model", model.clone()), ("quantile", quantile.to_owned())];
        gauge!(telemetry::FORECAST_REQUESTS_PER_SECOND.name, &labels).set(0.0);
    }
}

/// Answers the sequences that run and that wait.
fn set_instances<'a>(model: &str, instances: impl Iterator<Item = &'a InstanceView>) -> (u32, u32) {
    let mut by_state = [0u32; 3];
    let (mut running, mut waiting) = (0, 0);
    for instance in instances {
        by_state[instance.state as usize] += 1;
        running += instance.running;
        waiting += instance.waiting;
    }
    for (label, state) in
        [("starting", InstanceState::Starting), ("ready", InstanceState::Ready), ("draining", InstanceState::Draining)]
    {
        gauge!(telemetry::INSTANCES.name, "model" => model.to_owned(), "state" => label)
            .set(f64::from(by_state[state as usize]));
    }
    gauge!(telemetry::ENGINE_RUNNING_SEQUENCES.name, "model" => model.to_owned()).set(f64::from(running));
    gauge!(telemetry::ENGINE_WAITING_SEQUENCES.name, "model" => model.to_owned()).set(f64::from(waiting));
    (running, waiting)
}

/// One tick took this long.
pub fn tick(took: Duration) {
    counter!(telemetry::TICKS_TOTAL.name).increment(1);
    histogram!(telemetry::TICK_SECONDS.name).record(took.as_secs_f64());
}
