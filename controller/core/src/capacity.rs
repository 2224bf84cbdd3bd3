//! What one instance of a model can do and what starting one costs, as measured.
//!
//! Service figures come from deltas of each ready instance's totals. Starting, draining and disturbed instances are
//! never looked at: one is slow because it warms, one because it is emptied, one because others have its CPUs, and none
//! says what an instance can do. Until there are samples, stated priors stand in, and `samples` says 0.

use crate::NS_PER_S;
use crate::Nanos;
use crate::action::CapacityView;
use crate::snapshot::{InstanceState, InstanceView};
use serde::{Deserialize, Serialize};

/// Assumed requests per second of one instance: a small model on one core, answers of some dozen tokens.
const PRIOR_REQUESTS_PER_S: f64 = 2.0;
/// Busy seconds that the assumption weighs against measurements.
const PRIOR_BUSY_S: f64 = 1.0;
/// Assumed useful batch of one instance.
const PRIOR_CONCURRENCY: f64 = 4.0;
/// Assumed cold start, ms: middle and 90th percentile.
const PRIOR_COLD_START_MS: (f64, f64) = (1_500.0, 3_000.0);
/// Busy time over which measurements are forgotten, s.
const MEMORY_BUSY_S: f64 = 30.0;
/// Batch sizes at which token throughput is told apart; a batch counts for the largest that it reaches.
const BATCHES: [u32; 6] = [1, 2, 4, 8, 16, 32];
/// Doubling the batch is useful while it yields at least this factor of tokens per second.
const USEFUL_GAIN: f64 = 1.15;

/// Measured service of one model's instances, alike over instances.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CapacityEstimator {
    busy_s: f64,
    requests: f64,
    batches: [BatchSample; BATCHES.len()],
    samples: u32,
}

/// Busy time and tokens at one batch size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct BatchSample {
    busy_s: f64,
    tokens: f64,
}

/// An instance's totals at the last look, to take the next delta from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ServiceMark {
    observed_at_ns: Nanos,
    busy_ns: u64,
    requests: u64,
    tokens: u64,
    running: u32,
}

impl ServiceMark {
    /// The totals of an instance that may train, or none.
    pub(crate) fn of(view: &InstanceView) -> Option<Self> {
        (view.state == InstanceState::Ready && !view.disturbed).then_some(Self {
            observed_at_ns: view.observed_at_ns,
            busy_ns: view.busy_ns_total,
            requests: view.requests_total,
            // Prefill comes in lumps at the start of a sequence; what a batch gains shows in decoding.
            tokens: view.decode_tokens_total,
            running: view.running,
        })
    }
}

impl CapacityEstimator {
    /// Takes in what one ready instance did between two looks. Totals that fell (another process under the
    /// same name) or did not move train nothing.
    pub(crate) fn observe(&mut self, before: &ServiceMark, after: &ServiceMark) {
        let fell = after.busy_ns < before.busy_ns || after.requests < before.requests || after.tokens < before.tokens;
        if fell || after.busy_ns == before.busy_ns {
            return;
        }
        let busy_s = ((after.busy_ns - before.busy_ns) as f64 / NS_PER_S as f64).min(MEMORY_BUSY_S);
        let requests = ((after.requests - before.requests) as f64).min(1e9);
        let tokens = ((after.tokens - before.tokens) as f64).min(1e12);
        let batch = before.running.max(after.running).max(1);
        let keep = (-busy_s / MEMORY_BUSY_S).exp();
        // A fuller batch says more about what an instance can do than one that waits for a second request.
        let weight = f64::from(batch.min(BATCHES[BATCHES.len() - 1]));
        self.busy_s = keep * self.busy_s + weight * busy_s;
        self.requests = keep * self.requests + weight * requests;
        self.samples = self.samples.saturating_add(1);
        if before.running != after.running {
            // The batch changed in between, so the tokens belong to no one size.
            return;
        }
        let slot = BATCHES.iter().rposition(|size| *size <= batch).unwrap_or(0);
        let sample = &mut self.batches[slot];
        sample.busy_s = keep * sample.busy_s + busy_s;
        sample.tokens = keep * sample.tokens + tokens;
    }

    /// Requests per second of one instance that is kept busy.
    pub fn requests_per_s(&self) -> f64 {
        let assumed = PRIOR_REQUESTS_PER_S * PRIOR_BUSY_S;
        ((assumed + self.requests) / (PRIOR_BUSY_S + self.busy_s)).clamp(1e-3, 1e6)
    }

    /// The batch up to which throughput still grows. Beyond the largest batch measured the assumption stands.
    pub fn concurrency(&self) -> f64 {
        let rate = |slot: usize| {
            let sample = self.batches[slot];
            (sample.busy_s > 0.5).then(|| sample.tokens / sample.busy_s)
        };
        for slot in 1..BATCHES.len() {
            let (Some(smaller), Some(larger)) = (rate(slot - 1), rate(slot)) else { continue };
            if larger < smaller * USEFUL_GAIN {
                return f64::from(BATCHES[slot - 1]);
            }
        }
        let largest = (0..BATCHES.len()).rev().find(|slot| rate(*slot).is_some());
        largest.map_or(PRIOR_CONCURRENCY, |slot| f64::from(BATCHES[slot]).max(PRIOR_CONCURRENCY))
    }

    /// The figures with the cold-start distribution, as shown and as planned with.
    pub fn view(&self, cold_start_ms: &[f64]) -> CapacityView {
        let (p50, p90) = cold_start_quantiles_ms(cold_start_ms);
        CapacityView {
            requests_per_s_per_instance: self.requests_per_s(),
            concurrency_per_instance: self.concurrency(),
            cold_start_ms_p50: p50,
            cold_start_ms_p90: p90,
            samples: self.samples,
            cold_start_samples: cold_start_ms.iter().filter(|ms| measured(**ms)).count() as u32,
        }
    }
}

/// Median and 90th percentile of the measured cold starts, ms; the priors when there are none. Few samples
/// say little about a tail, so the 90th percentile of fewer than ten is their maximum.
pub fn cold_start_quantiles_ms(samples: &[f64]) -> (f64, f64) {
    let mut sane: Vec<f64> =
        samples.iter().copied().filter(|ms| measured(*ms)).map(|ms| ms.clamp(1.0, 600_000.0)).collect();
    if sane.is_empty() {
        return PRIOR_COLD_START_MS;
    }
    sane.sort_by(f64::total_cmp);
    let at = |q: f64| sane[((sane.len() as f64 * q).ceil() as usize).clamp(1, sane.len()) - 1];
    (at(0.5), at(0.9))
}

fn measured(cold_start_ms: f64) -> bool {
    cold_start_ms.is_finite() && cold_start_ms >= 0.0
}
