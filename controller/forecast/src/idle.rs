//! How long a model that is rarely called stays silent: a histogram of the gaps between its arrivals.
//!
//! Where requests are hours apart a rate says little; what matters is how likely one comes within the next minutes
//! given the silence so far ("Serverless in the Wild", Shahrad et al., 2020). Bins are logarithmic, from a tenth of a
//! second to a week, so one small table serves every model.

use crate::gaps::Gaps;
use serde::{Deserialize, Serialize};

/// Bins of a histogram of durations, the shortest duration that is told apart, s, and bins per factor of two.
pub(crate) const BINS: usize = 48;
const SHORTEST_S: f64 = 0.1;
const PER_DOUBLING: f64 = 2.0; // so that each is longer than the one before by the root of 2
/// What a table keeps of its past at each gap: about 200 gaps.
const KEPT: f64 = 0.995;
/// Nothing is held for less, s.
const LEAST_HELD_S: f64 = 1.0;
/// Imagined gaps, spread as if each doubling of the silence were a coin toss, so that a first request is not taken for
/// the last one.
const IMAGINED: f64 = 0.5;

/// Bin of a duration.
pub(crate) fn bin_of(duration_s: f64) -> usize {
    if duration_s.is_nan() || duration_s <= SHORTEST_S {
        return 0;
    }
    (((duration_s / SHORTEST_S).log2() * PER_DOUBLING) as usize + 1).min(BINS - 1)
}

/// Shortest duration of a bin, s.
pub(crate) fn start_of(bin: usize) -> f64 {
    if bin == 0 { 0.0 } else { SHORTEST_S * ((bin - 1) as f64 / PER_DOUBLING).exp2() }
}

/// Gaps between arrivals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IdleTimes {
    gaps: Vec<f64>,
    #[serde(default)]
    latest: Gaps,
}

impl Default for IdleTimes {
    fn default() -> Self {
        Self { gaps: vec![0.0; BINS], latest: Gaps::default() }
    }
}

impl IdleTimes {
    /// Takes in a gap between two arrivals, s.
    pub fn observe(&mut self, gap_s: f64) {
        if !gap_s.is_finite() || gap_s < 0.0 {
            return;
        }
        for gap in &mut self.gaps {
            *gap *= KEPT;
        }
        self.gaps[bin_of(gap_s)] += 1.0;
        self.latest.observe(gap_s);
    }

    /// Probability that the next arrival comes within `within_s`, given a silence of `silent_s`.
    pub fn arrival_probability(&self, silent_s: f64, within_s: f64) -> f64 {
        let (silent_s, within_s) = (silent_s.max(0.0), within_s.max(0.0));
        let still = self.longer_than(silent_s);
        if still <= 0.0 {
            return 0.0;
        }
        (1.0 - self.longer_than(silent_s + within_s) / still).clamp(0.0, 1.0)
    }

    /// The silence that a share `q` of the gaps is no longer than, s: what pre-warming and keep-alive windows go by.
    pub fn quantile(&self, q: f64) -> f64 {
        let total: f64 = self.gaps.iter().sum();
        let mut below = 0.0;
        for (bin, gap) in self.gaps.iter().enumerate() {
            if *gap > 0.0 && below + gap >= q * total {
                let share = (q * total - below) / gap;
                return start_of(bin) + share * (start_of(bin + 1) - start_of(bin));
            }
            below += gap;
        }
        0.0
    }

    /// How often something that costs 1 a second to hold is paid back: the highest quotient, over all times to hold it
    /// for, of the probability that the next arrival comes by then (but no sooner than after `lead_s`, when what is
    /// started now is ready) and of the time held until it comes or that time is over. Holding is worth it where this
    /// exceeds the price of a second over the cost of a miss.
    pub fn payback_per_s(&self, silent_s: f64, lead_s: f64) -> f64 {
        let silent_s = silent_s.clamp(0.0, start_of(BINS - 1));
        let lead_s = lead_s.clamp(0.0, start_of(BINS - 1));
        let still = self.longer_than(silent_s);
        if still <= 0.0 {
            return 0.0;
        }
        let at_lead = self.longer_than(silent_s + lead_s);
        let (mut best, mut held, mut before_s, mut stays) = (0.0, 0.0, silent_s, still);
        let mut after: f64 = self.gaps[bin_of(silent_s) + 1..].iter().sum();
        let mut end_s = start_of(bin_of(silent_s));
        for bin in bin_of(silent_s)..BINS - 1 {
            end_s = if bin == 0 { SHORTEST_S } else { end_s * std::f64::consts::SQRT_2 };
            let longer = imagined(end_s) + after;
            // Within a bin the gaps are spread evenly, so the trapezium is the integral.
            held += (end_s - before_s) * (stays + longer) / 2.0;
            if end_s > silent_s + lead_s.max(LEAST_HELD_S) && held > 0.0 {
                best = f64::max(best, (at_lead - longer) / held);
            }
            (before_s, stays) = (end_s, longer);
            after -= self.gaps[bin + 1];
            // Beyond the longest gap there are imagined ones alone, whose quotient only falls.
            if after <= 1e-9 && best > 0.0 {
                break;
            }
        }
        best
    }

    /// The same by the latest gaps as they were, where something is held already.
    pub fn latest_payback_per_s(&self, silent_s: f64) -> f64 {
        self.latest.payback_per_s(silent_s)
    }

    /// How often what is started now, and ready after `lead_s`, is paid back soon after that.
    pub fn ahead_per_s(&self, silent_s: f64, lead_s: f64) -> f64 {
        self.latest.ahead_per_s(silent_s, lead_s)
    }

    /// How many gaps longer than a silence there have been: what is known of times like this.
    pub fn longer_gaps(&self, silent_s: f64) -> f64 {
        let silent_s = silent_s.clamp(0.0, start_of(BINS - 1));
        (self.longer_than(silent_s) - imagined(silent_s)).max(0.0)
    }

    /// What gaps are like over several models, to begin with where nothing is known: no more than `weight` gaps.
    pub fn of_fleet<'a>(fleet: impl Iterator<Item = &'a Self>, weight: f64) -> Self {
        let mut pooled = Self::default();
        for one in fleet {
            let total: f64 = one.gaps.iter().sum();
            // Each model counts for its shape, and a busy one for no more than a quiet one.
            let share = total.min(weight) / total.max(1e-9);
            pooled.gaps.iter_mut().zip(&one.gaps).for_each(|(to, from)| *to += share * from);
        }
        let total: f64 = pooled.gaps.iter().sum();
        let scale = (weight / total.max(1e-9)).min(1.0);
        pooled.gaps.iter_mut().for_each(|gap| *gap *= scale);
        pooled
    }

    /// Weight of the gaps longer than a duration, those of its bin in proportion.
    fn longer_than(&self, duration_s: f64) -> f64 {
        let bin = bin_of(duration_s);
        let (start, end) = (start_of(bin), start_of(bin + 1));
        let left = ((end - duration_s) / (end - start)).clamp(0.0, 1.0);
        imagined(duration_s) + self.gaps[bin + 1..].iter().sum::<f64>() + left * self.gaps[bin]
    }
}

/// Weight of the imagined gaps longer than a duration.
fn imagined(duration_s: f64) -> f64 {
    IMAGINED / (1.0 + duration_s / SHORTEST_S).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holding_pays_back_when_the_next_arrival_is_near_and_warming_ahead_just_before() {
        let mut idle = IdleTimes::default();
        let unknown = idle.payback_per_s(20.0, 0.0);
        assert!(unknown > 0.3 / 20.0 && unknown < 0.5 / 20.0, "half of the ski-rental rule's: {unknown}");
        for gap in 0..50 {
            idle.observe(600.0 + f64::from(gap % 10));
        }
        let paid = [0.0, 300.0, 590.0, 3_000.0].map(|silent_s| idle.payback_per_s(silent_s, 0.0));
        assert!(paid[0] < 1.0 / 100.0 && paid[1] < paid[2] && paid[2] > 1.0 / 200.0 && paid[3] < paid[2], "{paid:?}");
        let ahead = [0.0, 560.0, 2_000.0].map(|silent_s| idle.payback_per_s(silent_s, 30.0));
        assert!(ahead[1] > 3.0 * ahead[0] && ahead[1] > 3.0 * ahead[2], "{ahead:?}");
        assert!(idle.longer_gaps(100.0) > 40.0 && idle.longer_gaps(5_000.0) < 1e-9);
        assert_eq!(idle.payback_per_s(f64::MAX, f64::MAX), 0.0);
    }

    #[test]
    fn a_fleet_lends_the_shape_of_its_gaps_and_little_weight() {
        let mut quiet = IdleTimes::default();
        (0..100).for_each(|_| quiet.observe(600.0));
        let lent = IdleTimes::of_fleet([&quiet, &IdleTimes::default()].into_iter(), 1.0);
        assert!((lent.longer_gaps(60.0) - 1.0).abs() < 1e-6, "{}", lent.longer_gaps(60.0));
        assert_eq!(IdleTimes::of_fleet([].into_iter(), 1.0), IdleTimes::default());
    }

    #[test]
    fn a_silence_as_long_as_any_before_speaks_for_an_arrival_and_a_longer_one_against() {
        let mut idle = IdleTimes::default();
        assert!(idle.arrival_probability(0.0, 60.0) > 0.5, "a first request is not taken for the last one");
        for gap in 0..100 {
            idle.observe(600.0 + f64::from(gap));
            idle.observe(f64::NAN);
        }
        let soon = [0.0, 550.0, 600.0, 5_000.0].map(|silent_s| idle.arrival_probability(silent_s, 200.0));
        assert!(soon[0] < 0.1 && soon[2] > 0.9 && soon[3] < 0.2, "{soon:?}");
        let window = [0.05, 0.99].map(|q| idle.quantile(q));
        assert!(window[0] > 500.0 && window[1] < 900.0, "{window:?}");
    }
}
