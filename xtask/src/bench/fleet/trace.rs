//! Who calls which model when: some call regularly, the others now and then.

use super::copies::Random;
use std::time::Duration;

/// Models that are called regularly, and the shortest and longest time between two of their calls, s.
pub(super) const REGULAR: usize = 8;
const PERIOD_S: (f64, f64) = (6.0, 12.0);
/// How far a regular call may be from its time, as a share of the period.
const JITTER: f64 = 0.1;
/// Mean time between two calls of any other, s.
const SPARSE_S: f64 = 90.0;

/// Calls of `models` models over so many seconds from `from_s` on, in their order: when, since then, and of which. Regular
/// callers keep their times from one part of a trace to the next.
pub(super) fn calls(seed: u64, models: usize, from_s: f64, for_s: f64) -> Vec<(Duration, usize)> {
    let mut calls = Vec::new();
    for model in 0..models {
        let mut random = Random(seed.wrapping_mul(1_000_003).wrapping_add(model as u64));
        let period_s = PERIOD_S.0 + (PERIOD_S.1 - PERIOD_S.0) * random.share();
        let mut nominal_s = period_s * random.share();
        let mut at_s = if model < REGULAR { nominal_s } else { -SPARSE_S * random.share().ln() };
        while at_s < from_s + for_s {
            if at_s >= from_s {
                calls.push((Duration::from_secs_f64(at_s - from_s), model));
            }
            if model < REGULAR {
                nominal_s += period_s;
                at_s = nominal_s + period_s * JITTER * (2.0 * random.share() - 1.0);
            } else {
                at_s -= SPARSE_S * random.share().ln();
            }
        }
    }
    calls.sort();
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_its_seeds_and_goes_on_where_it_stopped() {
        let whole = calls(7, 50, 0.0, 120.0);
        assert_eq!(whole, calls(7, 50, 0.0, 120.0));
        assert_ne!(whole, calls(8, 50, 0.0, 120.0));
        let parts = calls(7, 50, 0.0, 60.0).len() + calls(7, 50, 60.0, 60.0).len();
        assert_eq!(parts, whole.len());
        let regular = whole.iter().filter(|(_, model)| *model < REGULAR).count() as f64;
        assert!((70.0..170.0).contains(&regular), "{regular}");
        assert!((25..100).contains(&(whole.len() - regular as usize)), "{}", whole.len());
    }
}
