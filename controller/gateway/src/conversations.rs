//! Which requests are turns of one conversation: a prompt that goes on from another one's is its next turn. What is kept
//! of a prompt is a hash of its tokens under a random key, and few of them; nothing of the text.
//!
//! The controller learns from turns how long people think, and expects those back who were answered lately.

use serde::Serialize;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// Prompts that are known; of more, the oldest are forgotten.
const KEPT: usize = 4_096;
/// Turns that are told until somebody asks; of more, the newest.
const TOLD: usize = 64;
/// A prompt that comes again within this time is the same question, by choice or by an impatient client.
const AGAIN: Duration = Duration::from_secs(2);
/// Prompts that are shorter say too little to be known again.
const TOKENS_LEAST: usize = 4;

/// One request, and the conversation that it is a turn of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Turn {
    pub session: u64,
    /// CLOCK_MONOTONIC.
    pub at_ns: u64,
}

/// The conversations with one model.
#[derive(Debug, Default)]
pub struct Conversations {
    random: RandomState,
    /// By length and hash of the last prompt.
    known: HashMap<(usize, u64), Known>,
    /// How many known prompts have each length: what a new one may begin with.
    lengths: BTreeMap<usize, usize>,
    /// Oldest first; those that went on since are in it still.
    order: VecDeque<(usize, u64)>,
    sessions: u64,
    turns_total: u64,
    turns: VecDeque<Turn>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    session: u64,
    at: Instant,
}

impl Conversations {
    /// A prompt arrives. `tenant` keeps one tenant's conversations from another's.
    pub fn take(&mut self, tenant: &str, prompt: &[u32], now: Instant, at_ns: u64) {
        if prompt.len() < TOKENS_LEAST {
            return;
        }
        let (before, own) = self.begins_with(tenant, prompt);
        let known = before.and_then(|key| Some((key, *self.known.get(&key)?)));
        if known.is_some_and(|(key, known)| key == own && now.saturating_duration_since(known.at) < AGAIN) {
            return;
        }
        let session = known.map_or_else(
            || {
                self.sessions += 1;
                self.random.hash_one(self.sessions)
            },
            |(_, known)| known.session,
        );
        if let Some((key, _)) = known {
            self.forget(key);
        }
        self.remember(own, Known { session, at: now });
        self.turns_total += 1;
        if self.turns.len() == TOLD {
            self.turns.pop_front();
        }
        self.turns.push_back(Turn { session, at_ns });
    }

    /// Turns so far, and the newest of them, oldest first.
    pub fn turns(&self) -> (u64, Vec<Turn>) {
        (self.turns_total, self.turns.iter().copied().collect())
    }

    /// The longest known prompt that this one begins with, and its own key.
    fn begins_with(&self, tenant: &str, prompt: &[u32]) -> (Option<(usize, u64)>, (usize, u64)) {
        let mut hash = self.random.hash_one(tenant);
        let (mut done, mut found) = (0, None);
        for length in self.lengths.range(..=prompt.len()).map(|(length, _)| *length) {
            hash = hashed(hash, &prompt[done..length]);
            done = length;
            if self.known.contains_key(&(length, hash)) {
                found = Some((length, hash));
            }
        }
        (found, (prompt.len(), hashed(hash, &prompt[done..])))
    }

    fn remember(&mut self, key: (usize, u64), known: Known) {
        if self.known.insert(key, known).is_none() {
            *self.lengths.entry(key.0).or_default() += 1;
        }
        self.order.push_back(key);
        while self.order.len() > KEPT {
            let Some(oldest) = self.order.pop_front() else { return };
            // One that came again stands further behind too.
            if !self.order.contains(&oldest) {
                self.forget(oldest);
            }
        }
    }

    fn forget(&mut self, key: (usize, u64)) {
        if self.known.remove(&key).is_none() {
            return;
        }
        if let Some(count) = self.lengths.get_mut(&key.0) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&key.0);
            }
        }
    }
}

/// A hash that goes on from another. Its random start makes collisions hard to ask for, and all that one would do is to
/// take two conversations for one.
fn hashed(start: u64, tokens: &[u32]) -> u64 {
    tokens
        .iter()
        .fold(start, |hash, token| (hash.rotate_left(5) ^ u64::from(*token)).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes (seconds, prompt) in turn, and numbers the sessions by their first turn.
    fn sessions(prompts: &[(u64, &[u32])]) -> Vec<usize> {
        let (mut conversations, start) = (Conversations::default(), Instant::now());
        for (at_s, prompt) in prompts {
            conversations.take("default", prompt, start + Duration::from_secs(*at_s), at_s * 1_000_000_000);
        }
        let (total, turns) = conversations.turns();
        assert_eq!(total, turns.len() as u64);
        let mut seen: Vec<u64> = Vec::new();
        turns
            .iter()
            .map(|turn| {
                let at = seen.iter().position(|session| *session == turn.session);
                at.unwrap_or_else(|| {
                    seen.push(turn.session);
                    seen.len() - 1
                })
            })
            .collect()
    }

    #[test]
    fn a_prompt_that_goes_on_from_another_is_its_next_turn() {
        let (a, b): (&[u32], &[u32]) = (&[1, 2, 3, 4], &[1, 2, 3, 9]);
        let (a2, a3): (&[u32], &[u32]) = (&[1, 2, 3, 4, 5, 6], &[1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(sessions(&[(0, a), (1, b), (10, a2), (20, a3)]), [0, 1, 0, 0]);
        // Two who begin alike part when the first goes on.
        assert_eq!(sessions(&[(0, a), (5, a), (10, a2), (15, a2)]), [0, 0, 0, 0]);
        // A question that is asked again at once is one turn, and what is too short is none.
        assert_eq!(sessions(&[(0, a), (1, a), (2, &[1, 2])]), [0]);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let (mut conversations, now) = (Conversations::default(), Instant::now());
        for n in 0..3 * KEPT as u32 {
            conversations.take("default", &[n, n, n, n], now, u64::from(n));
            conversations.take("other", &[7, 7, 7, 7, n / 2], now, u64::from(n));
        }
        assert!(conversations.known.len() <= KEPT && conversations.order.len() <= KEPT);
        assert!(conversations.lengths.values().sum::<usize>() == conversations.known.len());
        assert_eq!(conversations.turns().1.len(), TOLD);
    }
}
