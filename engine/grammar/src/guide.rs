//! One output's way through its grammar.

use crate::GrammarError;
use crate::compile::compile_error;
use crate::error::shortened;
use engine_wire::TokenId;
use llguidance::api::{StopReason, TopLevelGrammar};
use llguidance::toktrie::SimpleVob;
use llguidance::{Matcher, ParserFactory};

/// Which tokens may come at one position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    bits: SimpleVob,
}

/// The state of one output. After an error it gives the same error again.
pub struct Guide {
    matcher: Matcher,
    /// Tokens taken so far.
    position: usize,
}

impl Guide {
    pub(crate) fn new(factory: &ParserFactory, grammar: TopLevelGrammar) -> Result<Self, GrammarError> {
        let parser = factory.create_parser(grammar).map_err(|error| compile_error(&error.to_string()))?;
        let mut guide = Self { matcher: Matcher::new(Ok(parser)), position: 0 };
        // Finds out whether the empty text is already all that there is.
        guide.matcher.consume_tokens(&[]).map_err(|error| guide.failure(&error.to_string()))?;
        Ok(guide)
    }

    /// Takes the next token of the output. An end token is taken where the output may end.
    pub fn take(&mut self, token: TokenId) -> Result<(), GrammarError> {
        let taken = self.matcher.try_consume_tokens(&[token]).map_err(|error| self.failure(&error.to_string()))?;
        if taken == 0 {
            return Err(GrammarError::NotAllowed { token, position: self.position });
        }
        self.position += 1;
        Ok(())
    }

    /// How many of these tokens, from the first on, could be taken one after the other. The state does not change: for
    /// drafts of a speculation.
    pub fn allowed_prefix(&mut self, tokens: &[TokenId]) -> Result<usize, GrammarError> {
        self.matcher.validate_tokens(tokens).map_err(|error| self.failure(&error.to_string()))
    }

    /// Gives the last `tokens` tokens back, as if they had never been taken.
    pub fn give_back(&mut self, tokens: usize) -> Result<(), GrammarError> {
        self.matcher.rollback(tokens).map_err(|error| self.failure(&error.to_string()))?;
        self.position = self.position.saturating_sub(tokens);
        Ok(())
    }

    /// Whether the output is complete: nothing but its end may follow.
    pub fn is_complete(&self) -> bool {
        self.matcher.is_stopped() && self.matcher.stop_reason().is_ok()
    }

    /// The tokens that may come next; end tokens among them where the output may end. An output that is complete has only
    /// those.
    pub fn mask(&mut self) -> Result<Mask, GrammarError> {
        let bits = self.matcher.compute_mask_or_eos().map_err(|error| self.failure(&error.to_string()))?;
        Ok(Mask { bits })
    }

    fn failure(&self, message: &str) -> GrammarError {
        let message = shortened(message);
        if message.starts_with("panic:") {
            return GrammarError::Failed { message };
        }
        match self.matcher.stop_reason() {
            StopReason::NoExtensionBias => GrammarError::DeadEnd,
            _ if message.contains("NoExtensionBias") => GrammarError::DeadEnd,
            _ => GrammarError::TooComplex { message },
        }
    }
}

impl Mask {
    pub fn allows(&self, token: TokenId) -> bool {
        (token as usize) < self.bits.len() && self.bits.is_allowed(token)
    }

    /// Whether a token may come that is none of `others`.
    pub fn allows_beyond(&self, others: &[TokenId]) -> bool {
        let mut others: Vec<TokenId> = others.iter().copied().filter(|token| self.allows(*token)).collect();
        others.sort_unstable();
        others.dedup();
        self.bits.num_set() > others.len()
    }

    /// Takes the tokens that may not come out of a row of logits: they get the lowest finite number, whose weight is zero.
    pub fn apply(&self, logits: &mut [f32]) {
        let words = self.bits.as_slice();
        for (index, chunk) in logits.chunks_mut(u32::BITS as usize).enumerate() {
            match words.get(index).copied().unwrap_or(0) {
                u32::MAX => {}
                0 => chunk.fill(f32::MIN),
                word => {
                    for (bit, logit) in chunk.iter_mut().enumerate() {
                        if word & (1 << bit) == 0 {
                            *logit = f32::MIN;
                        }
                    }
                }
            }
        }
    }
}
