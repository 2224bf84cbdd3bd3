//! The latest gaps between arrivals as they were. Who calls by the clock comes within seconds of it, which a histogram
//! over hours does not tell.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Gaps that are kept.
const KEPT: usize = 64;
/// Gaps that must lie in a window before it is believed: a single one may lie anywhere.
const HITS_LEAST: f64 = 5.0;
/// Imagined gaps that are longer than any.
const DOUBT: f64 = 2.0;
/// The shortest window, s: requests of who calls by the clock come early and late by about so much.
const WINDOW_LEAST_S: f64 = 5.0;

/// The latest gaps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Gaps(VecDeque<f32>);

impl Gaps {
    pub(crate) fn observe(&mut self, gap_s: f64) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(gap_s as f32);
    }

    /// How often holding something from now on is paid back: the highest quotient, over times to hold it for, of the share
    /// of gaps that end by then and of the time held. 0 where too few gaps have lasted for as long as this silence.
    pub(crate) fn payback_per_s(&self, silent_s: f64) -> f64 {
        let mut longer: Vec<f64> = self.longer(silent_s).collect();
        longer.sort_by(f64::total_cmp);
        let all = longer.len() as f64 + DOUBT;
        let (mut best, mut before_s): (f64, f64) = (0.0, 0.0);
        for (at, left_s) in longer.iter().enumerate() {
            let (hits, stay) = (at as f64 + 1.0, all - at as f64 - 1.0);
            before_s += left_s;
            if hits >= HITS_LEAST {
                best = best.max(hits / (before_s + stay * left_s).max(1.0));
            }
        }
        best
    }

    /// How often something that is started now and ready after `lead_s` is paid back soon after that. Later is soon enough
    /// for what comes later.
    pub(crate) fn ahead_per_s(&self, silent_s: f64, lead_s: f64) -> f64 {
        let window_s = lead_s.max(WINDOW_LEAST_S);
        let (mut hits, mut all) = (0.0, DOUBT);
        for left_s in self.longer(silent_s) {
            hits += f64::from((lead_s..lead_s + window_s).contains(&left_s));
            all += 1.0;
        }
        if hits < HITS_LEAST { 0.0 } else { hits / all / window_s }
    }

    /// What was left of the gaps that have lasted for as long, s.
    fn longer(&self, silent_s: f64) -> impl Iterator<Item = f64> {
        self.0.iter().map(move |gap| f64::from(*gap) - silent_s).filter(|left_s| *left_s > 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_calls_by_the_clock_is_expected_just_before() {
        let mut gaps = Gaps::default();
        (0..100).for_each(|n| gaps.observe(598.0 + f64::from(n % 5)));
        assert_eq!(gaps.0.len(), KEPT);
        let ahead = [0.0, 500.0, 570.0, 588.0, 700.0].map(|silent_s| gaps.ahead_per_s(silent_s, 10.0));
        assert!(ahead[..3].iter().all(|per_s| *per_s < 0.01) && ahead[3] > 0.09 && ahead[4] == 0.0, "{ahead:?}");
        let held = [0.0, 590.0, 700.0].map(|silent_s| gaps.payback_per_s(silent_s));
        assert!(held[0] < 0.01 && held[1] > 0.05 && held[2] == 0.0, "{held:?}");
    }

    #[test]
    fn chance_is_not_taken_for_a_clock() {
        let mut gaps = Gaps::default();
        // Gaps of a Poisson process of one a minute, by the inverse of their distribution.
        (0..64).for_each(|n| gaps.observe(-60.0 * (1.0 - (f64::from(n * 37 % 64) + 0.5) / 64.0).ln()));
        let found = [0.0, 30.0, 60.0].map(|silent_s| gaps.payback_per_s(silent_s) * 60.0);
        assert!(found.iter().all(|rate| (0.7..1.6).contains(rate)), "{found:?}");
    }
}
