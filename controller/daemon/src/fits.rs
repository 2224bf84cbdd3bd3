//! The fits of forecasts, done beside the loop: one at a time on a blocking thread, and resting for far longer than it
//! works, so that however many models are due no more than a small part of one core goes into them.

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

#[cfg(test)]
mod tests {
    use super::*;
    use controller_core::snapshot::{Demand, ModelView, NodeView, Snapshot};
    use controller_core::tick;
    use std::collections::BTreeMap;

    fn snapshot(now_s: u64, arrivals_total: u64) -> Snapshot {
        let now_ns = now_s * 1_000_000_000;
        let demand = Demand { observed_at_ns: now_ns, arrivals_total, ..Demand::default() };
        let view = ModelView { revision: "r".into(), instance_bytes: 1, demand, cold_start_ms: vec![] };
        Snapshot {
            now_ns,
            epoch: 1,
            node: NodeView { observed_at_ns: now_ns, cores: vec![], cores_per_instance: 1, memory_budget_bytes: 0 },
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
}
