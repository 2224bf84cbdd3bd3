//! Demand as the gateway counts it, and the guard that keeps a request in exactly one of the states held and
//! in flight. Totals only grow, so that the controller may read them as often or as rarely as it likes.

use crate::conversations::Turn;
use crate::model::ModelState;
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Demand on one model.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ModelDemand {
    /// Generations asked of the model (a request with several prompts or choices asks for several), each once
    /// and never again when it resumes; refused ones too, but not their repetitions.
    pub arrivals_total: u64,
    /// Requests that wait for an instance, or at one that is still loading.
    pub held: u32,
    /// Requests at a ready instance.
    pub in_flight: u32,
    /// Prompt tokens of requests that got their first token.
    pub prompt_tokens_total: u64,
    /// Tokens passed on to clients, as they come.
    pub output_tokens_total: u64,
    /// Turns of conversations so far, and the newest of them, oldest first.
    pub turns_total: u64,
    pub turns: Vec<Turn>,
    /// How long the oldest held request has been waiting, milliseconds.
    pub oldest_held_ms: Option<u64>,
}

/// Hold times remembered for `Retry-After`.
const RECENT_HOLDS: usize = 16;
/// `Retry-After` while no hold has ended yet, seconds.
const DEFAULT_RETRY_AFTER_S: u32 = 5;

/// The requests held now, by ticket (tickets rise with time), and how long recent holds took.
#[derive(Debug, Default)]
pub struct HoldBook {
    next_ticket: u64,
    held_since: BTreeMap<u64, Instant>,
    recent: VecDeque<Duration>,
}

impl HoldBook {
    pub fn len(&self) -> usize {
        self.held_since.len()
    }

    pub fn oldest(&self) -> Option<Instant> {
        self.held_since.first_key_value().map(|(_, since)| *since)
    }

    fn enter(&mut self) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.held_since.insert(ticket, Instant::now());
        ticket
    }

    fn leave(&mut self, ticket: u64) -> Duration {
        self.held_since.remove(&ticket).map(|since| since.elapsed()).unwrap_or_default()
    }

    fn served_after(&mut self, hold: Duration) {
        if self.recent.len() == RECENT_HOLDS {
            self.recent.pop_front();
        }
        self.recent.push_back(hold);
    }

    /// What a refused client is told: the median of recent holds less the time that the oldest held request
    /// has waited already, because those ahead are served when it is. 1 to 60 s.
    pub fn retry_after_s(&self) -> u32 {
        if self.recent.is_empty() {
            return DEFAULT_RETRY_AFTER_S;
        }
        let mut holds: Vec<Duration> = self.recent.iter().copied().collect();
        holds.sort_unstable();
        let waited = self.oldest().map(|since| since.elapsed()).unwrap_or_default();
        let remaining = holds[holds.len() / 2].saturating_sub(waited);
        (remaining.as_secs_f64().ceil() as u32).clamp(1, 60)
    }
}

/// Where a request stands.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Standing {
    Arrived,
    Held { ticket: u64 },
    InFlight,
}

/// Keeps one request counted in the right place, whatever way it ends.
#[derive(Debug)]
pub struct DemandGuard {
    model: Arc<ModelState>,
    standing: Standing,
    /// Time held so far, over all holds.
    held_for: Duration,
}

impl DemandGuard {
    pub fn new(model: Arc<ModelState>) -> Self {
        Self { model, standing: Standing::Arrived, held_for: Duration::ZERO }
    }

    pub fn is_held(&self) -> bool {
        matches!(self.standing, Standing::Held { .. })
    }

    /// Time held so far, the hold that is going on included.
    pub fn held_for(&self) -> Duration {
        let Standing::Held { ticket } = self.standing else { return self.held_for };
        let book = self.model.hold_book();
        self.held_for + book.held_since.get(&ticket).map(Instant::elapsed).unwrap_or_default()
    }

    /// Counts the request as held. `Ok(true)` when it was not before; with a limit, an error (the
    /// `Retry-After` in seconds) when that many are held already.
    pub fn hold(&mut self, limit: Option<usize>) -> Result<bool, u32> {
        if self.is_held() {
            return Ok(false);
        }
        let mut book = self.model.hold_book();
        if limit.is_some_and(|limit| book.len() >= limit) {
            return Err(book.retry_after_s());
        }
        let ticket = book.enter();
        drop(book);
        self.leave_flight();
        self.standing = Standing::Held { ticket };
        self.model.meters().held.increment(1);
        Ok(true)
    }

    /// Counts the request as being at a ready instance.
    pub fn fly(&mut self) {
        if self.standing == Standing::InFlight {
            return;
        }
        if let Some(hold) = self.leave_hold() {
            self.model.hold_book().served_after(hold);
            self.model.meters().hold_seconds.record(hold.as_secs_f64());
        }
        self.model.in_flight.fetch_add(1, Ordering::AcqRel);
        self.model.meters().in_flight.increment(1);
        self.standing = Standing::InFlight;
    }

    fn leave_hold(&mut self) -> Option<Duration> {
        let Standing::Held { ticket } = self.standing else { return None };
        let hold = self.model.hold_book().leave(ticket);
        self.held_for += hold;
        self.standing = Standing::Arrived;
        self.model.meters().held.decrement(1);
        Some(hold)
    }

    fn leave_flight(&mut self) {
        if self.standing != Standing::InFlight {
            return;
        }
        self.model.in_flight.fetch_sub(1, Ordering::AcqRel);
        self.model.meters().in_flight.decrement(1);
        self.standing = Standing::Arrived;
    }

    /// Leaves both counts; the request is over.
    pub fn leave(&mut self) {
        self.leave_hold();
        self.leave_flight();
    }
}

impl Drop for DemandGuard {
    fn drop(&mut self) {
        self.leave();
    }
}
