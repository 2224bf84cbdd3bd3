//! What forecasts cost beside the loop: their fits and their storing.
//!
//! Fits are done one at a time on a blocking thread that rests for far longer than it works, so that however many models
//! are due no more than a small part of one core goes into them. What has been learned is stored a few models at a time,
//! in turn, so that a busy fleet writes no more than a few hundred kilobytes a minute.

use crate::registry::HistoryWriter;
use controller_core::State;
use controller_core::expect::Refit;
use controller_core::snapshot::ModelName;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// After a fit there is none for so many times as long as it took.
const REST: u32 = 20;

/// The fit that is being done, if one is.
#[derive(Default)]
pub(crate) struct Fits {
    running: Option<JoinHandle<(ModelName, Refit, Duration)>>,
    not_before: Option<Instant>,
}

impl Fits {
    /// Gives back what has been fitted and begins with what is due next. Never waits. Must be called inside a tokio
    /// runtime.
    pub(crate) async fn turn(&mut self, state: &mut State) {
        if let Some(running) = self.running.take_if(|running| running.is_finished()) {
            // A fit that panicked is a fit that did not happen: the coefficients stay as they were.
            match running.await {
                Ok((model, fitted, took)) => {
                    state.refitted(&model, fitted);
                    self.not_before = Some(Instant::now() + took * REST);
                }
                Err(error) => tracing::error!(%error, "a forecast could not be fitted"),
            }
        }
        let rests = self.not_before.is_some_and(|at| Instant::now() < at);
        if self.running.is_some() || rests {
            return;
        }
        if let Some((model, refit)) = state.refit_due() {
            self.running = Some(tokio::task::spawn_blocking(move || {
                let began = Instant::now();
                (model, refit.fit(), began.elapsed())
            }));
        }
    }
}

/// Time between two storings of a few models.
const KEEP_EVERY: Duration = Duration::from_secs(60);
/// Models that are stored at a time: one that is busy takes some hundred kilobytes, and most are not.
const KEPT_AT_ONCE: usize = 4;
/// Models that are stored at the end.
const KEPT_AT_END: usize = 64;

/// Whose turn it is to be stored, and when.
#[derive(Default)]
pub(crate) struct Keeping {
    last: ModelName,
    due: Option<Instant>,
}

impl Keeping {
    /// Queues what the next few models have learned, once a minute.
    pub(crate) fn turn(&mut self, state: &State, history: &mut HistoryWriter) {
        let now = Instant::now();
        if self.due.is_some_and(|due| now < due) {
            return;
        }
        let first = self.due.replace(now + KEEP_EVERY).is_none();
        if !first {
            self.store(state, history, KEPT_AT_ONCE);
        }
    }

    /// Queues what has been learned of those whose turn is next, as many as a stop has time for.
    pub(crate) fn end(&mut self, state: &State, history: &mut HistoryWriter) {
        self.store(state, history, KEPT_AT_END);
    }

    fn store(&mut self, state: &State, history: &mut HistoryWriter, most: usize) {
        let next = state.worth_storing(&self.last, most);
        // At the end of the list it begins anew.
        self.last = if next.len() < most { ModelName::new() } else { next[most - 1].0.clone() };
        for (model, predictor) in next {
            history.forecast(&model, predictor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;
    use controller_core::snapshot::{Demand, ModelView, NodeView, Snapshot};
    use controller_core::tick;
    use std::collections::BTreeMap;

    fn snapshot(now_s: u64, arrivals_total: u64) -> Snapshot {
        let now_ns = now_s * 1_000_000_000;
        let demand = Demand { observed_at_ns: now_ns, arrivals_total, ..Demand::default() };
        let view = ModelView { revision: "r".into(), instance_bytes: 1, demand, cold_start_ms: vec![], weights: None };
        Snapshot {
            now_ns,
            epoch: 1,
            node: NodeView {
                observed_at_ns: now_ns,
                cores: vec![],
                cores_per_instance: 1,
                memory_budget_bytes: 0,
                weights: Default::default(),
            },
            models: BTreeMap::from([("m".to_owned(), view)]),
            instances: BTreeMap::new(),
        }
    }

    #[tokio::test]
    async fn what_is_due_is_fitted_beside_the_loop_and_given_back() {
        let (mut state, mut fits) = (State::default(), Fits::default());
        for now_s in 1..=600 {
            tick(&mut state, &snapshot(now_s, 5 * now_s + now_s % 7));
        }
        let before = state.clone();
        fits.turn(&mut state).await;
        assert!(fits.running.is_some(), "forty bins of ten seconds make a fit due");
        for _ in 0..1_000 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            fits.turn(&mut state).await;
            if fits.not_before.is_some() {
                break;
            }
        }
        assert!(state.refit_due().is_none() && state != before);
    }

    #[test]
    fn what_was_learned_is_stored_small_and_goes_on_after_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        drop(Registry::open(folder.path()).expect("a database"));
        let mut state = State::default();
        for now_s in 1..=3_000 {
            tick(&mut state, &snapshot(now_s, 5 * now_s + now_s % 7));
        }
        let mut history = HistoryWriter::start(folder.path()).expect("a writer");
        let mut keeping = Keeping::default();
        keeping.turn(&state, &mut history);
        keeping.end(&state, &mut history);
        drop(history);
        let kept = Registry::open(folder.path()).expect("a database").forecasts().expect("what was stored");
        assert_eq!(kept.len(), 1);
        let bytes = serde_json::to_string(&kept[0].predictor).expect("plain data").len();
        assert!(bytes < 1_000_000, "{bytes} bytes of one busy model");
        let mut next = State::default();
        for one in kept {
            next.restore(&one.model, one.predictor, one.unseen_s);
        }
        let rate = |state: &State| state.forecast("m", 10.0).map_or(0.0, |forecast| forecast.rate_quantile(0.9));
        let (before, after) = (rate(&state), rate(&next));
        assert!((before - after).abs() < 0.5 && after > 4.0, "{before} before, {after} after");
    }
}
