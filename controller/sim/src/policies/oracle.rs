//! An oracle: it knows every arrival and its lengths, pays the same cold starts, and minimises the same cost.
//!
//! The instances that a model needs over time follow from the requests that will be there; each further one is a layer that is wanted in
//! some stretches and not in others. Starting costs a device for as long as a cold start takes, so a layer is kept through
//! a pause that is shorter than that, and is else gone and back in time: with all known, each layer's choice is exact.

use super::Knobs;
use crate::NS_PER_S;
use crate::fleet::{Config, Policy, Tick, View, Work};
use crate::ns;

/// It looks again at the latest after this, to replace what died, ns.
const LOOK_NS: u64 = 10 * NS_PER_S;
/// How full an instance is to be.
const FILL: f64 = 0.6;

pub(super) struct Oracle {
    /// Of each model: from when on how many.
    plans: Vec<Vec<(u64, u32)>>,
}

impl Oracle {
    pub(super) fn new(knobs: Knobs, config: &Config, work: Work<'_>) -> Self {
        let cold_ns = ns(config.cold_start_s());
        // Most starts take no longer than the median and two standard deviations of the process's part, with another
        // load on the same disk.
        let process_s = config.cold_start.process_s * (1.0 + 2.0 * config.cold_start.spread);
        let lead_ns = ns(process_s + 2.0 * (config.cold_start_s() - config.cold_start.process_s));
        let pause_ns = (cold_ns as f64 * knobs.keep.unwrap_or(1.0)) as u64;
        let levels = levels(config, work, knobs.fill.unwrap_or(FILL));
        Self { plans: levels.iter().map(|levels| plan(levels, lead_ns, pause_ns)).collect() }
    }
}

impl Policy for Oracle {
    fn name(&self) -> &'static str {
        "oracle"
    }

    fn tick(&mut self, view: &View<'_>) -> Tick {
        let mut next_ns = view.now_ns + LOOK_NS;
        let mut counts = Vec::with_capacity(view.models.len());
        for (model, plan) in self.plans.iter().enumerate() {
            let at = plan.partition_point(|(from_ns, _)| *from_ns <= view.now_ns);
            let count = at.checked_sub(1).map_or(0, |at| plan[at].1);
            // What is there is never left without an instance, whatever the plan thought.
            counts.push((model as u32, count.max(u32::from(view.models[model].load() > 0))));
            if let Some((from_ns, _)) = plan.get(at) {
                next_ns = next_ns.min(*from_ns);
            }
        }
        Tick::counts(counts, next_ns)
    }

    fn eager(&self) -> bool {
        true
    }
}

/// How many instances each model's requests take over time, when each is filled to a share of its batch: steps of
/// (from, count). In a batch of `B` a request stays for its steps and for its share of everybody's prompts.
pub(super) fn levels(config: &Config, work: Work<'_>, fill: f64) -> Vec<Vec<(u64, u32)>> {
    let engine = &config.engine;
    let batch = (fill * f64::from(engine.max_batch)).max(1.0);
    let mut changes: Vec<Vec<(u64, i64)>> = vec![Vec::new(); work.models.len()];
    for arrival in work.arrivals {
        let steps_s = engine.itl_ms(batch as u32) * f64::from(arrival.output_tokens) / 1e3;
        let prompts_s = batch * engine.prefill_ms_per_token * f64::from(arrival.prompt_tokens) / 1e3;
        let changes = &mut changes[arrival.model as usize];
        changes.push((arrival.at_ns, 1));
        changes.push((arrival.at_ns + ns(steps_s + prompts_s), -1));
    }
    let steps = |mut changes: Vec<(u64, i64)>| {
        changes.sort_unstable();
        let (mut present, mut steps) = (0i64, Vec::new());
        for (at_ns, change) in changes {
            present += change;
            let count = (present.max(0) as f64 / batch).ceil() as u32;
            match steps.last_mut() {
                Some((last_ns, last)) if *last_ns == at_ns => *last = count,
                Some((_, last)) if *last == count => {}
                _ => steps.push((at_ns, count)),
            }
        }
        steps
    };
    changes.into_iter().map(steps).collect()
}

/// The counts to have: each layer begins a cold start early and lasts through pauses that are no longer than one.
fn plan(levels: &[(u64, u32)], lead_ns: u64, pause_ns: u64) -> Vec<(u64, u32)> {
    let most = levels.iter().map(|(_, count)| *count).max().unwrap_or(0);
    let mut changes: Vec<(u64, i64)> = Vec::new();
    let mut open: Vec<Option<(u64, Option<u64>)>> = vec![None; most as usize];
    for (at_ns, count) in levels {
        for (layer, stretch) in open.iter_mut().enumerate() {
            let wanted = (layer as u32) < *count;
            *stretch = match (*stretch, wanted) {
                (None, true) => Some((*at_ns, None)),
                (Some((from_ns, Some(until_ns))), true) if at_ns - until_ns > pause_ns + lead_ns => {
                    changes.extend([(from_ns.saturating_sub(lead_ns), 1), (until_ns, -1)]);
                    Some((*at_ns, None))
                }
                (Some((from_ns, _)), true) => Some((from_ns, None)),
                (Some((from_ns, None)), false) => Some((from_ns, Some(*at_ns))),
                (other, false) => other,
            };
        }
    }
    for (from_ns, until_ns) in open.into_iter().flatten() {
        changes.extend([(from_ns.saturating_sub(lead_ns), 1), (until_ns.unwrap_or(u64::MAX), -1)]);
    }
    changes.sort_unstable();
    let (mut count, mut plan) = (0i64, Vec::<(u64, u32)>::new());
    for (at_ns, change) in changes {
        count += change;
        match plan.last_mut() {
            Some((last_ns, last)) if *last_ns == at_ns => *last = count as u32,
            _ => plan.push((at_ns, count as u32)),
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_begin_early_and_last_through_short_pauses() {
        let s = |s: u64| s * NS_PER_S;
        let levels = [(s(100), 1), (s(110), 2), (s(120), 1), (s(125), 2), (s(130), 0), (s(200), 1), (s(201), 0)];
        let plan = plan(&levels, s(10), s(0));
        // The second layer's pause of 5 s is shorter than the lead; the first one's of 70 s is not.
        assert_eq!(plan, [(s(90), 1), (s(100), 2), (s(130), 0), (s(190), 1), (s(201), 0)]);
    }
}
