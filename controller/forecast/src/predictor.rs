//! What arrives next for one model: horizons from a second to an hour, fed from deltas at irregular times.
//!
//! Four widths of bins share the horizons among them. A model that is hardly ever called has no use for them: until a
//! few requests have come within their memory there are none, and its idle times say all there is to say.

use crate::scenario::{Forecast, value_at};
use crate::{IdleTimes, Level, QUANTILES, Sessions, Signals, sound};
use serde::{Deserialize, Serialize};

/// Widths of bins, s, and the horizons of each, in bins.
const WIDTHS: [(f64, &[usize]); 4] = [(1.0, &[1, 3, 6]), (10.0, &[1, 3, 6]), (60.0, &[5, 10]), (600.0, &[3, 6])];
/// Requests before a model gets its bins.
const BUSY_REQUESTS: f64 = 8.0;
/// Bins that a width must have seen before it is asked.
const SEEN_BINS: u64 = 3;
/// Most bins that one observation fills; what a longer gap held is forgotten.
const MOST_BINS: f64 = 60.0;
/// Requests over which the tokens of a request are averaged.
const TOKENS_OVER: f64 = 16.0;

/// What has arrived since the observation before.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Arrived {
    pub requests: f64,
    pub prefill_tokens: f64,
    pub decode_tokens: f64,
    pub signals: Signals,
}

/// One model's arrivals, past and to come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Predictor {
    levels: Vec<Filling>,
    at_s: Option<f64>,
    last_arrival_s: Option<f64>,
    requests: f64,
    prefill_per_request: f64,
    decode_per_request: f64,
    idle: IdleTimes,
    sessions: Sessions,
}

/// A width and its bin that is not full yet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Filling {
    level: Level,
    count: f64,
    filled_s: f64,
}

impl Predictor {
    /// For a model that nothing is known of, beside one that is well known: it borrows the shapes of errors and the
    /// regressions, which are in relative terms and much alike between models. Trust in experts it has to earn itself.
    pub fn like(known: &Self) -> Self {
        let borrow = |one: &Filling| Filling { level: one.level.borrowed(), ..Filling::default() };
        Self {
            levels: known.levels.iter().map(borrow).collect(),
            prefill_per_request: known.prefill_per_request,
            decode_per_request: known.decode_per_request,
            idle: known.idle.clone(),
            ..Self::default()
        }
    }

    /// Takes in what arrived up to `now_s`, a time in s on any clock. Where the clock stood still or ran backwards
    /// nothing is learned of rates, and the next observation counts from there.
    pub fn observe(&mut self, now_s: f64, arrived: Arrived) {
        if !now_s.is_finite() {
            return;
        }
        let requests = sound(arrived.requests);
        self.learn_tokens(requests, arrived);
        let before_s = self.at_s.replace(now_s);
        if requests > 0.0 {
            if let Some(last_s) = self.last_arrival_s.filter(|last_s| *last_s <= now_s) {
                self.idle.observe((now_s - last_s) / requests.max(1.0));
            }
            self.last_arrival_s = Some(now_s);
        }
        let Some(over_s) = before_s.map(|before_s| now_s - before_s).filter(|over_s| *over_s > 0.0) else { return };
        self.requests += requests;
        if self.levels.is_empty() && self.requests >= BUSY_REQUESTS {
            let empty = |(bin_s, ahead)| Filling { level: Level::new(bin_s, ahead), ..Filling::default() };
            self.levels = WIDTHS.into_iter().map(empty).collect();
        }
        for one in &mut self.levels {
            one.fill(requests / over_s, over_s, arrived.signals);
        }
    }

    fn learn_tokens(&mut self, requests: f64, arrived: Arrived) {
        if requests <= 0.0 {
            return;
        }
        let share = 1.0 - (-requests / TOKENS_OVER).exp();
        self.prefill_per_request +=
            share * (sound(arrived.prefill_tokens) / requests.max(1.0) - self.prefill_per_request);
        self.decode_per_request += share * (sound(arrived.decode_tokens) / requests.max(1.0) - self.decode_per_request);
    }

    /// A turn of a conversation, told by the hash of its prefix.
    pub fn turn(&mut self, session: u64, now_s: f64) {
        self.sessions.turn(session, now_s);
    }

    /// Fits the regressions of one width anew if it is due, and tells whether it did. Bounded work, but not small: for
    /// a thread that nothing waits for.
    pub fn refit(&mut self) -> bool {
        let due = self.levels.iter_mut().find(|one| one.level.refit_is_due());
        due.map(|one| one.level.refit()).is_some()
    }

    /// The probability that a request comes within a time, given the silence so far: by idle times, and by the turns
    /// that live conversations are expected to take.
    pub fn arrival_probability(&self, now_s: f64, within_s: f64) -> f64 {
        let silent_s = self.last_arrival_s.map_or(f64::MAX, |last_s| (now_s - last_s).max(0.0));
        let none = 1.0 - self.idle.arrival_probability(silent_s, within_s);
        1.0 - none.min((-self.sessions.expected(now_s, within_s)).exp())
    }

    /// Gaps between arrivals: what pre-warm and keep-alive windows go by.
    pub fn idle_times(&self) -> &IdleTimes {
        &self.idle
    }

    /// What may come within the next hour. No scenarios for a model that has hardly been called.
    pub fn forecast(&self) -> Forecast {
        let (mut ends_s, mut rates) = (Vec::new(), Vec::new());
        let mut correlation = 0.0;
        for one in self.levels.iter().filter(|one| one.level.bins() >= SEEN_BINS) {
            let bin_s = one.level.bin_s();
            for (at, ahead) in one.level.ahead().enumerate() {
                let mut stated = [0.0; QUANTILES.len()];
                for (to, count) in stated.iter_mut().zip(one.level.quantiles(at)) {
                    *to = count / bin_s;
                }
                ends_s.push(ahead as f64 * bin_s);
                rates.push(stated);
            }
            correlation = one.level.rank_correlation();
        }
        if ends_s.is_empty() {
            return Forecast::default();
        }
        Forecast::through(&ends_s, &rates, (self.prefill_per_request, self.decode_per_request), correlation)
    }

    /// The `q` quantile of the rate at a horizon, requests/s: of the longest one that is known and no longer than this,
    /// or the shortest.
    pub fn rate_quantile(&self, horizon_s: f64, q: f64) -> f64 {
        let mut found = None;
        for one in self.levels.iter().filter(|one| one.level.bins() >= SEEN_BINS) {
            let bin_s = one.level.bin_s();
            for (at, ahead) in one.level.ahead().enumerate() {
                if found.is_none() || ahead as f64 * bin_s <= horizon_s + 1e-9 {
                    found = Some((one.level.quantiles(at), bin_s));
                }
            }
        }
        found.map_or(0.0, |(stated, bin_s)| value_at(stated, q) / bin_s)
    }
}

impl Filling {
    /// Adds a steady rate over a stretch of time, bin by bin.
    fn fill(&mut self, rate_per_s: f64, over_s: f64, signals: Signals) {
        let bin_s = self.level.bin_s();
        let mut left_s = over_s.min(MOST_BINS * bin_s);
        while left_s > 0.0 {
            let part_s = left_s.min(bin_s - self.filled_s);
            self.count += rate_per_s * part_s;
            self.filled_s += part_s;
            left_s -= part_s;
            if self.filled_s >= bin_s - 1e-9 {
                self.level.observe(self.count, signals);
                (self.count, self.filled_s) = (0.0, 0.0);
            }
        }
    }
}
