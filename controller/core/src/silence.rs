//! When a silent model is called again, and how many requests come together when it is.
//!
//! A silence is one that has lasted as long as a cold start: what is shorter costs nothing to sit out. Silences that have
//! ended, over the time spent in them, are a rate, and with the gamma prior of the fleet a posterior of it: the next call
//! comes at a hazard of (ended + a) / (time in silences + b), the present silence included, which speaks against the rate
//! while it lasts (Lomax's distribution). Beside that stands the chance that the model is not called as before any more, which
//! grows with how unlikely so long a silence would be otherwise, and with which it is one of which nothing is known. So a model that is called every minute is held for some
//! minutes after its last call, and one that is called every hour is not held at all, without a time-out that anyone sets.
//! Where silences have had a typical length the histogram of gaps knows better; `expect` weighs the two.

use crate::{Nanos, after, seconds_between};
use serde::{Deserialize, Serialize};

/// What is kept of the past at each silence that ends: about 20 of them.
const KEPT: f64 = 0.95;
/// Silences that what is believed of the fleet counts for (a).
const LENT: f64 = 1.0;
/// Chance, at each silence, that it is the last of its kind.
const LAST: f64 = 0.02;
/// Bunches that what is believed of the fleet counts for, and models that what is assumed of all counts for.
const LENT_BUNCHES: f64 = 2.0;
const ASSUMED_MODELS: f64 = 2.0;
/// More requests than these do not count as together: one crowd would have the model held for hours.
const MOST_TOGETHER: f64 = 16.0;
/// No silence is shorter, s.
const LEAST_S: f64 = 1e-3;

/// What is believed of a model about which nothing is known.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Habit {
    /// Time in silences that stands for what is believed, s (b).
    quiet_s: f64,
    /// Requests that come within a cold start where one ends a silence, that one counted.
    together: f64,
}

impl Default for Habit {
    fn default() -> Self {
        Self { quiet_s: 0.0, together: 1.0 }
    }
}

/// What is remembered of one model's silences.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Silences {
    lent: Habit,
    /// What a cold start takes, s.
    least_s: f64,
    last_ns: Option<Nanos>,
    ended: f64,
    quiet_s: f64,
    bunch: Option<Bunch>,
    bunches: f64,
    together: f64,
}

/// Requests that have come since a silence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Bunch {
    until_ns: Nanos,
    requests: f64,
}

impl Silences {
    /// What is shorter than a cold start, s, is no silence from now on.
    pub(crate) fn longer_than(&mut self, least_s: f64) {
        self.least_s = least_s;
    }

    /// Takes in what arrived up to a moment.
    pub(crate) fn take(&mut self, at_ns: Nanos, requests: f64) {
        if self.least_s <= 0.0 {
            return;
        }
        if let Some(bunch) = self.bunch.take_if(|bunch| at_ns >= bunch.until_ns) {
            self.bunches = KEPT * self.bunches + 1.0;
            self.together = KEPT * self.together + bunch.requests.clamp(1.0, MOST_TOGETHER);
        }
        if requests <= 0.0 {
            return;
        }
        if let Some(bunch) = self.bunch.as_mut() {
            bunch.requests += requests;
        }
        let silent_s = self.last_ns.replace(at_ns).map_or(0.0, |last_ns| seconds_between(last_ns, at_ns));
        if silent_s < self.least_s {
            return;
        }
        self.ended = KEPT * self.ended + 1.0;
        self.quiet_s = KEPT * self.quiet_s + silent_s - self.least_s;
        if self.bunch.is_none() {
            let until_ns = after(at_ns, self.least_s);
            self.bunch = Some(Bunch { until_ns, requests });
        }
    }

    /// Rate of the next call after a silence of so many seconds, 1/s.
    pub(crate) fn hazard_per_s(&self, silent_s: f64) -> f64 {
        let silent_s = if silent_s.is_finite() { silent_s.clamp(LEAST_S, 1e9) } else { 1e9 };
        let quiet_s = (self.quiet_s + self.lent.quiet_s).max(LEAST_S);
        let so_long = (quiet_s / (quiet_s + silent_s)).powf(self.ended);
        let goes_on = (1.0 - LAST) * so_long / ((1.0 - LAST) * so_long + LAST);
        // A regime that is over leaves the model as one of which nothing is known but its silence.
        let known = (self.ended + LENT) / (quiet_s + silent_s);
        let unknown = LENT / (self.lent.quiet_s + silent_s);
        goes_on * known + (1.0 - goes_on) * unknown
    }

    /// Requests that come within a cold start where one ends a silence, that one counted.
    pub(crate) fn together(&self) -> f64 {
        let sum = LENT_BUNCHES * self.lent.together + self.together;
        (sum / (LENT_BUNCHES + self.bunches)).clamp(1.0, MOST_TOGETHER)
    }

    /// What the fleet is like, with the silences that go on.
    pub(crate) fn of_fleet<'a>(fleet: impl Iterator<Item = &'a Self>, now_ns: Nanos) -> Habit {
        let (mut ended, mut quiet_s) = (0.0, 0.0);
        let (mut together, mut bunches) = (ASSUMED_MODELS * Habit::default().together, ASSUMED_MODELS);
        for one in fleet {
            let silent_s = one.last_ns.map_or(0.0, |last_ns| seconds_between(last_ns, now_ns));
            ended += one.ended;
            quiet_s += one.quiet_s + (silent_s - one.least_s).max(0.0);
            let weight = one.bunches / (LENT_BUNCHES + one.bunches);
            together += weight * one.together / one.bunches.max(1e-9);
            bunches += weight;
        }
        let mean_s = if ended > 0.0 { quiet_s / ended } else { 0.0 };
        // Few silences are no fleet to speak of.
        Habit { quiet_s: LENT * mean_s * ended / (ended + ASSUMED_MODELS), together: together / bunches }
    }

    /// Believes this of the model as far as its own silences do not say otherwise.
    pub(crate) fn lend(&mut self, habit: Habit) {
        self.lent = habit;
    }

    /// For a new epoch, whose clock has started anew.
    pub(crate) fn rebase(&mut self) {
        (self.bunch, self.last_ns) = (None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NS_PER_S;

    /// Bunches of so many requests, 0.1 s apart, every so many seconds, over `hours`.
    fn called(every_s: u64, requests: u64, hours: u64) -> Silences {
        let mut silences = Silences::default();
        silences.longer_than(5.0);
        for bunch in 0..hours * 3_600 / every_s {
            let at_ns = (bunch + 1) * every_s * NS_PER_S;
            (0..requests).for_each(|request| silences.take(at_ns + request * NS_PER_S / 10, 1.0));
        }
        silences
    }

    #[test]
    fn the_rate_of_the_next_call_is_that_at_which_silences_end() {
        let hazards = [60, 600, 3_600].map(|every_s| called(every_s, 3, 24).hazard_per_s(every_s as f64 / 4.0));
        for (hazard, every_s) in hazards.into_iter().zip([60.0, 600.0, 3_600.0]) {
            assert!((0.9..1.4).contains(&(hazard * every_s)), "{hazards:?}");
        }
    }

    #[test]
    fn a_model_that_has_gone_silent_is_let_go_of_and_a_first_request_is_not_taken_for_the_last() {
        let silences = called(60, 3, 24);
        let fallen = [10.0, 60.0, 600.0, 6_000.0].map(|silent_s| silences.hazard_per_s(silent_s));
        assert!(fallen.windows(2).all(|pair| pair[1] < pair[0]), "{fallen:?}");
        assert!(fallen[2] < 0.1 * fallen[0], "{fallen:?}");
        let unknown = Silences::default();
        assert!((unknown.hazard_per_s(20.0) - LENT / 20.0).abs() < 1e-3, "{}", unknown.hazard_per_s(20.0));
    }

    #[test]
    fn requests_after_a_silence_are_counted_together() {
        let together = called(60, 8, 2).together();
        assert!(together > 7.0 && together <= 8.0, "{together}");
        assert_eq!(called(1, 1, 1).together(), 1.0, "never silent");
    }

    #[test]
    fn a_new_model_is_believed_to_be_like_the_fleet() {
        let fleet: Vec<Silences> = (0..10).map(|_| called(600, 8, 10)).collect();
        let mut new = Silences::default();
        new.lend(Silences::of_fleet(fleet.iter(), 36_001 * NS_PER_S));
        assert!((new.hazard_per_s(1.0) * 600.0 - 1.0).abs() < 0.2, "{new:?}");
        assert!(new.together() > 5.0, "{new:?}");
        assert_eq!(Silences::of_fleet([].iter(), 5), Habit::default());
    }

    #[test]
    fn nonsense_is_borne() {
        let mut silences = Silences::default();
        silences.longer_than(f64::MAX);
        silences.take(Nanos::MAX, f64::MAX);
        silences.longer_than(1.0);
        silences.take(0, f64::INFINITY);
        silences.take(Nanos::MAX, f64::MAX);
        for silent_s in [0.0, -1.0, f64::MAX, f64::NAN] {
            let hazard = silences.hazard_per_s(silent_s);
            assert!(hazard >= 0.0, "{hazard}");
        }
        assert!(silences.together().is_finite());
    }
}
