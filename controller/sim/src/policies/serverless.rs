//! ServerlessLLM's autoscaler with its defaults (Fu et al., OSDI 2024).
//!
//! Every second: one instance for each request that is there (target 1). One more at a time; one fewer at a time, as soon as the
//! wish for it has lasted for the keep-alive, which is 0.

use super::{Knobs, target};
use crate::NS_PER_S;
use crate::fleet::{Policy, Tick, View};

const LOOP_NS: u64 = NS_PER_S;
const TARGET: f64 = 1.0;
/// What the keep-alive of 0 is stretched from when it is tuned, s.
const KEEP_ALIVE_UNIT_S: f64 = 20.0;

pub(super) struct ServerlessLlm {
    knobs: Knobs,
    less_since_ns: Vec<Option<u64>>,
}

impl ServerlessLlm {
    pub(super) fn new(knobs: Knobs, models: usize) -> Self {
        Self { knobs, less_since_ns: vec![None; models] }
    }
}

impl Policy for ServerlessLlm {
    fn name(&self) -> &'static str {
        "serverless-llm"
    }

    fn tick(&mut self, view: &View<'_>) -> Tick {
        let target = target(self.knobs, view, TARGET);
        let keep_alive_ns = self.knobs.keep.map_or(0, |keep| crate::ns(keep * KEEP_ALIVE_UNIT_S));
        let mut counts = Vec::with_capacity(view.models.len());
        for (model, (less_since_ns, sight)) in self.less_since_ns.iter_mut().zip(view.models).enumerate() {
            let wanted = (f64::from(sight.load()) / target).ceil() as u32;
            let have = sight.have();
            if wanted >= have {
                *less_since_ns = None;
            }
            let count = if wanted > have {
                have + 1
            } else if wanted < have && view.now_ns - *less_since_ns.get_or_insert(view.now_ns) >= keep_alive_ns {
                have - 1
            } else {
                have
            };
            counts.push((model as u32, count));
        }
        Tick::counts(counts, view.now_ns + LOOP_NS)
    }

    fn restart(&mut self) {
        self.less_since_ns.fill(None);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::decided;
    use super::*;
    use crate::fleet::ModelSight;

    #[test]
    fn one_at_a_time() {
        let mut policy = ServerlessLlm::new(Knobs::default(), 3);
        let sight = |ready: u32, load: u32| ModelSight { ready, in_flight: load, ..ModelSight::default() };
        assert_eq!(decided(&mut policy, 1, &[sight(0, 5), sight(4, 1), sight(2, 2)]), [1, 3, 2]);
        let mut slow = ServerlessLlm::new(Knobs { fill: None, keep: Some(1.0) }, 1);
        assert_eq!(decided(&mut slow, 1, &[sight(1, 0)]), [1]);
        assert_eq!(decided(&mut slow, 21, &[sight(1, 0)]), [0]);
    }
}
