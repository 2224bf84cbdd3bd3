//! The load at which the objective breaks: the learned engine under Poisson arrivals of the requests that were seen.

use super::curve::quantile;
use super::draw::Draw;
use super::engine::{Engine, Job};
use super::fit::{self, Fitted};
use super::flows::{Seen, Stream};
use super::{Bound, Estimate, Slo};

/// Independent series of arrivals; the knee is the mean of theirs, and they spread as knees do.
const SERIES: u64 = 5;
/// Requests of one series at most, and tokens.
const JOBS: usize = 1500;
const TOKENS: f64 = 60_000.0;
/// Share of them that only fills the engine.
const FILL: f64 = 0.1;
/// Halvings of the range of loads.
const HALVINGS: usize = 9;
const BYTES_PER_KIB: f64 = 1024.0;

/// Learns the engine and finds its knee; None where too little was seen.
pub(super) fn estimate(seen: &Seen, slo: &Slo) -> Option<Estimate> {
    let mut fitted = fit::fit(seen)?;
    let slots = fitted.engine.slots;
    // Where no request was seen to wait for a place, there are more than were taken: up to the next power of two, most
    // likely, and at worst the next request is the first that finds none.
    fitted.engine.slots = slots.or_else(|| fitted.streams_max.saturating_add(1).checked_next_power_of_two());
    let all: Vec<Knee> = (1..=SERIES).map(|series| knee(&fitted, &seen.streams, slo, series)).collect();
    let mean = |of: &dyn Fn(&Knee) -> f64| all.iter().map(of).sum::<f64>() / all.len() as f64;
    let mut others: Vec<f64> = all.iter().map(|knee| knee.per_s).collect();
    // Each half of what was seen, as if it were all.
    let (earlier, later) = seen.streams.split_at(seen.streams.len() / 2);
    for half in [earlier, later] {
        others.push(knee(&fit::recalibrated(&fitted, half, seen), half, slo, 1).per_s);
    }
    if slots.is_none() {
        for slots in [Some(fitted.streams_max), None] {
            let engine = Engine { slots, ..fitted.engine.clone() };
            others.push(knee(&Fitted { engine, ..fitted.clone() }, &seen.streams, slo, 1).per_s);
        }
    }
    let engine = &fitted.engine;
    let shown = slots.unwrap_or(fitted.streams_max).max(fitted.streams_max) as usize;
    let estimate = Estimate {
        slots,
        streams_max: fitted.streams_max,
        itl_ms: (1..=shown).map(|streams| engine.step.at_s(streams) * 1e3).collect(),
        prefill_ms: engine.prompt.fixed_s * 1e3,
        prefill_ms_per_kib: engine.prompt.per_byte_s * BYTES_PER_KIB * 1e3,
        knee_per_s: mean(&|knee| knee.per_s),
        knee_per_s_low: others.iter().copied().fold(f64::INFINITY, f64::min),
        knee_per_s_high: others.iter().copied().fold(0.0, f64::max),
        bound: all.first()?.bound,
        throughput_per_s: mean(&|knee| knee.throughput_per_s),
        error: fitted.error,
        streams: u32::try_from(seen.streams.len()).unwrap_or(u32::MAX),
    };
    let figures = [estimate.knee_per_s, estimate.throughput_per_s, estimate.error, estimate.prefill_ms];
    figures.iter().all(|figure| figure.is_finite()).then_some(estimate)
}

struct Knee {
    per_s: f64,
    throughput_per_s: f64,
    bound: Bound,
}

/// The knee under one series of arrivals. The same series at every load, only denser, so that the halving finds one.
fn knee(fitted: &Fitted, streams: &[Stream], slo: &Slo, series: u64) -> Knee {
    let mut jobs = arrivals(streams, series);
    let gaps_s: Vec<f64> = jobs.iter().map(|job| job.arrive_s).collect();
    jobs.iter_mut().for_each(|job| job.arrive_s = 0.0);
    let end_s = fitted.engine.run(&jobs, &fitted.jitter).end_s;
    let throughput_per_s = if end_s > 0.0 { jobs.len() as f64 / end_s } else { 0.0 };
    let (mut low, mut high, mut bound) = (0.0, throughput_per_s, Bound::Throughput);
    for _ in 0..HALVINGS {
        let load = (low + high) / 2.0;
        for (job, at_s) in jobs.iter_mut().zip(&gaps_s) {
            job.arrive_s = at_s / load.max(1e-9);
        }
        match broken(fitted, &jobs, slo) {
            Some(by) => (high, bound) = (load, by),
            None => low = load,
        }
    }
    Knee { per_s: (low + high) / 2.0, throughput_per_s, bound }
}

/// Requests of the seen kind, as Poisson arrivals at one a second.
fn arrivals(streams: &[Stream], series: u64) -> Vec<Job> {
    let kinds = fit::jobs(streams);
    let tokens = kinds.iter().map(|job| f64::from(job.tokens)).sum::<f64>() / kinds.len().max(1) as f64;
    let count = ((TOKENS / tokens.max(1.0)) as usize).clamp(200, JOBS);
    let mut draw = Draw::new(series);
    let mut at_s = 0.0;
    let mut job = || {
        at_s += draw.exponential();
        Job { arrive_s: at_s, ..kinds[draw.below(kinds.len())] }
    };
    if kinds.is_empty() { Vec::new() } else { (0..count).map(|_| job()).collect() }
}

/// Which part of the objective breaks under these arrivals, if one does.
fn broken(fitted: &Fitted, jobs: &[Job], slo: &Slo) -> Option<Bound> {
    let mut run = fitted.engine.run(jobs, &fitted.jitter);
    let fill = (FILL * jobs.len() as f64) as usize;
    let mut ttft_s: Vec<f64> = run.served.iter().skip(fill).map(|served| served.ttft_s).collect();
    if quantile(&mut ttft_s, slo.quantile) * 1e3 > slo.ttft_ms {
        return Some(Bound::Ttft);
    }
    (quantile(&mut run.gaps_s, slo.quantile) * 1e3 > slo.itl_ms).then_some(Bound::Itl)
}
