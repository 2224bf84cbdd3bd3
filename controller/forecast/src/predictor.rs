//! What arrives next for one model: horizons from a second to an hour, fed from deltas at irregular times.
//!
//! Four widths of bins share the horizons among them, each there while the model is busy enough for it; for one that is
//! hardly ever called its idle times say all there is to say. Taking in what arrived is cheap and learning from full
//! bins is not, so they are apart: who cares for many models bounds the second by [`Predictor::digest`].

use crate::filling::{Filling, WIDTH_COUNT};
use crate::format::Format;
use crate::level::LevelRefit;
use crate::reading::Reading;
use crate::scenario::{Forecast, value_at};
use crate::{IdleTimes, Level, QUANTILES, Sessions, Signals, sound};
use serde::{Deserialize, Serialize};

/// Bins that a width must have seen before it is asked.
const SEEN_BINS: u64 = 3;
/// Requests over which the tokens of a request are averaged.
const TOKENS_OVER: f64 = 16.0;
/// Less than this is not a request but a share in one whose model is not known.
const ONE_REQUEST: f64 = 0.5;
/// How far ahead the turns of live conversations are looked at, s.
const SESSION_WINDOWS_S: [f64; 3] = [10.0, 60.0, 300.0];

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
    format: Format,
    widths: [Filling; WIDTH_COUNT],
    at_s: Option<f64>,
    last_arrival_s: Option<f64>,
    prefill_per_request: f64,
    decode_per_request: f64,
    idle: IdleTimes,
    sessions: Sessions,
}

/// A fit that is due, apart from its model: for a thread that nothing waits for.
#[derive(Clone, Debug)]
pub struct Refit {
    width: usize,
    level: LevelRefit,
}

impl Refit {
    /// Does it. Bounded work, but not small: tens of milliseconds.
    pub fn fit(self) -> Self {
        Self { width: self.width, level: self.level.fit() }
    }
}

impl Predictor {
    /// How many widths of bins a model may have.
    pub const WIDTHS: usize = WIDTH_COUNT;

    /// For a model that nothing is known of, beside one that is well known: it borrows the shapes of errors and the
    /// regressions, which are in relative terms and much alike between models. Trust in experts it has to earn itself.
    pub fn like(known: &Self) -> Self {
        let mut fresh = Self {
            prefill_per_request: known.prefill_per_request,
            decode_per_request: known.decode_per_request,
            idle: known.idle.clone(),
            ..Self::default()
        };
        for (width, (to, from)) in fresh.widths.iter_mut().zip(&known.widths).enumerate() {
            if let Some(level) = from.level() {
                to.grow(width, Some(level));
            }
        }
        fresh
    }

    /// Takes in what arrived up to `now_s`, a time in s on any clock, and learns from it at once: for a model by itself.
    /// Where the clock stood still or ran backwards nothing is learned of rates, and the next observation counts from
    /// there.
    pub fn observe(&mut self, now_s: f64, arrived: Arrived) {
        self.take(now_s, arrived);
        for width in 0..WIDTH_COUNT {
            if self.wants_level(width) {
                self.grow(width, None);
            }
        }
        self.digest(usize::MAX);
    }

    /// Takes it in and learns of idle times alone: little work.
    pub fn take(&mut self, now_s: f64, arrived: Arrived) {
        if !now_s.is_finite() {
            return;
        }
        let requests = sound(arrived.requests);
        self.learn_tokens(requests, arrived);
        let before_s = self.at_s.replace(now_s);
        if requests >= ONE_REQUEST {
            if let Some(last_s) = self.last_arrival_s.filter(|last_s| *last_s <= now_s) {
                self.idle.observe((now_s - last_s) / requests.max(1.0));
            }
            self.last_arrival_s = Some(now_s);
        }
        let Some(over_s) = before_s.map(|before_s| now_s - before_s).filter(|over_s| *over_s > 0.0) else { return };
        for (width, one) in self.widths.iter_mut().enumerate() {
            one.take(width, requests, over_s, arrived.signals);
        }
    }

    /// Learns from no more than so many full bins, those of wide bins first, and says from how many. What is left over
    /// is learned from another time; where that never comes it is forgotten.
    pub fn digest(&mut self, most: usize) -> usize {
        let mut done = 0;
        for one in self.widths.iter_mut().rev() {
            done += one.digest(most - done);
        }
        done
    }

    /// Whether the model is busy enough for a width and has no bins of it.
    pub fn wants_level(&self, width: usize) -> bool {
        self.widths[width].wants_level()
    }

    /// Gives it bins of a width, beginning with what is known of errors at another model's.
    pub fn grow(&mut self, width: usize, like: Option<&Level>) {
        self.widths[width].grow(width, like);
    }

    /// Its bins of a width, where it has any.
    pub fn level(&self, width: usize) -> Option<&Level> {
        self.widths[width].level()
    }

    fn learn_tokens(&mut self, requests: f64, arrived: Arrived) {
        if requests < ONE_REQUEST {
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

    /// Fits the regressions of one width anew if it is due, and tells whether it did: [`Predictor::refit_due`] for one
    /// who has the time.
    pub fn refit(&mut self) -> bool {
        let due = self.refit_due().map(Refit::fit);
        due.map(|fitted| self.refitted(fitted)).is_some()
    }

    /// A fit that is due, of one width. Asked again it is due no more, whether that one is given back or not.
    pub fn refit_due(&mut self) -> Option<Refit> {
        let mut widths = self.widths.iter_mut().enumerate();
        widths.find_map(|(width, one)| Some(Refit { width, level: one.level_mut()?.refit_due()? }))
    }

    /// Takes over what was fitted, if the model still has that width.
    pub fn refitted(&mut self, fitted: Refit) {
        if let Some(level) = self.widths.get_mut(fitted.width).and_then(Filling::level_mut) {
            level.refitted(fitted.level);
        }
    }

    /// What is worth storing: all but what waits for its outcome, the sessions that are live, and old errors.
    pub fn kept(&self) -> Self {
        Self {
            widths: self.widths.each_ref().map(|one| one.kept()),
            sessions: self.sessions.kept(),
            at_s: None,
            last_arrival_s: None,
            idle: self.idle.clone(),
            ..*self
        }
    }

    /// Goes on after a time in which nothing was seen, on a clock that may have started anew.
    pub fn resume(&mut self, unseen_s: f64) {
        self.at_s = None;
        self.last_arrival_s = None;
        self.sessions = self.sessions.kept();
        for one in &mut self.widths {
            one.skip(unseen_s);
        }
    }

    /// The probability that a request comes within a time, given the silence so far: by idle times, and by the turns
    /// that live conversations are expected to take.
    pub fn arrival_probability(&self, now_s: f64, within_s: f64) -> f64 {
        let none = 1.0 - self.idle.arrival_probability(self.silent_s(now_s), within_s);
        1.0 - none.min((-self.sessions.expected(now_s, within_s)).exp())
    }

    /// How often holding something for the next request is paid back: see [`IdleTimes::payback_per_s`]. Live
    /// conversations can only add to it.
    pub fn payback_per_s(&self, now_s: f64, lead_s: f64) -> f64 {
        self.idle.payback_per_s(self.silent_s(now_s), lead_s).max(self.turns_per_s(now_s, lead_s))
    }

    /// The same by the turns that live conversations are expected to take, alone.
    pub fn turns_per_s(&self, now_s: f64, lead_s: f64) -> f64 {
        if self.sessions.live() == 0 {
            return 0.0;
        }
        // What is held for no longer than a window is paid back at least this often.
        let by_turns = SESSION_WINDOWS_S.map(|window_s| {
            let turns = self.sessions.expected(now_s, lead_s + window_s) - self.sessions.expected(now_s, lead_s);
            (1.0 - (-turns.max(0.0)).exp()) / (lead_s + window_s)
        });
        by_turns.into_iter().fold(0.0, f64::max)
    }

    /// For how long there has been no request, s; very long where there never was one.
    pub fn silent_s(&self, now_s: f64) -> f64 {
        self.last_arrival_s.map_or(f64::MAX, |last_s| (now_s - last_s).max(0.0))
    }

    /// Gaps between arrivals: what pre-warm and keep-alive windows go by.
    pub fn idle_times(&self) -> &IdleTimes {
        &self.idle
    }

    /// The same, to begin with those of other models.
    pub fn idle_times_mut(&mut self) -> &mut IdleTimes {
        &mut self.idle
    }

    /// What may come within the next hour. No scenarios for a model that has hardly been called.
    pub fn forecast(&self) -> Forecast {
        let (mut ends_s, mut rates) = (Vec::new(), Vec::new());
        let mut correlation = 0.0;
        for level in self.known() {
            for (at, ahead) in level.ahead().enumerate() {
                let mut stated = [0.0; QUANTILES.len()];
                for (to, count) in stated.iter_mut().zip(level.quantiles(at)) {
                    *to = count / level.bin_s();
                }
                ends_s.push(ahead as f64 * level.bin_s());
                rates.push(stated);
            }
            correlation = level.rank_correlation();
        }
        if ends_s.is_empty() {
            return Forecast::default();
        }
        Forecast::through(&ends_s, &rates, (self.prefill_per_request, self.decode_per_request), correlation)
    }

    /// Levels that have seen enough to be asked, narrow ones first.
    fn known(&self) -> impl Iterator<Item = &Level> {
        self.widths.iter().filter_map(Filling::level).filter(|level| level.bins() >= SEEN_BINS)
    }

    /// The place of a horizon: of the longest one that is known and no longer than this, or the shortest; of bins no
    /// narrower than `averaged_s`, since the counts of narrow bins are spread more widely than the load is.
    fn nearest(&self, horizon_s: f64, averaged_s: f64) -> Option<(&Level, usize)> {
        let mut found = None;
        for level in self.known().filter(|level| level.bin_s() >= averaged_s) {
            for (at, ahead) in level.ahead().enumerate() {
                if found.is_none() || ahead as f64 * level.bin_s() <= horizon_s + 1e-9 {
                    found = Some((level, at));
                }
            }
        }
        found
    }

    /// The `q` quantile of the rate at a horizon, requests/s; 0 where nothing is known.
    pub fn rate_quantile(&self, horizon_s: f64, q: f64) -> f64 {
        self.rate_quantiles(horizon_s, 0.0, [q]).map_or(0.0, |[rate]| rate)
    }

    /// Quantiles of the rate at a horizon, averaged over no less than `averaged_s`, requests/s; none where nothing is
    /// known.
    pub fn rate_quantiles<const N: usize>(&self, horizon_s: f64, averaged_s: f64, qs: [f64; N]) -> Option<[f64; N]> {
        let (level, at) = self.nearest(horizon_s, averaged_s)?;
        let stated = level.quantiles(at);
        Some(qs.map(|q| value_at(stated, q) / level.bin_s()))
    }

    /// What is known at that horizon, for people.
    pub fn reading(&self, horizon_s: f64, averaged_s: f64) -> Option<Reading> {
        self.nearest(horizon_s, averaged_s).map(|(level, at)| level.reading(at))
    }

    /// All horizons, for people, the nearest first.
    pub fn readings(&self) -> Vec<Reading> {
        self.known().flat_map(|level| (0..level.ahead().count()).map(|at| level.reading(at))).collect()
    }
}
