//! For every policy, which attainment costs how many device-seconds.
//!
//! Each policy gets the same trials. They are judged on the first part of the work; those that no other trial of the policy beats in
//! both respects are frozen, and measured on the rest. What is compared is the cost at equal attainment: how much of the gap between
//! the best baseline and the oracle ours closes.

use crate::fleet::{Config, Work, run};
use crate::policies::{KINDS, Kind, Knobs, trials};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Attainments at which costs are compared.
const LEVELS: [f64; 8] = [0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99];

/// How a study is done.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Share of the work that policies are tuned on.
    pub tune_share: f64,
    /// Trials of each policy.
    pub trials: usize,
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { tune_share: 0.4, trials: trials().len(), threads: 2 }
    }
}

/// One run on the part that was held out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    pub knobs: Knobs,
    pub attainment: f64,
    pub device_s: f64,
    pub ttft_ms_p99: f64,
}

/// A policy's frozen trials, cheapest first, none of them beaten in both respects by another.
#[derive(Clone, Debug, Serialize)]
pub struct Front {
    pub policy: Kind,
    pub points: Vec<Point>,
}

/// Costs at one attainment, device-seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Gap {
    pub attainment: f64,
    pub ours: f64,
    pub best_baseline: f64,
    pub baseline: Kind,
    pub oracle: f64,
    /// Share of the gap between baseline and oracle that ours closes; 1 is the oracle's cost, below 0 is worse than the baseline.
    pub closed: f64,
}

/// All fronts over one piece of work.
#[derive(Clone, Debug, Serialize)]
pub struct Study {
    pub requests: usize,
    pub fronts: Vec<Front>,
    pub gaps: Vec<Gap>,
    /// Mean share of the gap over the attainments that ours, a baseline and the oracle all reach; none where there is none.
    pub closed_mean: Option<f64>,
    /// Baselines that are cheaper than ours at every attainment that both reach.
    pub dominated_by: Vec<Kind>,
}

/// Tunes, freezes and measures every policy; tells how many of all runs are done.
pub fn fronts(config: &Config, work: Work<'_>, options: Options, progress: &(dyn Fn(usize, usize) + Sync)) -> Study {
    let split_ns = (work.duration_ns as f64 * options.tune_share.clamp(0.1, 0.9)) as u64;
    let split = work.arrivals.partition_point(|arrival| arrival.at_ns < split_ns);
    let first = Work { arrivals: &work.arrivals[..split], duration_ns: split_ns, ..work };
    let tuning: Vec<(Kind, Knobs)> =
        KINDS.iter().flat_map(|kind| trials().into_iter().take(options.trials).map(|knobs| (*kind, knobs))).collect();
    let all = tuning.len() * 2;
    let tuned = measured(config, first, &tuning, options.threads, &|done| progress(done, all));
    let frozen: Vec<(Kind, Knobs)> = by_policy(tuned)
        .into_iter()
        .flat_map(|front| front.points.into_iter().map(move |p| (front.policy, p.knobs)))
        .collect();
    let all = tuning.len() + frozen.len();
    let held_out = Config { measure_from_s: split_ns as f64 / 1e9, ..config.clone() };
    let points = measured(&held_out, work, &frozen, options.threads, &|done| progress(tuning.len() + done, all));
    let fronts = by_policy(points);
    let gaps: Vec<Gap> = LEVELS.iter().filter_map(|level| gap(&fronts, *level)).collect();
    let closed_mean = (!gaps.is_empty()).then(|| gaps.iter().map(|gap| gap.closed).sum::<f64>() / gaps.len() as f64);
    let dominated_by = KINDS.into_iter().filter(|kind| baseline(*kind) && dominates(&fronts, *kind)).collect();
    Study { requests: work.arrivals.len(), fronts, gaps, closed_mean, dominated_by }
}

fn baseline(kind: Kind) -> bool {
    !matches!(kind, Kind::Foreshock | Kind::Oracle)
}

/// Runs each of these, on so many threads, in whatever order; the outcome is in theirs.
fn measured(
    config: &Config,
    work: Work<'_>,
    runs: &[(Kind, Knobs)],
    threads: usize,
    progress: &(dyn Fn(usize) + Sync),
) -> Vec<(Kind, Point)> {
    let next = AtomicUsize::new(0);
    let points: Mutex<BTreeMap<usize, (Kind, Point)>> = Mutex::new(BTreeMap::new());
    let work_on = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some((kind, knobs)) = runs.get(at).copied() else { return };
            let outcome = run(config, work, kind.build(knobs, config, work).as_mut());
            // Broken invariants are counted in a run that is not strict, so there is always an outcome.
            let Ok(report) = outcome else { continue };
            let ttft_ms_p99 = crate::fleet::quantile(&report.ttft_ms, 0.99);
            let point = Point { knobs, attainment: report.attainment(), device_s: report.device_s, ttft_ms_p99 };
            if let Ok(mut points) = points.lock() {
                points.insert(at, (kind, point));
                progress(points.len());
            }
        }
    };
    std::thread::scope(|scope| (0..threads.max(1)).for_each(|_| drop(scope.spawn(work_on))));
    points.into_inner().map(|points| points.into_values().collect()).unwrap_or_default()
}

/// Each policy's points that no other of it beats.
fn by_policy(points: Vec<(Kind, Point)>) -> Vec<Front> {
    let front = |policy: Kind| {
        let mut own: Vec<Point> = points.iter().filter(|(kind, _)| *kind == policy).map(|(_, point)| *point).collect();
        own.sort_by(|a, b| a.device_s.total_cmp(&b.device_s).then(b.attainment.total_cmp(&a.attainment)));
        let mut best = f64::NEG_INFINITY;
        own.retain(|point| {
            let better = point.attainment > best;
            best = best.max(point.attainment);
            better
        });
        Front { policy, points: own }
    };
    KINDS.into_iter().map(front).collect()
}

/// The least device time of a front at an attainment or above.
fn cost_at(fronts: &[Front], policy: Kind, attainment: f64) -> Option<f64> {
    let front = fronts.iter().find(|front| front.policy == policy)?;
    front.points.iter().filter(|point| point.attainment >= attainment).map(|p| p.device_s).min_by(f64::total_cmp)
}

fn gap(fronts: &[Front], attainment: f64) -> Option<Gap> {
    let ours = cost_at(fronts, Kind::Foreshock, attainment)?;
    let oracle = cost_at(fronts, Kind::Oracle, attainment)?;
    let costs = KINDS.into_iter().filter(|kind| baseline(*kind));
    let (best_baseline, baseline) =
        costs.filter_map(|kind| Some((cost_at(fronts, kind, attainment)?, kind))).min_by(|a, b| a.0.total_cmp(&b.0))?;
    // Where the best baseline is as cheap as the oracle there is no gap to close.
    let between = best_baseline - oracle;
    (between > 0.01 * oracle).then(|| Gap {
        attainment,
        ours,
        best_baseline,
        baseline,
        oracle,
        closed: (best_baseline - ours) / between,
    })
}

fn dominates(fronts: &[Front], kind: Kind) -> bool {
    let both: Vec<(f64, f64)> = LEVELS
        .iter()
        .filter_map(|level| Some((cost_at(fronts, kind, *level)?, cost_at(fronts, Kind::Foreshock, *level)?)))
        .collect();
    !both.is_empty() && both.iter().all(|(theirs, ours)| theirs < ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn front(policy: Kind, points: &[(f64, f64)]) -> Vec<(Kind, Point)> {
        let point = |(attainment, device_s): &(f64, f64)| Point {
            knobs: Knobs::default(),
            attainment: *attainment,
            device_s: *device_s,
            ttft_ms_p99: 0.0,
        };
        points.iter().map(|at| (policy, point(at))).collect()
    }

    #[test]
    fn the_gap_is_between_the_best_baseline_and_the_oracle() {
        let mut points = front(Kind::Oracle, &[(0.95, 100.0), (1.0, 110.0)]);
        points.extend(front(Kind::Hpa, &[(0.99, 300.0)]));
        points.extend(front(Kind::Knative, &[(0.96, 200.0), (0.9, 250.0), (1.0, 400.0)]));
        points.extend(front(Kind::Foreshock, &[(0.97, 150.0)]));
        let fronts = by_policy(points);
        let knative = fronts.iter().find(|front| front.policy == Kind::Knative);
        assert_eq!(knative.map(|front| front.points.len()), Some(2));
        let at = |level| gap(&fronts, level).map(|gap| (gap.baseline, gap.closed));
        assert_eq!(at(0.95), Some((Kind::Knative, 0.5)));
        assert_eq!(at(0.97), Some((Kind::Hpa, 150.0 / 190.0)));
        assert_eq!(at(0.99), None);
        assert!(!dominates(&fronts, Kind::Knative) && !dominates(&fronts, Kind::StaticPeak));
    }
}
