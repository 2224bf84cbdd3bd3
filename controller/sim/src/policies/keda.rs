//! KEDA with its defaults over the HPA (its documentation, "ScaledObject specification").
//!
//! Every 30 s it looks whether there is anything to do: then a deployment at zero goes to one, and the HPA takes over. When
//! there has been nothing for 300 s, it goes to zero.

use super::hpa::{SYNC_NS, Scaler, UTILISATION};
use super::{Knobs, kept_ns, target};
use crate::NS_PER_S;
use crate::fleet::{Policy, Tick, View};

const POLL_NS: u64 = 30 * NS_PER_S;
const COOLDOWN_S: f64 = 300.0;
const DOWN_STABILISATION_S: f64 = 300.0;

pub(super) struct Keda {
    knobs: Knobs,
    models: Vec<Scaled>,
    next_poll_ns: u64,
}

#[derive(Clone, Debug, Default)]
struct Scaled {
    hpa: Scaler,
    active_ns: Option<u64>,
    arrivals: u64,
}

impl Keda {
    pub(super) fn new(knobs: Knobs, models: usize) -> Self {
        Self { knobs, models: vec![Scaled::default(); models], next_poll_ns: 0 }
    }
}

impl Policy for Keda {
    fn name(&self) -> &'static str {
        "keda"
    }

    fn tick(&mut self, view: &View<'_>) -> Tick {
        let polls = view.now_ns >= self.next_poll_ns;
        if polls {
            self.next_poll_ns = view.now_ns + POLL_NS;
        }
        let target = target(self.knobs, view, UTILISATION * f64::from(view.max_batch));
        let cooldown_ns = kept_ns(self.knobs, COOLDOWN_S);
        let stabilisation_ns = kept_ns(self.knobs, DOWN_STABILISATION_S);
        let mut counts = Vec::with_capacity(view.models.len());
        for (model, (scaled, sight)) in self.models.iter_mut().zip(view.models).enumerate() {
            let active = sight.load() > 0 || sight.arrivals_total > scaled.arrivals;
            if polls {
                scaled.arrivals = sight.arrivals_total;
                if active {
                    scaled.active_ns = Some(view.now_ns);
                }
            }
            let wanted = if sight.have() > 0 {
                let count = scaled.hpa.decide(view.now_ns, sight, target, stabilisation_ns);
                let cold = scaled.active_ns.is_none_or(|at_ns| view.now_ns.saturating_sub(at_ns) >= cooldown_ns);
                if polls && cold && !active { 0 } else { count }
            } else {
                u32::from(polls && active)
            };
            counts.push((model as u32, wanted));
        }
        Tick::counts(counts, view.now_ns + SYNC_NS)
    }

    fn restart(&mut self) {
        self.models.fill(Scaled::default());
        self.next_poll_ns = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::decided;
    use super::*;
    use crate::fleet::ModelSight;

    #[test]
    fn it_wakes_at_a_poll_and_sleeps_after_the_cooldown() {
        let mut keda = Keda::new(Knobs::default(), 1);
        let sight = |have: u32, held: u32| ModelSight { ready: have, held, arrivals_total: 1, ..ModelSight::default() };
        assert_eq!(decided(&mut keda, 30, &[sight(0, 1)]), [1]);
        // Between two polls nothing wakes it.
        assert_eq!(decided(&mut keda, 45, &[sight(0, 1)]), [0]);
        assert_eq!(decided(&mut keda, 60, &[sight(1, 1)]), [1]);
        assert_eq!(decided(&mut keda, 330, &[sight(1, 0)]), [1]);
        assert_eq!(decided(&mut keda, 360, &[sight(1, 0)]), [0]);
    }
}
