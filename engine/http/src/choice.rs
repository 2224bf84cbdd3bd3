//! One output: tokens from the backend to text for the client, with stop strings, calls of tools and the ends that are
//! not shown.

use crate::logprobs::{Score, Scores};
use crate::prepare::Echoed;
use crate::tools::{CallDelta, Parser, Reading};
use engine_text::{Detokenizer, StopMatch, StopMatcher, TextModel};
use engine_wire::TokenId;
use engine_wire::hop::{FinishReason, TokenLogprobs};
use engine_wire::openai::GenerateOptions;
use std::sync::Arc;

/// What one event of the backend adds to an output.
#[derive(Debug, Default)]
pub(crate) struct Piece {
    pub text: String,
    pub calls: Vec<CallDelta>,
    /// Entries of the tokens whose text is in this piece or was in one before; empty when none were asked for.
    pub scores: Vec<Score>,
}

impl Piece {
    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.calls.is_empty() && self.scores.is_empty()
    }
}

/// Turns one token stream into text.
pub(crate) struct Choice {
    detokenizer: Detokenizer,
    stop: StopMatcher,
    /// Tokens that may end the output.
    ends: Vec<TokenId>,
    /// Whether what ends the output is shown.
    include_stop: bool,
    min_tokens: u32,
    /// An end token that came last: it is text only if the output goes on after it.
    held_end: Option<(TokenId, Option<TokenLogprobs>)>,
    scores: Option<Scores>,
    /// The prompt, until the first piece takes it.
    echo: Option<Echoed>,
    /// Tokens that the output begins with and that belong to the prompt.
    given: u32,
    /// Tells calls from content, where there are tools.
    calls: Option<Parser>,
    /// Tokens taken so far, those that were given and ends included.
    taken: u32,
}

impl Choice {
    pub fn new(text: &Arc<TextModel>, options: &GenerateOptions, echo: Option<Echoed>, calls: Option<Reading>) -> Self {
        let eos = if options.ignore_eos { &[] } else { text.eos_ids() };
        let opening = calls.as_ref().map_or("", |reading| reading.format.opening());
        Self {
            detokenizer: text.detokenizer(options.skip_special_tokens).showing(opening),
            stop: StopMatcher::new(options.stop.clone(), options.include_stop),
            ends: eos.iter().chain(&options.stop_token_ids).copied().collect(),
            include_stop: options.include_stop,
            min_tokens: options.min_tokens,
            held_end: None,
            scores: options.top_logprobs.map(|_| Scores::new(text.clone())),
            given: match echo {
                Some(Echoed::Scored { given, .. }) => given,
                _ => 0,
            },
            echo,
            calls: calls.map(Parser::new),
            taken: 0,
        }
    }

    /// Takes tokens, with one entry of log-probabilities each or none at all, and appends what they show. `Some` says
    /// that the output ended, by a stop string or as it may have one call only: the tokens after that are not counted, as
    /// if they had never been asked for.
    pub fn push(&mut self, tokens: &[TokenId], logprobs: Vec<TokenLogprobs>, out: &mut Piece) -> Option<FinishReason> {
        self.begin(out);
        let mut logprobs = logprobs.into_iter();
        for token in tokens {
            let scored = logprobs.next();
            if let Some((end, scored)) = self.held_end.take()
                && self.append(end, scored, out)
            {
                return Some(self.stopped(out));
            }
            self.taken = self.taken.saturating_add(1);
            if self.ends.contains(token) {
                self.held_end = Some((*token, scored));
                continue;
            }
            if self.append(*token, scored, out) {
                return Some(self.stopped(out));
            }
        }
        None
    }

    /// Tokens of the output so far, ends included.
    pub fn output_tokens(&self) -> u32 {
        self.taken.saturating_sub(self.given)
    }

    /// Whether the output has a whole call.
    pub fn has_called(&self) -> bool {
        self.calls.as_ref().is_some_and(Parser::has_called)
    }

    /// The output ended below: appends what was held back, and says why it ended.
    pub fn finish(&mut self, reason: FinishReason, out: &mut Piece) -> FinishReason {
        self.begin(out);
        let end = self.held_end.take().filter(|_| reason == FinishReason::Length || self.include_stop);
        if let Some((end, scored)) = end
            && self.append(end, scored, out)
        {
            return self.stopped(out);
        }
        let (mut tail, mut text) = (String::new(), String::new());
        self.detokenizer.finish(&mut tail);
        let found = self.stop.push(&tail, &mut text);
        if found == StopMatch::None {
            self.stop.finish(&mut text);
        }
        let ended = self.show(found, &text, out);
        self.close(out);
        if ended { FinishReason::Stop } else { reason }
    }

    /// It ended above the backend: lets out what was held back.
    fn stopped(&mut self, out: &mut Piece) -> FinishReason {
        self.close(out);
        FinishReason::Stop
    }

    fn close(&mut self, out: &mut Piece) {
        if let Some(calls) = &mut self.calls {
            calls.finish(&mut out.text, &mut out.calls);
        }
    }

    /// The prompt comes first where it is wanted.
    fn begin(&mut self, out: &mut Piece) {
        match self.echo.take() {
            None => {}
            Some(Echoed::Text(text)) => out.text.push_str(&text),
            Some(Echoed::Scored { first, .. }) => {
                let mut text = String::new();
                self.detokenizer.push(first, &mut text);
                if let Some(scores) = &mut self.scores {
                    scores.begun(first, &text);
                }
                self.show(StopMatch::None, &text, out);
            }
        }
    }

    /// Whether the output ends with this token.
    fn append(&mut self, token: TokenId, scored: Option<TokenLogprobs>, out: &mut Piece) -> bool {
        let mut text = String::new();
        self.detokenizer.push(token, &mut text);
        if let Some(scores) = &mut self.scores {
            scores.produced(token, scored, &text);
        }
        let mut shown = String::new();
        let found = if self.taken <= self.given || self.output_tokens() <= self.min_tokens {
            shown = text;
            StopMatch::None
        } else {
            self.stop.push(&text, &mut shown)
        };
        self.show(found, &shown, out)
    }

    /// Lets out text that no stop string takes back any more, and the entries whose text is out. Whether the output
    /// ends.
    fn show(&mut self, found: StopMatch, text: &str, out: &mut Piece) -> bool {
        if let Some(scores) = &mut self.scores {
            scores.shown(text.len(), &mut out.scores);
            if found == StopMatch::Stopped {
                scores.stopped(&mut out.scores);
            }
        }
        let Some(calls) = &mut self.calls else {
            out.text.push_str(text);
            return found == StopMatch::Stopped;
        };
        calls.push(text, &mut out.text, &mut out.calls);
        found == StopMatch::Stopped || calls.is_done()
    }
}
