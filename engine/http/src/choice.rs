//! One output: tokens from the backend to text for the client, with stop strings and the ends that are not shown.

use engine_text::{Detokenizer, StopMatch, StopMatcher, TextModel};
use engine_wire::TokenId;
use engine_wire::hop::FinishReason;
use engine_wire::openai::GenerateOptions;

/// Turns one token stream into text.
pub(crate) struct Choice {
    detokenizer: Detokenizer,
    stop: StopMatcher,
    /// Tokens that may end the output.
    ends: Vec<TokenId>,
    min_tokens: u32,
    /// An end token that came last: it is text only if the output goes on after it.
    held_end: Option<TokenId>,
    /// Tokens taken so far, ends included.
    pub output_tokens: u32,
}

impl Choice {
    pub fn new(text: &TextModel, options: &GenerateOptions) -> Self {
        let eos = if options.ignore_eos { &[] } else { text.eos_ids() };
        Self {
            detokenizer: text.detokenizer(options.skip_special_tokens),
            stop: StopMatcher::new(options.stop.clone()),
            ends: eos.iter().chain(&options.stop_token_ids).copied().collect(),
            min_tokens: options.min_tokens,
            held_end: None,
            output_tokens: 0,
        }
    }

    /// Takes tokens and appends their text. `Some` says that a stop string ended the output: the tokens after it
    /// are not counted, as if they had never been asked for.
    pub fn push(&mut self, tokens: &[TokenId], out: &mut String) -> Option<FinishReason> {
        for token in tokens {
            if let Some(end) = self.held_end.take()
                && self.append(end, out) == StopMatch::Stopped
            {
                return Some(FinishReason::Stop);
            }
            self.output_tokens = self.output_tokens.saturating_add(1);
            if self.ends.contains(token) {
                self.held_end = Some(*token);
                continue;
            }
            if self.append(*token, out) == StopMatch::Stopped {
                return Some(FinishReason::Stop);
            }
        }
        None
    }

    /// The output ended below: appends what was held back, and says why it ended.
    pub fn finish(&mut self, reason: FinishReason, out: &mut String) -> FinishReason {
        let end = self.held_end.take().filter(|_| reason == FinishReason::Length);
        if let Some(end) = end
            && self.append(end, out) == StopMatch::Stopped
        {
            return FinishReason::Stop;
        }
        let mut tail = String::new();
        self.detokenizer.finish(&mut tail);
        if self.stop.push(&tail, out) == StopMatch::Stopped {
            return FinishReason::Stop;
        }
        self.stop.finish(out);
        reason
    }

    fn append(&mut self, token: TokenId, out: &mut String) -> StopMatch {
        if self.output_tokens <= self.min_tokens {
            self.detokenizer.push(token, out);
            return StopMatch::None;
        }
        let mut text = String::new();
        self.detokenizer.push(token, &mut text);
        self.stop.push(&text, out)
    }
}
