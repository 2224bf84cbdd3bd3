//! Traces made up from a seed: regimes that no recorded trace has, in any length. Arrivals are Poisson processes whose
//! rate varies over time, thinned from their peak rate (Lewis and Shedler, 1979).

use super::{Arrival, Repairs, Trace, length};
use crate::ns;
use crate::random::Random;
use std::f64::consts::TAU;

/// The shape of what is made up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    /// Independent arrivals at a steady rate, 1/s.
    Poisson { rate_per_s: f64 },
    /// A quiet rate, and bursts of many times it that come at random and last for half a minute on average: a Poisson
    /// process whose rate a two-state Markov chain sets.
    Bursty { rate_per_s: f64, times: f64 },
    /// A day compressed or not: the rate swings from a tenth of the peak to the peak and back over the period.
    Diurnal { peak_per_s: f64, period_s: f64 },
    /// A steady rate, and in the middle a crowd that comes within ten seconds and fades away over five minutes.
    FlashCrowd { rate_per_s: f64, times: f64 },
    /// Many models, most of them idle most of the time: Zipf's law shares the rate among them, and each calls in
    /// sessions of a few requests.
    Sparse { models: u32, rate_per_s: f64 },
}

/// Middle lengths of prompt and output, tokens.
const TOKENS: (f64, f64) = (600.0, 150.0);
/// Mean length of a burst and of the quiet between two, s.
const BURST_S: (f64, f64) = (30.0, 240.0);
/// Requests of a session and the mean pause between two of them, s.
const SESSION: (u64, f64) = (6, 15.0);

/// Makes a trace of so many seconds.
pub fn generate(shape: Shape, duration_s: f64, seed: u64) -> Trace {
    let mut random = Random::new(seed).fork(11);
    let mut times: Vec<(f64, u32)> = match shape {
        Shape::Sparse { models, rate_per_s } => sparse(models, rate_per_s, duration_s, &mut random),
        _ => single(shape, duration_s, &mut random).into_iter().map(|at_s| (at_s, 0)).collect(),
    };
    times.sort_by(|a, b| a.0.total_cmp(&b.0));
    let names = match shape {
        Shape::Sparse { models, .. } => names(models.max(1)),
        _ => vec!["model".to_owned()],
    };
    let arrivals = times
        .into_iter()
        .map(|(at_s, model)| Arrival {
            at_ns: ns(at_s),
            model,
            prompt_tokens: length(TOKENS.0, &mut random),
            output_tokens: length(TOKENS.1, &mut random),
            prefix: Box::default(),
        })
        .collect();
    let trace = Trace::of_requests(names, arrivals, Repairs::default());
    Trace { duration_ns: ns(duration_s).max(trace.duration_ns), ..trace }
}

/// Spreads arrivals over many models, most of them sparse, and names these: sessions of a few requests go to one model, which Zipf's
/// law draws.
pub fn split(arrivals: &mut [Arrival], models: u32, seed: u64) -> Vec<String> {
    let mut random = Random::new(seed).fork(13);
    let models = models.max(1);
    let mut below = Vec::with_capacity(models as usize);
    let mut sum = 0.0;
    for rank in 1..=models {
        sum += 1.0 / f64::from(rank);
        below.push(sum);
    }
    let (mut model, mut left) = (0, 0);
    for arrival in arrivals {
        if left == 0 {
            let drawn = random.unit() * sum;
            model = below.partition_point(|other| *other < drawn) as u32;
            left = random.between(1, SESSION.0);
        }
        left -= 1;
        arrival.model = model.min(models - 1);
    }
    names(models)
}

fn names(models: u32) -> Vec<String> {
    (0..models).map(|at| format!("model-{at:05}")).collect()
}

fn single(shape: Shape, duration_s: f64, random: &mut Random) -> Vec<f64> {
    match shape {
        Shape::Poisson { rate_per_s } => thinned(rate_per_s, duration_s, random, |_| 1.0),
        Shape::Diurnal { peak_per_s, period_s } => {
            let rate = |at_s: f64| 0.55 - 0.45 * (TAU * at_s / period_s.max(1.0)).cos();
            thinned(peak_per_s, duration_s, random, rate)
        }
        Shape::FlashCrowd { rate_per_s, times } => {
            let start_s = duration_s / 2.0;
            let crowd = |at_s: f64| match at_s - start_s {
                s if s < 0.0 => 0.0,
                s if s < 10.0 => s / 10.0,
                s => (-(s - 10.0) / 100.0).exp(),
            };
            let rate = |at_s: f64| (1.0 + (times - 1.0) * crowd(at_s)) / times;
            thinned(rate_per_s * times, duration_s, random, rate)
        }
        Shape::Bursty { rate_per_s, times } => {
            let bursts = bursts(duration_s, random);
            let within = |at_s: f64| bursts.iter().any(|(from, until)| (*from..*until).contains(&at_s));
            thinned(rate_per_s * times, duration_s, random, |at_s| if within(at_s) { 1.0 } else { 1.0 / times })
        }
        Shape::Sparse { .. } => Vec::new(),
    }
}

fn bursts(duration_s: f64, random: &mut Random) -> Vec<(f64, f64)> {
    let mut bursts = Vec::new();
    let mut at_s = random.exponential(BURST_S.1);
    while at_s < duration_s {
        let until_s = at_s + random.exponential(BURST_S.0);
        bursts.push((at_s, until_s));
        at_s = until_s + random.exponential(BURST_S.1);
    }
    bursts
}

fn sparse(models: u32, rate_per_s: f64, duration_s: f64, random: &mut Random) -> Vec<(f64, u32)> {
    let weights: f64 = (1..=models.max(1)).map(|rank| 1.0 / f64::from(rank)).sum();
    let mut times = Vec::new();
    for model in 0..models.max(1) {
        let share = 1.0 / f64::from(model + 1) / weights;
        let sessions_per_s = rate_per_s * share * 2.0 / (SESSION.0 + 1) as f64;
        for start_s in thinned(sessions_per_s, duration_s, random, |_| 1.0) {
            let mut at_s = start_s;
            for _ in 0..random.between(1, SESSION.0) {
                if at_s < duration_s {
                    times.push((at_s, model));
                }
                at_s += random.exponential(SESSION.1);
            }
        }
    }
    times
}

/// Times of a Poisson process whose rate is the peak times a share, 0..1, that varies over time.
fn thinned(peak_per_s: f64, until_s: f64, random: &mut Random, share: impl Fn(f64) -> f64) -> Vec<f64> {
    let mut times = Vec::new();
    if !(peak_per_s > 0.0 && peak_per_s.is_finite()) {
        return times;
    }
    let mut at_s = random.exponential(1.0 / peak_per_s);
    while at_s < until_s {
        if random.chance(share(at_s)) {
            times.push(at_s);
        }
        at_s += random.exponential(1.0 / peak_per_s);
    }
    times
}
