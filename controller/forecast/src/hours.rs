//! What comes with the hour: jobs that start at full hours, batches every ten minutes.
//!
//! For each place in the hour a running mean of what is off there. A mean that follows noise does harm, so it is
//! believed as far as it has foretold anything: the regression of what came on what the mean had said, shrunk towards 0 as
//! James and Stein's estimator is.

use serde::{Deserialize, Serialize};

/// An hour, and the narrowest place in it, s.
const HOUR_S: f64 = 3600.0;
const NARROWEST_S: f64 = 10.0;
/// Weight of the newest hour.
const NEWEST: f32 = 0.1;
/// Weight that a place must have gathered before its mean counts in full: that of five hours.
const GATHERED: f32 = 0.4;
/// Bins over which trust is remembered.
const MEMORY: f64 = 1000.0;
/// How surely a mean must foretell before it is believed at all, in squared standard errors.
const SURE: f64 = 3.0;

/// How far something that was said can be believed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Trust {
    product: f64,
    said: f64,
    came: f64,
    rounds: f64,
}

impl Trust {
    /// Takes in what had been said and what came of it.
    pub(crate) fn learn(&mut self, said: f64, came: f64) {
        if !said.is_finite() || !came.is_finite() {
            return;
        }
        let keep = 1.0 - 1.0 / MEMORY;
        self.product = keep * self.product + said * came;
        self.said = keep * self.said + said * said;
        self.came = keep * self.came + came * came;
        self.rounds = keep * self.rounds + 1.0;
    }

    /// A factor from 0 to 1. What is said `ahead` bins ahead overlaps.
    pub(crate) fn share(&self, ahead: usize) -> f64 {
        if self.product <= 0.0 || self.said <= 0.0 {
            return 0.0;
        }
        let rest = (self.came - self.product * self.product / self.said).max(1e-9) / self.rounds;
        let sure = self.product * self.product / (self.said * rest * ahead.max(1) as f64);
        (self.product / self.said * (1.0 - SURE / sure).max(0.0)).min(1.0)
    }
}

/// Means by the place in the hour.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Hours {
    /// Sum and gathered weight of each place.
    places: Vec<(f32, f32)>,
    trust: Trust,
}

impl Hours {
    pub(crate) fn new(bin_s: f64) -> Self {
        let places = (HOUR_S / bin_s.max(NARROWEST_S)).round().max(1.0) as usize;
        Self { places: vec![(0.0, 0.0); places], trust: Trust::default() }
    }

    fn place(&self, at_s: f64) -> usize {
        let share = (at_s / HOUR_S + 1e-9).rem_euclid(1.0);
        ((share * self.places.len() as f64) as usize).min(self.places.len().saturating_sub(1))
    }

    fn mean(&self, at_s: f64) -> f64 {
        self.places.get(self.place(at_s)).map_or(0.0, |(sum, gathered)| f64::from(sum / gathered.max(GATHERED)))
    }

    /// What is off at a time, as far as it is to be believed.
    pub(crate) fn at(&self, at_s: f64, ahead: usize) -> f64 {
        self.trust.share(ahead) * self.mean(at_s)
    }

    /// Takes in what was off at a time.
    pub(crate) fn learn(&mut self, at_s: f64, off: f64) {
        if !off.is_finite() {
            return;
        }
        let (place, said) = (self.place(at_s), self.mean(at_s));
        let Some((sum, gathered)) = self.places.get_mut(place) else { return };
        if *gathered > 0.0 {
            self.trust.learn(said, off);
        }
        *sum += NEWEST * (off as f32 - *sum);
        *gathered += NEWEST * (1.0 - *gathered);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of the 7th minute and of the 30th after ten hours of minutes.
    fn check(off: impl Fn(usize) -> f64) -> [f64; 2] {
        let mut hours = Hours::new(60.0);
        for minute in 0..600 {
            hours.learn(minute as f64 * 60.0 + 30.0, off(minute));
        }
        hours.learn(0.0, f64::NAN);
        [7.5, 30.5].map(|minute| hours.at((600.0 + minute) * 60.0, 1))
    }

    #[test]
    fn what_comes_with_the_hour_is_foretold_and_noise_is_not() {
        let jitter = |minute: usize| ((minute * 7919) % 13) as f64 / 6.0 - 1.0;
        let [at_seven, at_thirty] = check(|minute| if minute % 60 == 7 { 8.0 } else { 0.0 } + jitter(minute));
        assert!(at_seven > 4.0 && at_thirty.abs() < 1.5, "{at_seven} {at_thirty}");
        let noise = check(|minute| if (minute * 2_654_435_761) >> 7 & 1 == 0 { 1.0 } else { -1.0 });
        assert!(noise.iter().all(|off| off.abs() < 0.3), "{noise:?}");
        assert_eq!(Hours::default().at(60.0, 1), 0.0);
    }
}
