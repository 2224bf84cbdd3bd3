//! The methods that ours has to beat. Each is a point forecast with an add-on: a quantile of its past errors.
//!
//! The fixed add-on is that of the first part of the trace. The rolling one is that of the last errors. What there is to
//! choose (the weight of the newest bin) is chosen per horizon and quantile, by the loss on the first part.

use super::{SCORED, Series, Stated};
use controller_forecast::pinball;

/// Weights of the newest bin that are tried.
const NEWEST: [f64; 10] = [1.0, 0.8, 0.6, 0.4, 0.3, 0.2, 0.1, 0.05, 0.03, 0.01];
/// Errors that a rolling add-on is a quantile of.
const ROLLING: usize = 120;
/// Bins at the beginning whose errors say nothing yet.
const WARM: usize = 8;

/// A method to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// The last bin, with a fixed add-on.
    Naive,
    /// An exponentially weighted mean with a fixed add-on, tuned.
    EwmaFixed,
    /// The same with a rolling add-on.
    EwmaRolling,
    /// The bin of a day ago (the last bin on the first day), with a fixed add-on.
    SeasonalNaive,
}

impl Method {
    pub const ALL: [Self; 4] = [Self::Naive, Self::EwmaFixed, Self::EwmaRolling, Self::SeasonalNaive];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Naive => "naive",
            Self::EwmaFixed => "ewma fixed",
            Self::EwmaRolling => "ewma rolling",
            Self::SeasonalNaive => "seasonal naive",
        }
    }

    /// What it states of each bin, `ahead` bins before.
    pub(super) fn state(self, series: &Series, ahead: usize, from: usize) -> Stated {
        let counts = &series.counts;
        let points: Vec<Vec<f64>> = match self {
            Self::Naive => vec![shifted(counts, ahead)],
            Self::SeasonalNaive => vec![yesterday(counts, ahead, (86_400.0 / series.bin_s).round() as usize)],
            Self::EwmaFixed | Self::EwmaRolling => {
                NEWEST.iter().map(|newest| shifted(&means(counts, *newest), ahead)).collect()
            }
        };
        let rolling = self == Self::EwmaRolling;
        let mut stated = vec![[0.0; 3]; counts.len()];
        for (place, q) in SCORED.into_iter().enumerate() {
            let mut best = (f64::MAX, Vec::new());
            for point in &points {
                let tried =
                    if rolling { rolled(counts, point, ahead, q) } else { fixed(counts, point, ahead, from, q) };
                let first = ahead + WARM;
                let loss: f64 = (first.min(from)..from).map(|bin| pinball(q, counts[bin], tried[bin])).sum();
                if loss < best.0 {
                    best = (loss, tried);
                }
            }
            for (bin, stated) in stated.iter_mut().enumerate() {
                stated[place] = best.1.get(bin).copied().unwrap_or(0.0);
            }
        }
        stated
    }
}

/// The forecast made `ahead` bins before each bin.
fn shifted(points: &[f64], ahead: usize) -> Vec<f64> {
    (0..points.len()).map(|bin| bin.checked_sub(ahead).map_or(0.0, |made| points[made])).collect()
}

fn yesterday(counts: &[f64], ahead: usize, day: usize) -> Vec<f64> {
    let day = day.max(ahead);
    (0..counts.len())
        .map(|bin| bin.checked_sub(day).or(bin.checked_sub(ahead)).map_or(0.0, |like| counts[like]))
        .collect()
}

/// Exponentially weighted means up to each bin, unbiased from the first on.
fn means(counts: &[f64], newest: f64) -> Vec<f64> {
    let (mut sum, mut gathered) = (0.0, 0.0);
    let mean = |count: &f64| {
        sum += newest * (count - sum);
        gathered += newest * (1.0 - gathered);
        sum / gathered
    };
    counts.iter().map(mean).collect()
}

fn fixed(counts: &[f64], points: &[f64], ahead: usize, from: usize, q: f64) -> Vec<f64> {
    let mut errors: Vec<f64> = ((ahead + WARM).min(from)..from).map(|bin| counts[bin] - points[bin]).collect();
    errors.sort_by(f64::total_cmp);
    let add_on = quantile(&errors, q);
    points.iter().map(|point| (point + add_on).max(0.0)).collect()
}

/// At each bin the errors that were known when its forecast was made.
fn rolled(counts: &[f64], points: &[f64], ahead: usize, q: f64) -> Vec<f64> {
    let mut window: Vec<f64> = Vec::new();
    let mut stated = Vec::with_capacity(counts.len());
    for (bin, point) in points.iter().enumerate() {
        let known = |bin: usize| bin.checked_sub(ahead).filter(|known| *known >= ahead + WARM);
        if let Some(known) = known(bin) {
            insert(&mut window, counts[known] - points[known]);
            if let Some(old) = known.checked_sub(ROLLING).filter(|old| *old >= ahead + WARM) {
                remove(&mut window, counts[old] - points[old]);
            }
        }
        stated.push((point + quantile(&window, q)).max(0.0));
    }
    stated
}

fn insert(sorted: &mut Vec<f64>, error: f64) {
    let at = sorted.partition_point(|other| other.total_cmp(&error).is_lt());
    sorted.insert(at, error);
}

fn remove(sorted: &mut Vec<f64>, error: f64) {
    let at = sorted.partition_point(|other| other.total_cmp(&error).is_lt());
    if at < sorted.len() {
        sorted.remove(at);
    }
}

/// The `q` quantile of sorted numbers, between the two next to it; 0 where there are none.
pub(super) fn quantile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = q * last as f64;
    let low = place.floor() as usize;
    sorted[low] + (place - low as f64) * (sorted[(low + 1).min(last)] - sorted[low])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The median that each method states of the last five bins.
    fn check(method: Method, counts: &[f64], bin_s: f64) -> Vec<f64> {
        let series = Series { name: "t".into(), bin_s, ahead: vec![1], counts: counts.to_vec() };
        let stated = method.state(&series, 1, super::super::first_part(counts.len()));
        stated[counts.len() - 5..].iter().map(|stated| (stated[0] * 10.0).round() / 10.0).collect()
    }

    #[test]
    fn each_method_states_what_it_is_named_for() {
        let rising: Vec<f64> = (0..50).map(f64::from).collect();
        assert_eq!(check(Method::Naive, &rising, 10.0), [45.0, 46.0, 47.0, 48.0, 49.0]);
        assert_eq!(check(Method::EwmaFixed, &rising, 10.0), [45.0, 46.0, 47.0, 48.0, 49.0]);
        let jump: Vec<f64> = (0..600).map(|bin| if bin < 400 { 10.0 } else { 100.0 }).collect();
        assert_eq!(check(Method::EwmaRolling, &jump, 10.0), [100.0; 5]);
        let days: Vec<f64> = (0..96).map(|bin| f64::from(bin % 24)).collect();
        assert_eq!(check(Method::SeasonalNaive, &days, 3_600.0), [19.0, 20.0, 21.0, 22.0, 23.0]);
    }
}
