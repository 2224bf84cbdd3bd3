//! What is measured of stated quantiles.

use super::{SCORED, Series, Stated};
use controller_forecast::pinball;
use serde::Serialize;

/// A ramp, as known when the forecast is made: the mean of the last bins against that of the bins before.
const RAMP_BINS: (usize, usize) = (3, 12);
/// They differ by this share, and by this many standard deviations of a Poisson count.
const RAMP: (f64, f64) = (0.2, 2.0);
/// Idle: so many empty bins in a row, and for how many bins after them a forecast counts as made after idleness.
const IDLE_BINS: (usize, usize) = (6, 6);

/// The score of one method.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Score {
    /// Sum of absolute errors of the median over the sum of counts.
    pub wape: f64,
    /// Mean pinball loss at each scored quantile, requests/s.
    pub pinball: [f64; 3],
    /// Mean distance from the 0.5 to the 0.9 quantile, requests/s.
    pub width: f64,
    pub all: Situation,
    pub ramps: Situation,
    pub after_idle: Situation,
}

/// Coverage in one kind of situation.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Situation {
    pub bins: usize,
    /// Share of bins at or below each scored quantile.
    pub coverage: [f64; 3],
    /// Share of bins below it.
    pub below: [f64; 3],
    /// How far the coverage may be from the quantile: the larger of 2 points and two standard errors at the
    /// effective sample size.
    pub allowed: [f64; 3],
    /// Whether it is; true where there are no bins. Counts are whole, and often the same: a value is the `q` quantile
    /// when at most a share q lies below it and at least q lies at or below it.
    pub holds: [bool; 3],
}

/// Scores what was stated of the bins from `from` on.
pub(super) fn score(series: &Series, ahead: usize, from: usize, stated: &Stated) -> Score {
    let counts = &series.counts;
    let bins: Vec<usize> = (from..counts.len()).collect();
    let mean =
        |value: &dyn Fn(usize) -> f64| bins.iter().map(|bin| value(*bin)).sum::<f64>() / bins.len().max(1) as f64;
    let loss = |place: usize| mean(&|bin| pinball(SCORED[place], counts[bin], stated[bin][place])) / series.bin_s;
    let total: f64 = bins.iter().map(|bin| counts[*bin]).sum();
    let off: f64 = bins.iter().map(|bin| (counts[*bin] - stated[*bin][0]).abs()).sum();
    let kept = |wanted: &dyn Fn(usize) -> bool| {
        let kept: Vec<usize> = bins.iter().copied().filter(|bin| wanted(bin.saturating_sub(ahead))).collect();
        situation(counts, stated, &kept)
    };
    Score {
        wape: off / total.max(1e-9),
        pinball: [loss(0), loss(1), loss(2)],
        width: mean(&|bin| stated[bin][1] - stated[bin][0]) / series.bin_s,
        all: situation(counts, stated, &bins),
        ramps: kept(&|made| on_ramp(counts, made)),
        after_idle: kept(&|made| after_idle(counts, made)),
    }
}

fn situation(counts: &[f64], stated: &Stated, bins: &[usize]) -> Situation {
    let mut found = Situation { bins: bins.len(), ..Situation::default() };
    for (place, q) in SCORED.into_iter().enumerate() {
        let hits: Vec<f64> = bins.iter().map(|bin| f64::from(counts[*bin] <= stated[*bin][place] + 1e-9)).collect();
        found.coverage[place] = hits.iter().sum::<f64>() / hits.len().max(1) as f64;
        let below = bins.iter().filter(|bin| counts[**bin] < stated[**bin][place] - 1e-9).count();
        found.below[place] = below as f64 / bins.len().max(1) as f64;
        let standard_error = (q * (1.0 - q) / effective(&hits)).sqrt();
        let allowed = f64::max(0.02, 2.0 * standard_error);
        found.allowed[place] = allowed;
        let within = found.below[place] - allowed <= q && q <= found.coverage[place] + allowed;
        found.holds[place] = bins.is_empty() || within;
    }
    found
}

/// Effective sample size of hits that follow each other: n over 1 plus twice the sum of autocorrelations up to the first
/// that is not positive (Geyer's initial sequence, 1992).
fn effective(hits: &[f64]) -> f64 {
    let n = hits.len();
    let mean = hits.iter().sum::<f64>() / n.max(1) as f64;
    let variance = hits.iter().map(|hit| (hit - mean).powi(2)).sum::<f64>();
    if variance <= 0.0 {
        return n.max(1) as f64;
    }
    let mut inflation = 1.0;
    for lag in 1..n / 2 {
        let product: f64 = (lag..n).map(|at| (hits[at] - mean) * (hits[at - lag] - mean)).sum();
        let correlation = product / variance;
        if correlation <= 0.0 {
            break;
        }
        inflation += 2.0 * correlation;
    }
    (n as f64 / inflation).max(1.0)
}

fn on_ramp(counts: &[f64], made: usize) -> bool {
    let (last, before) = RAMP_BINS;
    if made + 1 < last + before {
        return false;
    }
    let mean = |bins: &[f64]| bins.iter().sum::<f64>() / bins.len() as f64;
    let (lately, earlier) =
        (mean(&counts[made + 1 - last..=made]), mean(&counts[made + 1 - last - before..=made - last]));
    let noise = (earlier.max(0.5) * (1.0 / last as f64 + 1.0 / before as f64)).sqrt();
    let apart = (lately - earlier).abs();
    apart > RAMP.0 * earlier && apart > RAMP.1 * noise
}

fn after_idle(counts: &[f64], made: usize) -> bool {
    let (empty, after) = IDLE_BINS;
    (0..after).any(|back| {
        made.checked_sub(back + empty).is_some_and(|from| counts[from..from + empty].iter().all(|count| *count == 0.0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_that_come_in_runs_count_for_less() {
        let runs: Vec<f64> = (0..400).map(|bin| f64::from(bin / 20 % 2)).collect();
        let mixed: Vec<f64> = (0..400).map(|bin| f64::from(bin * 7919 % 13 < 6)).collect();
        assert!(effective(&runs) < 60.0, "{}", effective(&runs));
        assert!(effective(&mixed) > 150.0, "{}", effective(&mixed));
    }

    #[test]
    fn ramps_and_idleness_are_told_by_what_was_known() {
        let mut counts = vec![20.0; 20];
        counts.extend([40.0, 45.0, 50.0]);
        counts.extend([0.0; 8]);
        counts.extend([5.0, 5.0]);
        let ramps: Vec<usize> = (0..counts.len()).filter(|made| on_ramp(&counts, *made)).collect();
        let idle: Vec<usize> = (0..counts.len()).filter(|made| after_idle(&counts, *made)).collect();
        assert_eq!(ramps, (20..=32).collect::<Vec<_>>());
        assert_eq!(idle, (29..=32).collect::<Vec<_>>());
    }
}
