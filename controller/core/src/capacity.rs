//! What one instance of a model can do and what starting one costs, as measured.
//!
//! Service figures come from deltas of each ready instance's totals. Starting, draining and disturbed instances are
//! never looked at: one is slow because it warms, one because it is emptied, one because others have its CPUs, and none
//! says what an instance can do. Until there are samples, stated priors stand in, and `samples` says 0.
//!
//! What is measured is the time of a step against its batch (see `step_fit`), not requests over busy time: an engine
//! that serves one request at a time is busy all the while and could serve sixteen. From the curve follows what an
//! instance does at the batch up to which it is useful to fill it: a request then takes its prompt's time, and in each
//! of its steps a share.

use crate::NS_PER_S;
use crate::Nanos;
use crate::action::CapacityView;
use crate::outside::Slo;
use crate::snapshot::{InstanceState, InstanceView};
use crate::staffing::Service;
use crate::step_fit::{Look, MEMORY_BUSY_S, SEQUENCE_SHARE, StepCost, StepFit};
use serde::{Deserialize, Serialize};

/// Assumed of one instance: a small model on one core that answers with some dozen tokens, two requests per second.
const PRIOR: Service = Service { alone_s: 0.74, each_s: 0.315, concurrency: PRIOR_CONCURRENCY };
/// Busy seconds that the assumption weighs against measurements.
const PRIOR_BUSY_S: f64 = 1.0;
/// Assumed useful batch of one instance.
const PRIOR_CONCURRENCY: f64 = 4.0;
/// Assumed cold start, ms: middle and 90th percentile.
const PRIOR_COLD_START_MS: (f64, f64) = (1_500.0, 3_000.0);
/// Requests over which the mean lengths are forgotten.
const MEMORY_REQUESTS: f64 = 128.0;
/// Doubling the batch is useful while it yields at least this factor of tokens per second.
const USEFUL_GAIN: f64 = 1.15;
/// How far beyond the largest batch measured the curve is believed, as a factor.
const BELIEVED_BEYOND: f64 = 4.0;
/// Steps within which an engine that can takes in what waits.
const ADMITTING_STEPS: f64 = 4.0;
/// No batch is believed to be larger.
const MAX_BATCH: f64 = 4096.0;
/// Of an engine that takes one request after the other, the share of its time that passes beside its work.
const ALONE_SHARE: f64 = 0.05;
/// Bounds of what one request takes, s.
const MIN_TIME_S: f64 = 1e-6;
const MAX_TIME_S: f64 = 1e3;
/// Where even one sequence by itself is slower than the target, further ones may slow it by this factor.
const SLOWED_BY: f64 = 2.0;

/// Batch from which on an engine's steps tell what a sequence adds to them.
const TELLING_BATCH: f64 = 3.0;
/// Models that what is assumed of engines counts for, beside those that are measured.
const ASSUMED_MODELS: f64 = 1.0;

/// How a step grows with its batch, where an engine has not been seen with different ones.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Shape {
    /// Share that one sequence has in a step by itself.
    sequence_share: f64,
    /// Batch up to which the curve is believed.
    batch: f64,
}

impl Default for Shape {
    fn default() -> Self {
        Self { sequence_share: SEQUENCE_SHARE, batch: PRIOR_CONCURRENCY }
    }
}

/// Measured service of one model's instances, alike over instances.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CapacityEstimator {
    fit: StepFit,
    /// Requests begun and finished, the latter with half of those that go on, and their tokens; older ones forgotten.
    begun: f64,
    /// Busy time of these requests, s.
    busy_s: f64,
    finished: f64,
    prefill_tokens: f64,
    decode_tokens: f64,
    /// The batch beyond which requests wait in the engine; 0 while none was seen to.
    full_at: f64,
    samples: u32,
    /// As of the last look.
    cost: Option<StepCost>,
    /// What engines of the fleet are like.
    lent: Shape,
}

/// An instance's totals at the last look, to take the next delta from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ServiceMark {
    observed_at_ns: Nanos,
    busy_ns: u64,
    steps: u64,
    requests: u64,
    prefill_tokens: u64,
    decode_tokens: u64,
    running: u32,
    waiting: u32,
}

impl ServiceMark {
    /// The totals of an instance that may train, or none.
    pub(crate) fn of(view: &InstanceView) -> Option<Self> {
        (view.state == InstanceState::Ready && !view.disturbed).then_some(Self {
            observed_at_ns: view.observed_at_ns,
            busy_ns: view.busy_ns_total,
            steps: view.steps_total,
            requests: view.requests_total,
            prefill_tokens: view.prefill_tokens_total,
            decode_tokens: view.decode_tokens_total,
            running: view.running,
            waiting: view.waiting,
        })
    }

    /// What was done since an earlier look; none where totals fell (another process under the same name) or stood still.
    fn since(&self, before: &Self) -> Option<Look> {
        let delta = |of: fn(&Self) -> u64| of(self).checked_sub(of(before));
        let busy_ns = delta(|mark| mark.busy_ns).filter(|busy_ns| *busy_ns > 0)?;
        let decode_tokens = (delta(|mark| mark.decode_tokens)? as f64).min(1e9);
        let steps = (delta(|mark| mark.steps)? as f64).min(1e9);
        let mean_running = (f64::from(before.running) + f64::from(self.running)) / 2.0;
        Some(Look {
            busy_s: (busy_ns as f64 / NS_PER_S as f64).min(MEMORY_BUSY_S),
            // An engine that does not count its steps takes as many as make its tokens with what runs in it.
            steps: if steps > 0.0 { steps } else { decode_tokens / mean_running.clamp(1.0, MAX_BATCH) },
            decode_tokens,
            prefill_tokens: (delta(|mark| mark.prefill_tokens)? as f64).min(1e9),
        })
    }
}

/// Mean tokens of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Lengths {
    prefill_tokens: f64,
    decode_tokens: f64,
}

impl CapacityEstimator {
    /// Takes in what one ready instance did between two looks. Totals that fell or did not move train nothing.
    pub(crate) fn observe(&mut self, before: &ServiceMark, after: &ServiceMark) {
        let Some(look) = after.since(before) else { return };
        let Some(finished) = after.requests.checked_sub(before.requests) else { return };
        self.samples = self.samples.saturating_add(1);
        self.fit.observe(&look);
        self.cost = self.fit.cost(self.lent.sequence_share);
        self.learn_lengths(&look, (finished as f64).min(1e9), f64::from(after.running) - f64::from(before.running));
        self.learn_batch(&look, before, after);
    }

    /// A request that goes on counts half, or long ones would be missed until they end and then come all at once.
    fn learn_lengths(&mut self, look: &Look, finished: f64, joined: f64) {
        let keep = (-finished / MEMORY_REQUESTS).exp();
        self.begun = (keep * self.begun + finished + joined).max(0.0);
        self.finished = (keep * self.finished + finished + 0.5 * joined).max(0.0);
        self.busy_s = keep * self.busy_s + look.busy_s;
        self.prefill_tokens = keep * self.prefill_tokens + look.prefill_tokens;
        self.decode_tokens = keep * self.decode_tokens + look.decode_tokens;
    }

    /// The batch at which the engine is full: where requests have waited through several steps in which none left and no
    /// prompt was computed, the batch is all that it takes.
    fn learn_batch(&mut self, look: &Look, before: &ServiceMark, after: &ServiceMark) {
        let running = f64::from(after.running).min(MAX_BATCH);
        let waits = before.waiting > 0 && after.waiting > 0 && look.prefill_tokens == 0.0;
        if waits && before.running == after.running && running > 0.0 && look.steps >= ADMITTING_STEPS {
            self.full_at = running;
        } else if self.full_at > 0.0 {
            self.full_at = self.full_at.max(running);
        }
    }

    fn lengths(&self) -> Option<Lengths> {
        let finished = self.finished.max(1e-3);
        (self.finished >= 0.5 && self.decode_tokens > 0.0).then(|| Lengths {
            prefill_tokens: self.prefill_tokens / self.begun.max(finished),
            decode_tokens: self.decode_tokens / finished,
        })
    }

    /// What an instance does with how many requests at once, and up to how many it is useful to fill it.
    pub(crate) fn service(&self, slo: &Slo) -> Service {
        let Some(cost) = self.cost else { return self.without_steps() };
        let lengths = self.lengths();
        let believed = (BELIEVED_BEYOND * self.fit.largest()).max(self.lent.batch);
        let limit = if self.full_at > 0.0 { believed.min(self.full_at) } else { believed };
        let concurrency = useful(&cost, lengths, slo).min(limit).floor().clamp(1.0, MAX_BATCH);
        let Some(lengths) = lengths else { return Service { concurrency, ..PRIOR } };
        // In a batch each request takes its steps, and everybody's prompts and shares of the steps.
        let prompt_s = cost.per_prompt_token_s * lengths.prefill_tokens;
        self.against_prior(Service {
            alone_s: cost.fixed_s * lengths.decode_tokens,
            each_s: prompt_s + cost.per_sequence_s * lengths.decode_tokens,
            concurrency,
        })
    }

    /// How the engines of a fleet's models are, as far as they have been seen with batches: what a model is believed to
    /// be like that has been seen with single requests alone. Engines of one fleet run on alike devices, where the share
    /// of a sequence in a step follows from the device more than from the model.
    pub(crate) fn of_fleet<'a>(fleet: impl Iterator<Item = &'a Self>) -> Shape {
        let assumed = Shape::default();
        let (mut share, mut doublings, mut models) = (assumed.sequence_share, assumed.batch.log2(), ASSUMED_MODELS);
        for one in fleet {
            let Some(cost) = one.cost.filter(|_| one.fit.largest() >= TELLING_BATCH) else { continue };
            share += cost.per_sequence_s / (cost.fixed_s + cost.per_sequence_s).max(1e-12);
            doublings += one.fit.largest().log2();
            models += 1.0;
        }
        Shape { sequence_share: share / models, batch: (doublings / models).exp2() }
    }

    /// Believes this where the model's own engines have not shown it.
    pub(crate) fn lend(&mut self, shape: Shape) {
        self.lent = shape;
    }

    /// An engine that decodes nothing, such as one that embeds, takes requests one after the other: their time over
    /// their number is all that is known of it.
    fn without_steps(&self) -> Service {
        if self.busy_s <= 0.0 || self.finished <= 0.0 {
            return PRIOR;
        }
        let each_s = self.busy_s / self.finished;
        self.against_prior(Service { alone_s: ALONE_SHARE * each_s, each_s, ..PRIOR })
    }

    fn against_prior(&self, measured: Service) -> Service {
        let weight = self.fit.busy_s() / (PRIOR_BUSY_S + self.fit.busy_s());
        let mixed = |prior: f64, measured: f64| (prior + weight * (measured - prior)).clamp(0.0, MAX_TIME_S);
        Service {
            alone_s: mixed(PRIOR.alone_s, measured.alone_s),
            each_s: mixed(PRIOR.each_s, measured.each_s).max(MIN_TIME_S),
            ..measured
        }
    }

    /// The figures with the cold-start distribution, as shown and as planned with.
    pub fn view(&self, cold_start_ms: &[f64], slo: &Slo) -> CapacityView {
        let (p50, p90) = cold_start_quantiles_ms(cold_start_ms);
        let service = self.service(slo);
        CapacityView {
            requests_per_s_per_instance: service.rate(service.concurrency),
            concurrency_per_instance: service.concurrency,
            cold_start_ms_p50: p50,
            cold_start_ms_p90: p90,
            samples: self.samples,
            cold_start_samples: cold_start_ms.iter().filter(|ms| measured(**ms)).count() as u32,
        }
    }
}

/// The batch up to which doubling still pays and the time between two tokens of a request stays within the target. Between
/// them lie a step and the prompts of others: in a batch of `n`, of each request that comes in while one goes on.
fn useful(cost: &StepCost, lengths: Option<Lengths>, slo: &Slo) -> f64 {
    // 2 x step(n / 2) >= gain x step(n), solved for n.
    let pays = (2.0 - USEFUL_GAIN) * cost.fixed_s / ((USEFUL_GAIN - 1.0) * cost.per_sequence_s).max(1e-12);
    let prompts_s =
        lengths.map_or(0.0, |mean| cost.per_prompt_token_s * mean.prefill_tokens / mean.decode_tokens.max(1.0));
    let per_sequence_s = cost.per_sequence_s + prompts_s;
    let alone_s = cost.fixed_s + per_sequence_s;
    let asked_s = if slo.itl_ms.is_finite() { slo.itl_ms.max(0.0) / 1e3 } else { f64::MAX };
    let bound_s = if alone_s <= asked_s { asked_s } else { SLOWED_BY * alone_s };
    let within = (bound_s - cost.fixed_s) / per_sequence_s.max(1e-12);
    pays.min(within)
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

#[cfg(test)]
mod tests;
