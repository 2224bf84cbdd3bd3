//! One request inside the step thread: its parameters, its delivery, and the times of its life.

use crate::delivery::Delivery;
use crate::embed::EmbedWork;
use crate::guides::Guided;
use crate::shelf::HeldAdapter;
use engine_core::{EndReason, Limits, Sampled};
use engine_grammar::GrammarError;
use engine_runtime::History;
use engine_wire::TokenId;
use engine_wire::control::{FinishedRequest, Outcome};
use engine_wire::hop::{FinishReason, GenerateRequest, HopEvent, TokenLogprobs};
use engine_wire::sampling::{Sampling, StopRule};
use std::collections::VecDeque;
use std::sync::Arc;

/// A request as it is handed to the step thread.
pub(crate) struct Work {
    pub request_id: String,
    pub tenant: String,
    /// CLOCK_MONOTONIC, ns.
    pub arrived_at_ns: u64,
    pub request: GenerateRequest,
    /// None for the base model.
    pub adapter: Option<Arc<HeldAdapter>>,
    /// Its grammar, if it has a constraint.
    pub guided: Option<Guided>,
    pub delivery: Delivery,
}

/// A message to the step thread.
pub(crate) enum Message {
    Work(Box<Work>),
    Embed(Box<EmbedWork>),
    /// End now: what is still running is told so.
    Stop,
}

/// A request that the scheduler knows.
pub(crate) struct Live {
    pub times: Times,
    /// Held while it runs, so that no step misses it.
    pub adapter: Option<Arc<HeldAdapter>>,
    pub sampling: Sampling,
    /// What its penalties look at.
    pub history: History,
    /// Alternatives wanted with the log-probabilities, if those are.
    pub top_logprobs: Option<u32>,
    /// Log-probabilities of the tokens that were drawn and are on their way through the scheduler.
    pub logprobs: VecDeque<TokenLogprobs>,
    /// What its output must follow.
    pub guided: Option<Guided>,
    /// Why the grammar could not go on.
    pub failure: Option<GrammarError>,
    pub ignore_eos: bool,
    /// Output that is given, and the position where it begins.
    given: Vec<TokenId>,
    given_at: usize,
    /// How many of it are still to come.
    given_left: usize,
    pub delivery: Delivery,
}

impl Live {
    pub fn new(
        request: &GenerateRequest,
        times: Times,
        guided: Option<Guided>,
        delivery: Delivery,
        adapter: Option<Arc<HeldAdapter>>,
    ) -> Self {
        Self {
            times,
            adapter,
            history: history_of(request),
            sampling: request.sampling.clone(),
            top_logprobs: request.top_logprobs,
            logprobs: VecDeque::new(),
            guided,
            failure: None,
            ignore_eos: request.stop.ignore_eos,
            given: request.given.clone(),
            given_at: request.prompt.len(),
            given_left: request.given.len().saturating_sub(request.emitted.len()),
            delivery,
        }
    }

    /// The token that is given for this position, if one is.
    fn given(&self, position: usize) -> Option<TokenId> {
        self.given.get(position.checked_sub(self.given_at)?).copied()
    }

    /// Chooses the next token from a logits row, which is changed by it. `ends` are the tokens that may not be drawn yet;
    /// they are when a grammar leaves nothing else. What is drawn is at once part of the history, since the next row of the
    /// same step may depend on it.
    pub fn draw(&mut self, logits: &mut [f32], position: usize, ends: &[TokenId]) -> Sampled {
        if let Some(token) = self.given(position) {
            let top = self.top_logprobs;
            self.logprobs.extend(top.map(|top| engine_runtime::logprobs(logits, token, top as usize)));
            return Sampled::Token(token);
        }
        let raw = self.top_logprobs.map(|top| (top as usize, logits.to_vec()));
        engine_runtime::adjust(logits, &self.sampling, &self.history);
        let drawn = match &self.guided {
            None => {
                suppress(logits, ends);
                engine_runtime::sample(logits, &self.sampling, position).ok().map(Sampled::Token)
            }
            Some(guided) => match draw_guided(guided, logits, &self.sampling, position, ends) {
                Ok(drawn) => drawn,
                Err(error) => {
                    self.failure = Some(error);
                    None
                }
            },
        };
        if let Some(Sampled::Token(token) | Sampled::Last(token)) = drawn {
            self.logprobs.extend(raw.map(|(top, raw)| engine_runtime::logprobs(&raw, token, top)));
            self.history.push(token);
        }
        drawn.unwrap_or(Sampled::Failed)
    }

    /// Passes on a token that was drawn or given, to go out with [`Delivery::flush`]; whether it was drawn.
    pub fn take_token(&mut self, token: TokenId, now_ns: u64) -> bool {
        self.delivery.token(token, self.logprobs.pop_front());
        let is_given = self.given_left > 0;
        if is_given {
            self.given_left -= 1;
        } else {
            self.times.token(now_ns);
        }
        !is_given
    }
}

/// What is given is part of the prompt for penalties.
fn history_of(request: &GenerateRequest) -> History {
    let drawn = &request.emitted[request.given.len().min(request.emitted.len())..];
    if request.given.is_empty() {
        return History::new(&request.sampling, &request.prompt, drawn);
    }
    let prompt = [request.prompt.as_slice(), &request.given].concat();
    History::new(&request.sampling, &prompt, drawn)
}

/// As [`Live::draw`] for an output that follows a grammar; none when the logits cannot be used.
fn draw_guided(
    guided: &Guided,
    logits: &mut [f32],
    sampling: &Sampling,
    position: usize,
    ends: &[TokenId],
) -> Result<Option<Sampled>, GrammarError> {
    let mask = guided.mask()?;
    mask.apply(logits);
    if mask.allows_beyond(ends) {
        suppress(logits, ends);
    }
    let Ok(token) = engine_runtime::sample(logits, sampling, position) else { return Ok(None) };
    // Refuses what the mask does not allow: it could only be drawn from a row without any usable token.
    let complete = guided.take(token)?;
    Ok(Some(if complete { Sampled::Last(token) } else { Sampled::Token(token) }))
}

/// What is measured of a request. All times are CLOCK_MONOTONIC, ns.
pub(crate) struct Times {
    request_id: String,
    prompt_tokens: usize,
    cached_tokens: u32,
    arrived_at_ns: u64,
    joined_at_ns: Option<u64>,
    first_token_at_ns: Option<u64>,
    last_token_at_ns: u64,
    output_tokens: u32,
}

impl Times {
    pub fn new(request_id: String, prompt_tokens: usize, arrived_at_ns: u64) -> Self {
        Self {
            request_id,
            prompt_tokens,
            cached_tokens: 0,
            arrived_at_ns,
            joined_at_ns: None,
            first_token_at_ns: None,
            last_token_at_ns: 0,
            output_tokens: 0,
        }
    }

    /// It joined the batch, and found this many tokens of its prompt in the prefix cache.
    pub fn joined(&mut self, at_ns: u64, cached_tokens: usize) {
        self.joined_at_ns = Some(at_ns);
        self.cached_tokens = u32::try_from(cached_tokens).unwrap_or(u32::MAX);
    }

    /// Where it is, for messages.
    pub fn stage(&self) -> &'static str {
        if self.joined_at_ns.is_some() { "in the engine" } else { "while it waited in the engine's queue" }
    }

    pub fn cached_tokens(&self) -> u32 {
        self.cached_tokens
    }

    pub fn token(&mut self, at_ns: u64) {
        self.first_token_at_ns.get_or_insert(at_ns);
        self.last_token_at_ns = at_ns;
        self.output_tokens += 1;
    }

    /// The record of a request that ended at `now_ns`.
    pub fn record(self, outcome: Outcome, cut_at_limit: bool, now_ns: u64) -> FinishedRequest {
        let since_arrival_ms = |at_ns: u64| at_ns.saturating_sub(self.arrived_at_ns) as f64 / 1e6;
        let gaps = self.output_tokens.saturating_sub(1);
        let first_token_at_ns = self.first_token_at_ns.unwrap_or(0);
        let itl_ms_mean =
            (gaps > 0).then(|| self.last_token_at_ns.saturating_sub(first_token_at_ns) as f64 / 1e6 / f64::from(gaps));
        FinishedRequest {
            adapter: None,
            prompt_tokens: u32::try_from(self.prompt_tokens).unwrap_or(u32::MAX),
            cached_tokens: self.cached_tokens,
            output_tokens: self.output_tokens,
            queue_ms: since_arrival_ms(self.joined_at_ns.unwrap_or(now_ns)),
            ttft_ms: self.first_token_at_ns.map_or(0.0, since_arrival_ms),
            itl_ms_mean,
            arrived_at_ns: self.arrived_at_ns,
            first_token_at_ns,
            last_token_at_ns: self.last_token_at_ns,
            outcome,
            cut_at_limit,
            request_id: self.request_id,
        }
    }
}

/// The core's limits for a stop rule.
pub(crate) fn limits(stop: StopRule, given_tokens: usize) -> Limits {
    Limits {
        given_tokens,
        max_tokens: stop.max_tokens as usize,
        min_tokens: stop.min_tokens as usize,
        ignore_eos: stop.ignore_eos,
        stop_token_ids: stop.stop_token_ids,
    }
}

/// The last event of a sequence that came to its end.
pub(crate) fn finished(reason: EndReason, cached_tokens: u32) -> HopEvent {
    let reason = match reason {
        EndReason::Stop => FinishReason::Stop,
        EndReason::Length => FinishReason::Length,
    };
    HopEvent::Finished { reason, cached_tokens }
}

/// Takes the tokens that may not be drawn yet out of a logits row. The lowest finite number, so that the
/// row stays finite and nothing that divides or subtracts makes a NaN of it.
fn suppress(row: &mut [f32], tokens: &[TokenId]) {
    for token in tokens {
        if let Some(logit) = row.get_mut(*token as usize) {
            *logit = f32::MIN;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_become_a_record() {
        let mut times = Times::new("r".into(), 5, 1_000_000);
        times.joined(3_000_000, 4);
        times.token(11_000_000);
        times.token(13_000_000);
        times.token(19_000_000);
        let record = times.record(Outcome::Finished, false, 20_000_000);
        assert_eq!((record.queue_ms, record.ttft_ms, record.itl_ms_mean), (2.0, 10.0, Some(4.0)));
        assert_eq!((record.prompt_tokens, record.cached_tokens, record.output_tokens), (5, 4, 3));
        let record = Times::new("r".into(), 5, 1_000_000).record(Outcome::Cancelled, false, 4_000_000);
        assert_eq!((record.queue_ms, record.ttft_ms, record.itl_ms_mean), (3.0, 0.0, None));
    }
}
