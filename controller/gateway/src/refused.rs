//! Requests that were refused lately, to know their repetitions: a client that is told 429 or 503 asks again, and what
//! it asks again is no new demand. Only hashes under a random key are kept, never content, and few of them.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A repetition comes within this time, or is a request of its own: the longest `Retry-After` that is given.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Refusals remembered; of more, the oldest are forgotten and their repetitions count as new.
const KEPT: usize = 4_096;

/// The refusals of one gateway.
#[derive(Debug, Default)]
pub struct Refused {
    random: RandomState,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    /// How many refused requests had this key and were not repeated yet.
    counts: HashMap<u64, u32>,
    /// Oldest first.
    order: VecDeque<(Instant, u64)>,
}

impl Refused {
    /// The key of a request of `tenant` for `model`; `content` feeds what it asks.
    pub fn key(&self, tenant: &str, model: &str, content: impl FnOnce(&mut dyn Hasher)) -> u64 {
        let mut hasher = self.random.build_hasher();
        for part in [tenant, model] {
            hasher.write_usize(part.len());
            hasher.write(part.as_bytes());
        }
        content(&mut hasher);
        hasher.finish()
    }

    /// A request was refused.
    pub fn note(&self, key: u64, now: Instant) {
        let mut book = self.book();
        book.forget_old(now);
        if book.order.len() >= KEPT {
            book.forget_oldest();
        }
        book.order.push_back((now, key));
        *book.counts.entry(key).or_default() += 1;
    }

    /// Whether a request repeats a refused one. Each refusal is repeated once.
    pub fn is_repetition(&self, key: u64, now: Instant) -> bool {
        let mut book = self.book();
        book.forget_old(now);
        if !book.counts.contains_key(&key) {
            return false;
        }
        if let Some(at) = book.order.iter().position(|(_, known)| *known == key) {
            book.order.remove(at);
        }
        book.release(key);
        true
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn forget_old(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > REMEMBERED) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, key)) = self.order.pop_front() {
            self.release(key);
        }
    }

    fn release(&mut self, key: u64) {
        if let Some(count) = self.counts.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_is_repeated_once_and_soon() {
        let refused = Refused::default();
        let key = |tenant: &str, tokens: &[u32]| {
            refused.key(tenant, "m", |hasher| tokens.iter().for_each(|token| hasher.write_u32(*token)))
        };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mine = key("a", &[1, 2]);
        assert!(!refused.is_repetition(mine, at(0)));
        refused.note(mine, at(0));
        refused.note(mine, at(1));
        assert!(!refused.is_repetition(key("b", &[1, 2]), at(1)), "another tenant's");
        assert!(!refused.is_repetition(key("a", &[1, 3]), at(1)), "another prompt");
        assert!(refused.is_repetition(mine, at(2)) && refused.is_repetition(mine, at(2)));
        assert!(!refused.is_repetition(mine, at(2)), "a third one is new");
        refused.note(mine, at(3));
        assert!(!refused.is_repetition(mine, at(64)), "too late");
        assert!(refused.book().counts.is_empty() && refused.book().order.is_empty());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let refused = Refused::default();
        let now = Instant::now();
        for number in 0..2 * KEPT as u64 {
            refused.note(number, now);
        }
        assert!(refused.book().order.len() == KEPT && refused.book().counts.len() == KEPT);
        assert!(!refused.is_repetition(0, now) && refused.is_repetition(2 * KEPT as u64 - 1, now));
    }
}
