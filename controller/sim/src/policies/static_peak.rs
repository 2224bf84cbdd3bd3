//! A fixed count for the busiest minute, known beforehand: what is bought when nobody scales.

use super::{Knobs, oracle};
use crate::NS_PER_S;
use crate::fleet::{Config, Policy, Tick, View, Work};

/// It only looks again to replace what died, ns.
const LOOK_NS: u64 = 10 * NS_PER_S;
/// How full an instance is in that minute.
const FILL: f64 = 0.7;

pub(super) struct StaticPeak {
    counts: Vec<u32>,
}

impl StaticPeak {
    pub(super) fn new(knobs: Knobs, config: &Config, work: Work<'_>) -> Self {
        let fill = knobs.fill.unwrap_or(FILL);
        let levels = oracle::levels(config, work, fill);
        let peak = |levels: &Vec<(u64, u32)>| levels.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
        Self { counts: levels.iter().map(peak).collect() }
    }
}

impl Policy for StaticPeak {
    fn name(&self) -> &'static str {
        "static-peak"
    }

    fn tick(&mut self, view: &View<'_>) -> Tick {
        let counts = self.counts.iter().enumerate().map(|(model, count)| (model as u32, *count));
        Tick::counts(counts.collect(), view.now_ns + LOOK_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Arrival;

    #[test]
    fn it_is_sized_for_the_busiest_moment() {
        let config = Config::new(100, 10.0);
        let names = ["model".to_owned()];
        let arrival = |at_s: u64| Arrival {
            at_ns: at_s * NS_PER_S,
            prompt_tokens: 100,
            output_tokens: 200,
            ..Arrival::default()
        };
        // 40 at once where an instance is to have 8, once; and one by one before.
        let mut arrivals: Vec<Arrival> = (0..10).map(|at| arrival(at * 60)).collect();
        arrivals.extend((0..40).map(|_| arrival(900)));
        let work = Work { models: &names, arrivals: &arrivals, duration_ns: 1000 * NS_PER_S };
        let policy = StaticPeak::new(Knobs { fill: Some(0.5), keep: None }, &config, work);
        assert_eq!(policy.counts, [5]);
    }
}
