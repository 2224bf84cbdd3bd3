//! The way of one request's events from the step thread to its client.
//!
//! The step thread never waits for a client. The channel is short; what does not fit is kept here as plain
//! token ids, at most `max_tokens` of them, and goes out in few events when there is room again. So a slow
//! client costs 4 bytes a token (and what its log-probabilities take, if it asked for them) and holds up nobody, and
//! its stream still ends with its slot given back. Events are bounded, because the reader's lines are.

use engine_http::ApiError;
use engine_http::backend::StreamEvent;
use engine_wire::TokenId;
use engine_wire::hop::{HopEvent, TokenLogprobs};
use std::time::Instant;
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

/// Events that may lie in the channel of one request.
pub(crate) const CHANNEL_EVENTS: usize = 64;

/// Tokens in one event: some 30 KiB of JSON at most.
const EVENT_TOKENS: usize = 2048;
/// The same when each has up to 20 alternatives beside it.
const SCORED_EVENT_TOKENS: usize = 48;

/// What travels in the channel.
pub(crate) type Item = Result<StreamEvent, ApiError>;

/// Sending end of one request's stream.
pub(crate) struct Delivery {
    events: mpsc::Sender<Item>,
    pending: Pending,
    arrived_at: Instant,
    deadline: Instant,
    slot: OwnedSemaphorePermit,
}

impl Delivery {
    pub fn new(events: mpsc::Sender<Item>, arrived_at: Instant, deadline: Instant, slot: OwnedSemaphorePermit) -> Self {
        Self { events, pending: Pending::default(), arrived_at, deadline, slot }
    }

    /// Whether nobody listens any more.
    pub fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The deadline by the clock of `arrived_at_ns`, which tells when the request came, ns.
    pub fn deadline_ns(&self, arrived_at_ns: u64) -> u64 {
        let allowed = self.deadline.saturating_duration_since(self.arrived_at).as_nanos();
        arrived_at_ns.saturating_add(u64::try_from(allowed).unwrap_or(u64::MAX))
    }

    /// The error for a request whose deadline has passed.
    pub fn deadline_exceeded(&self, stage: &'static str) -> ApiError {
        let deadline_ms = self.deadline.saturating_duration_since(self.arrived_at).as_millis() as u64;
        ApiError::DeadlineExceeded { deadline_ms, stage }
    }

    /// Takes a token to be sent.
    pub fn token(&mut self, token: TokenId, logprobs: Option<TokenLogprobs>) {
        self.pending.push(token, logprobs);
    }

    /// Sends the tokens that were taken, those of one step as one event, and with them what had to be kept back.
    pub fn flush(&mut self) {
        while let Some(event) = self.pending.take_event() {
            match self.events.try_send(Ok(StreamEvent::Hop(event))) {
                Ok(()) => {}
                Err(TrySendError::Full(Ok(StreamEvent::Hop(event)))) => return self.pending.put_back(event),
                // When it is closed the loop sees that before its next step, and cancels the sequence.
                Err(_) => return,
            }
        }
    }

    /// Sends the last event. When the client is behind, a task on `runtime` waits for it, until the
    /// request's deadline, and keeps its slot meanwhile.
    pub fn finish(mut self, last: Result<HopEvent, ApiError>, runtime: &Handle) {
        self.flush();
        let last = last.map(StreamEvent::Hop);
        if !self.pending.is_empty() {
            runtime.spawn(self.finish_slowly(last));
            return;
        }
        if let Err(TrySendError::Full(last)) = self.events.try_send(last) {
            runtime.spawn(self.finish_slowly(last));
        }
    }

    async fn finish_slowly(self, last: Item) {
        let Self { events, mut pending, deadline, slot, .. } = self;
        let send = async {
            while let Some(event) = pending.take_event() {
                events.send(Ok(StreamEvent::Hop(event))).await.ok()?;
            }
            events.send(last).await.ok()
        };
        // A client that does not read until its deadline finds the stream cut.
        let _ = tokio::time::timeout_at(deadline.into(), send).await;
        drop(slot);
    }
}

/// Tokens that wait for room, with one entry of log-probabilities each if they have any.
#[derive(Default)]
struct Pending {
    tokens: Vec<TokenId>,
    logprobs: Vec<TokenLogprobs>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    fn push(&mut self, token: TokenId, logprobs: Option<TokenLogprobs>) {
        self.tokens.push(token);
        self.logprobs.extend(logprobs);
    }

    /// The oldest tokens, as many as go into one event.
    fn take_event(&mut self) -> Option<HopEvent> {
        if self.tokens.is_empty() {
            return None;
        }
        if self.logprobs.is_empty() {
            return Some(HopEvent::Tokens(take_front(&mut self.tokens, EVENT_TOKENS)));
        }
        let tokens = take_front(&mut self.tokens, SCORED_EVENT_TOKENS);
        Some(HopEvent::Scored { tokens, logprobs: take_front(&mut self.logprobs, SCORED_EVENT_TOKENS) })
    }

    /// Takes an event back that there was no room for.
    fn put_back(&mut self, event: HopEvent) {
        match event {
            HopEvent::Tokens(tokens) => drop(self.tokens.splice(..0, tokens)),
            HopEvent::Scored { tokens, logprobs } => {
                drop(self.tokens.splice(..0, tokens));
                drop(self.logprobs.splice(..0, logprobs));
            }
            HopEvent::Finished { .. } | HopEvent::Failed { .. } => {}
        }
    }
}

fn take_front<T>(items: &mut Vec<T>, count: usize) -> Vec<T> {
    if items.len() <= count {
        return std::mem::take(items);
    }
    let rest = items.split_off(count);
    std::mem::replace(items, rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_wire::hop::FinishReason;
    use std::sync::Arc;
    use std::time::Duration;
    use tokio::sync::Semaphore;

    fn finished() -> HopEvent {
        HopEvent::Finished { reason: FinishReason::Length, cached_tokens: 0 }
    }

    #[tokio::test]
    async fn a_slow_client_gets_every_token_once_and_in_order() {
        let slots = Arc::new(Semaphore::new(1));
        let slot = slots.clone().try_acquire_owned().expect("free");
        let (sender, mut events) = mpsc::channel(2);
        let mut delivery = Delivery::new(sender, Instant::now(), Instant::now() + Duration::from_secs(60), slot);
        let mut seen = Vec::new();
        for token in 0..10 {
            delivery.token(token, None);
            delivery.flush();
            if token == 4 {
                for _ in 0..2 {
                    seen.push(events.recv().await.expect("open").expect("no error"));
                }
            }
        }
        delivery.finish(Ok(finished()), &Handle::current());
        assert_eq!(slots.available_permits(), 0, "the slot is held until the last event is handed over");
        while let Some(event) = events.recv().await {
            seen.push(event.expect("no error"));
        }
        let tokens: Vec<TokenId> = seen
            .iter()
            .filter_map(|event| match event {
                StreamEvent::Hop(HopEvent::Tokens(tokens)) => Some(tokens.clone()),
                _ => None,
            })
            .flatten()
            .collect();
        assert_eq!(tokens, (0..10).collect::<Vec<_>>());
        assert_eq!(seen.last(), Some(&StreamEvent::Hop(finished())));
        assert!(seen.len() < 8, "what was kept back came as one event: {seen:?}");
        let free = tokio::time::timeout(Duration::from_secs(60), slots.acquire()).await;
        assert!(free.is_ok_and(|permit| permit.is_ok()));
    }

    #[tokio::test]
    async fn a_dropped_stream_is_seen_and_costs_nothing() {
        let slots = Arc::new(Semaphore::new(1));
        let slot = slots.clone().try_acquire_owned().expect("free");
        let (sender, events) = mpsc::channel(2);
        let mut delivery = Delivery::new(sender, Instant::now(), Instant::now() + Duration::from_secs(60), slot);
        assert!(!delivery.is_abandoned());
        drop(events);
        delivery.token(1, None);
        delivery.flush();
        assert!(delivery.is_abandoned());
        delivery.finish(Ok(finished()), &Handle::current());
        assert_eq!(slots.available_permits(), 1);
    }

    #[tokio::test]
    async fn events_are_bounded_and_keep_tokens_and_log_probabilities_together() {
        let slots = Arc::new(Semaphore::new(1));
        let slot = slots.clone().try_acquire_owned().expect("free");
        let (sender, mut events) = mpsc::channel(1);
        let mut delivery = Delivery::new(sender, Instant::now(), Instant::now() + Duration::from_secs(60), slot);
        let count = 3 * SCORED_EVENT_TOKENS as TokenId;
        for token in 0..count {
            delivery.token(token, Some(TokenLogprobs { logprob: -(token as f32), top: vec![(token, 0.0); 20] }));
        }
        delivery.finish(Ok(finished()), &Handle::current());
        let mut seen = Vec::new();
        while let Some(Ok(StreamEvent::Hop(event))) = events.recv().await {
            let line_bytes = serde_json::to_string(&event).expect("JSON").len();
            assert!(line_bytes < 32 * 1024, "{line_bytes}");
            let HopEvent::Scored { tokens, logprobs } = event else { continue };
            seen.extend(tokens.into_iter().zip(logprobs.into_iter().map(|scores| scores.logprob)));
        }
        assert_eq!(seen, (0..count).map(|token| (token, -(token as f32))).collect::<Vec<_>>());
    }
}
