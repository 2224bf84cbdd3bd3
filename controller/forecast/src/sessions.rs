//! Live conversations forecast their own next turns.
//!
//! A user who has just been answered reads, thinks and writes. How long that takes is learned over all conversations as
//! hazards per stretch of silence (the Kaplan-Meier view: those who never came back count for as long as they were
//! waited for), and the hazards of the live ones add up to the turns to come. A conversation is told by the hash of its
//! prefix; nothing of its text is kept.

use crate::idle::{BINS, bin_of};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Conversations that are followed at once; beyond that the ones silent for longest are dropped. A model with more is never idle
/// long enough for them to matter.
const MOST: usize = 512;
/// A conversation that is silent for longer is over, s.
const OVER_S: f64 = 3600.0;
/// What the hazards keep of their past at each turn: about 2,000 turns.
const KEPT: f64 = 0.9995;
/// Imagined conversations that were waited for in each stretch without coming back.
const DOUBT: f64 = 2.0;

/// Think times and the conversations that are live.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sessions {
    /// When each live conversation had its last turn, s.
    live: BTreeMap<u64, f64>,
    /// By stretch of silence: turns that came in it, and conversations that were silent through it or came back in it.
    /// Empty where there never was a conversation.
    turns: Vec<f64>,
    waited: Vec<f64>,
}

impl Sessions {
    /// A turn of a conversation, at a time in s on any clock that does not run backwards.
    pub fn turn(&mut self, session: u64, now_s: f64) {
        if !now_s.is_finite() {
            return;
        }
        if let Some(last_s) = self.live.insert(session, now_s) {
            self.learn(now_s - last_s, true);
        }
        if self.live.len() > MOST {
            self.forget_silent(now_s);
        }
    }

    /// Conversations that are over, or the longest silent half where none is, make room.
    fn forget_silent(&mut self, now_s: f64) {
        let mut last: Vec<f64> = self.live.values().copied().collect();
        last.sort_by(f64::total_cmp);
        let since_s = last[last.len() / 2].min(now_s).max(now_s - OVER_S);
        let over: Vec<(u64, f64)> =
            self.live.iter().filter(|(_, last)| **last <= since_s).map(|(session, last)| (*session, *last)).collect();
        for (session, last_s) in over {
            self.live.remove(&session);
            self.learn(now_s - last_s, false);
        }
    }

    fn learn(&mut self, silent_s: f64, came_back: bool) {
        let bin = bin_of(silent_s);
        self.turns.resize(BINS, 0.0);
        self.waited.resize(BINS, 0.0);
        for count in self.turns.iter_mut().chain(&mut self.waited) {
            *count *= KEPT;
        }
        // One who did not come back was seen to be silent through the stretches before, not through all of the last.
        let through = if came_back { bin + 1 } else { bin };
        for waited in &mut self.waited[..through] {
            *waited += 1.0;
        }
        self.turns[bin] += f64::from(came_back);
    }

    /// Think times without the conversations: for a clock that starts anew.
    pub(crate) fn kept(&self) -> Self {
        Self { live: BTreeMap::new(), turns: self.turns.clone(), waited: self.waited.clone() }
    }

    /// Conversations that are being followed.
    pub fn live(&self) -> usize {
        self.live.len()
    }

    /// Turns of live conversations expected within `within_s`.
    pub fn expected(&self, now_s: f64, within_s: f64) -> f64 {
        let silent = self.live.values().map(|last_s| (now_s - last_s).max(0.0)).filter(|silent_s| *silent_s < OVER_S);
        silent.map(|silent_s| self.returns(silent_s, within_s)).sum()
    }

    /// Probability that one who has been silent comes back within a time.
    fn returns(&self, silent_s: f64, within_s: f64) -> f64 {
        let (first, last) = (bin_of(silent_s), bin_of(silent_s + within_s.max(0.0)));
        let stays: f64 = (first..=last)
            .map(|bin| {
                let (start, end) = (crate::idle::start_of(bin), crate::idle::start_of(bin + 1));
                let share = ((end.min(silent_s + within_s) - start.max(silent_s)) / (end - start)).clamp(0.0, 1.0);
                let count = |counts: &[f64]| counts.get(bin).copied().unwrap_or(0.0);
                1.0 - share * count(&self.turns) / (count(&self.waited) + DOUBT)
            })
            .product();
        1.0 - stays
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Users who think for 20 s, and of whom a half come back.
    #[test]
    fn live_conversations_are_expected_back_after_their_think_time_and_not_for_ever() {
        let mut sessions = Sessions::default();
        for user in 0..400_u64 {
            let at_s = user as f64;
            sessions.turn(user, at_s);
            if user >= 20 && user % 2 == 0 {
                sessions.turn(user - 20, at_s);
            }
            sessions.turn(user, f64::NAN);
        }
        let expected = [1.0, 30.0, 600.0].map(|within_s| sessions.expected(400.0, within_s).round());
        assert!(expected[0] <= expected[1] && expected[1] <= expected[2], "{expected:?}");
        assert!(expected[2] < sessions.live() as f64, "{expected:?}");
        assert_eq!(sessions.expected(400.0 + 2.0 * OVER_S, 60.0), 0.0);
    }
}
