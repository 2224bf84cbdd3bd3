//! What is expected of each model: the estimator that reacts at once, beside the learned forecast that knows how sure
//! it is.
//!
//! Both are fed the same deltas. Demand is planned for at each rank of the higher of the two: a burst shows in the fast
//! one within a tick, and the calibrated quantiles of the learned one hold the rest of the time. How long to hold an
//! idle instance is asked of the gaps between arrivals where there have been many as long as this one, and of the rate
//! at which silences end where there have not.
//!
//! Learning is bounded in each tick, in bins and in levels over all models; the fits are due work that somebody else
//! does between ticks (see [`State::refit_due`]).

use crate::burst::Bursts;
use crate::forecast::{ArrivalEstimator, Delta, Forecast};
use crate::silence::Silences;
use crate::snapshot::{Demand, ModelName, Snapshot};
use crate::state::{ModelState, State};
use crate::{NS_PER_S, Nanos, after};
use controller_forecast::{Arrived, IdleTimes, Level, Signals};
pub use controller_forecast::{Predictor, Reading, Refit};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Bound;

/// Bins that one tick learns from, over all models: some ten milliseconds.
const BINS_AT_ONCE: usize = 256;
/// Models that may have bins of one width: some hundred megabytes for all widths.
const MODELS_WITH_LEVEL: usize = 256;
/// Bins from which a model is known well enough to lend what it knows.
const LENDING_BINS: u64 = 300;
/// Gaps that a new model is lent of the fleet's.
const LENT_GAPS: f64 = 1.0;
/// Gaps longer than the silence so far that weigh as much as the rate at which silences end.
const TRUSTED_GAPS: f64 = 10.0;
/// Widths of bins that are learned from. The narrowest is of a second: nine tenths of the work for horizons at which no
/// plan is made, since what the fast estimator says holds there.
const WIDTHS: std::ops::Range<usize> = 1..Predictor::WIDTHS;
/// Load is a rate over no less than this, s: what is narrower, queues and batches take up.
pub const AVERAGED_S: f64 = 10.0;
/// What stands against a model is bounded, requests.
const MOST_OWED: f64 = 1e6;
/// What the record of stated quantiles keeps of its past at each outcome: about 200 of them.
const KEPT: f64 = 0.995;

/// What is learned of one model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Expectation {
    predictor: Predictor,
    /// It has been given what other models know.
    begun: bool,
    /// Shares of requests that were counted here and turned out to be other models': 0 or less.
    owed: f64,
    record: Record,
    /// Turns of conversations that were counted so far.
    #[serde(default)]
    turns_seen: u64,
    #[serde(default)]
    pub(crate) bursts: Bursts,
    #[serde(default)]
    pub(crate) silences: Silences,
}

/// How often the 0.9 quantile that the plan went by held.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Record {
    open: Option<Stated>,
    outcomes: f64,
    within: f64,
}

/// A quantile that was stated of the rate within a time that is not over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Stated {
    from_ns: Nanos,
    due_ns: Nanos,
    per_s: f64,
    arrived: f64,
}

/// Whose turn it is where not all models can be attended to at once.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Rota {
    digested: ModelName,
    fitted: ModelName,
}

fn seconds(at_ns: Nanos) -> f64 {
    at_ns as f64 / NS_PER_S as f64
}

/// Takes in what arrived for all models, and learns from it within bounds.
pub(crate) fn learn(state: &mut State, snapshot: &Snapshot) {
    lend_gaps(&mut state.models);
    let mut wanting = false;
    for (name, view) in &snapshot.models {
        let Some(model) = state.models.get_mut(name) else { continue };
        if let Some(delta) = model.arrivals.observe(snapshot.now_ns, &view.demand) {
            model.expected.take(&delta, model.arrivals.burst());
            model.expected.take_turns(&view.demand);
        }
        wanting |= WIDTHS.clone().any(|width| model.expected.predictor.wants_level(width));
    }
    if wanting {
        grow(&mut state.models);
    }
    digest(&mut state.models, &mut state.rota.digested);
}

/// A model that is new begins with what gaps are like at the others.
fn lend_gaps(models: &mut BTreeMap<ModelName, ModelState>) {
    if models.values().all(|model| model.expected.begun) {
        return;
    }
    let known = models.values().filter(|model| model.expected.begun);
    let lent = IdleTimes::of_fleet(known.map(|model| model.expected.predictor.idle_times()), LENT_GAPS);
    for model in models.values_mut().filter(|model| !model.expected.begun) {
        model.expected.begun = true;
        *model.expected.predictor.idle_times_mut() = lent.clone();
    }
}

/// Gives bins to models that have become busy enough, as far as there is room, beginning with the errors of the model
/// that is known best.
fn grow(models: &mut BTreeMap<ModelName, ModelState>) {
    for width in WIDTHS {
        let levels = || models.values().filter_map(|model| model.expected.predictor.level(width));
        let room = MODELS_WITH_LEVEL.saturating_sub(levels().count());
        let best = levels().max_by_key(|level| level.bins()).filter(|level| level.bins() >= LENDING_BINS);
        let lent: Option<Level> = best.map(Level::borrowed);
        let wanting = models.values_mut().filter(|model| model.expected.predictor.wants_level(width));
        for model in wanting.take(room) {
            model.expected.predictor.grow(width, lent.as_ref());
        }
    }
}

/// Learns from bins that are full. Where there are too many for one tick, the next one goes on from there.
fn digest(models: &mut BTreeMap<ModelName, ModelState>, last: &mut ModelName) {
    let from = last.clone();
    let mut left = BINS_AT_ONCE;
    let after = (Bound::Excluded(from.as_str()), Bound::Unbounded);
    let before = (Bound::Unbounded, Bound::Included(from.as_str()));
    for range in [after, before] {
        for (name, model) in models.range_mut::<str, _>(range) {
            left -= model.expected.predictor.digest(left);
            if left == 0 {
                last.clone_from(name);
                return;
            }
        }
    }
}

impl Expectation {
    fn take(&mut self, delta: &Delta, burst: Option<(f64, f64)>) {
        let net = self.owed + delta.requests;
        self.owed = net.clamp(-MOST_OWED, 0.0);
        let requests = net.max(0.0);
        let arrived = Arrived {
            requests,
            prefill_tokens: delta.prompt_tokens,
            decode_tokens: delta.output_tokens,
            signals: Signals { connections_per_s: delta.connections_per_s, backlog: delta.backlog },
        };
        self.predictor.take(seconds(delta.at_ns), arrived);
        self.bursts.take(delta.at_ns, requests, burst);
        self.silences.take(delta.at_ns, requests);
        if let Some(open) = self.record.open.as_mut().filter(|open| delta.at_ns > open.from_ns) {
            open.arrived += requests;
        }
    }

    /// Turns that were not known. Totals that fell are those of a gateway that began anew.
    fn take_turns(&mut self, demand: &Demand) {
        let before = if demand.turns_total < self.turns_seen { 0 } else { self.turns_seen };
        let fresh = usize::try_from(demand.turns_total - before).unwrap_or(usize::MAX);
        self.turns_seen = demand.turns_total;
        let known = demand.turns.len().saturating_sub(fresh);
        for turn in &demand.turns[known..] {
            self.predictor.turn(turn.session, seconds(turn.at_ns));
        }
    }

    /// The forecast at a horizon. `silent_s` is for how long nothing has been asked of the first instance.
    pub(crate) fn forecast(
        &self,
        arrivals: &ArrivalEstimator,
        horizon_s: f64,
        silent_s: f64,
        now_ns: Nanos,
    ) -> Forecast {
        let learned = |ahead_s, ranks| self.predictor.rate_quantiles(ahead_s, AVERAGED_S, ranks);
        let mut forecast = arrivals.forecast(horizon_s, self.bursts.left(), learned);
        forecast.hazard_per_s = self.silences.hazard_per_s(silent_s);
        let now_s = seconds(now_ns);
        let (idle, idle_s) = (self.predictor.idle_times(), self.predictor.silent_s(now_s));
        let gaps = idle.longer_gaps(idle_s);
        let trust = gaps / (gaps + TRUSTED_GAPS);
        if trust > 1e-3 {
            let paid_back = self.predictor.payback_per_s(now_s, 0.0).max(idle.latest_payback_per_s(idle_s));
            forecast.hazard_per_s += trust * (paid_back - forecast.hazard_per_s);
            forecast.ahead_per_s = trust * idle.ahead_per_s(idle_s, horizon_s);
        }
        // Somebody who was answered lately may be about to ask again, however rare requests are.
        forecast.hazard_per_s = forecast.hazard_per_s.max(self.predictor.turns_per_s(now_s, 0.0));
        forecast.ahead_per_s = forecast.ahead_per_s.max(self.predictor.turns_per_s(now_s, horizon_s));
        forecast
    }

    /// Keeps what was stated of a time to come until that time is over. One statement is open at a time.
    pub(crate) fn record(&mut self, per_s: f64, horizon_s: f64, now_ns: Nanos) {
        let record = &mut self.record;
        if let Some(open) = record.open.filter(|open| now_ns >= open.due_ns) {
            let over_s = seconds(now_ns.saturating_sub(open.from_ns));
            // Also where nothing was expected and nothing came: to leave that out would choose by the outcome.
            if over_s > 0.0 {
                record.outcomes = KEPT * record.outcomes + 1.0;
                record.within = KEPT * record.within + f64::from(open.arrived / over_s <= open.per_s);
            }
            record.open = None;
        }
        if record.open.is_none() {
            let horizon_s = horizon_s.max(AVERAGED_S);
            let (from_ns, due_ns) = (after(now_ns, horizon_s - AVERAGED_S), after(now_ns, horizon_s));
            record.open = Some(Stated { from_ns, due_ns, per_s, arrived: 0.0 });
        }
    }

    /// Share of outcomes at or below the 0.9 quantile that the plan had gone by; none before there are any.
    pub fn coverage(&self) -> Option<f64> {
        let record = &self.record;
        (record.outcomes > 0.0).then(|| record.within / record.outcomes)
    }

    /// The learned forecast at a horizon, in words; none while the model is not busy enough to have one.
    pub fn reading(&self, horizon_s: f64) -> Option<Reading> {
        self.predictor.reading(horizon_s, AVERAGED_S)
    }

    /// The learned forecast.
    pub fn predictor(&self) -> &Predictor {
        &self.predictor
    }

    /// For a new epoch, where counters and clock start anew.
    pub(crate) fn rebase(&mut self, unseen_s: f64) {
        self.predictor.resume(unseen_s);
        self.owed = 0.0;
        self.record.open = None;
        self.bursts.rebase();
        self.silences.rebase();
    }
}

impl State {
    /// A fit that is due, model by model: to be done where nothing waits for it, and given back.
    pub fn refit_due(&mut self) -> Option<(ModelName, Refit)> {
        let last = std::mem::take(&mut self.rota.fitted);
        let after = (Bound::Excluded(last.as_str()), Bound::Unbounded);
        let before = (Bound::Unbounded, Bound::Included(last.as_str()));
        for range in [after, before] {
            for (name, model) in self.models.range_mut::<str, _>(range) {
                if let Some(refit) = model.expected.predictor.refit_due() {
                    self.rota.fitted.clone_from(name);
                    return Some((name.clone(), refit));
                }
            }
        }
        None
    }

    /// Takes over what was fitted, if the model is still there.
    pub fn refitted(&mut self, model: &str, fitted: Refit) {
        if let Some(model) = self.models.get_mut(model) {
            model.expected.predictor.refitted(fitted);
        }
    }

    /// The forecast of a model that is planned for at a horizon; none before its first tick.
    pub fn forecast(&self, model: &str, horizon_s: f64) -> Option<Forecast> {
        let model = self.models.get(model)?;
        // For how long the model has been silent bears on the next arrival's probability, not on rates.
        Some(model.expected.forecast(&model.arrivals, horizon_s, 0.0, self.last_now_ns))
    }

    /// What is expected of a model; none before its first tick.
    pub fn expected(&self, model: &str) -> Option<&Expectation> {
        self.models.get(model).map(|model| &model.expected)
    }

    /// What an earlier controller had learned of a model, which has not been looked at for so long. For a state that is
    /// new: what it has learned itself is lost.
    pub fn restore(&mut self, model: &str, mut predictor: Predictor, unseen_s: f64) {
        predictor.resume(unseen_s);
        let expected = &mut self.models.entry(model.to_owned()).or_default().expected;
        (expected.predictor, expected.begun) = (predictor, true);
    }

    /// What of each model's learning is worth storing, of the models after one name in order, as much as is asked for.
    pub fn worth_storing(&self, after: &str, most: usize) -> Vec<(ModelName, Predictor)> {
        let later = self.models.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
        later.take(most).map(|(name, model)| (name.clone(), model.expected.predictor.kept())).collect()
    }
}
