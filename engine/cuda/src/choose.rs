//! Choosing tokens on the device: only the tokens travel to this process, not rows of logits.
//!
//! What a request does to the logits before (bias, penalties) and what a grammar allows need the logits here: such steps go through
//! `Forward`.

use crate::{error::CudaError, kernels::ChoiceArgs};
use engine_core::TokenId;

/// How a token is chosen: the parameters of `engine_wire::sampling`, and where the token will stand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// 0 takes the likeliest, otherwise the divisor of the logits.
    pub temperature: f32,
    /// Only so many of the likeliest; 0 is all.
    pub top_k: u32,
    /// The fewest that have this share of the probability; 1 is all.
    pub top_p: f32,
    /// None that has less than this share of the likeliest one's probability.
    pub min_p: f32,
    /// The draw is a function of this and the position.
    pub seed: u64,
    /// Of the token that is chosen.
    pub position: usize,
}

impl Choice {
    /// The likeliest, the lowest id among equals.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0, position: 0 };

    pub(crate) fn args(&self) -> Result<ChoiceArgs, CudaError> {
        let wrong = |option, value: f32| Err(CudaError::Option { option, message: format!("{value} is not usable") });
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return wrong("temperature", self.temperature);
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return wrong("top_p", self.top_p);
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return wrong("min_p", self.min_p);
        }
        // Finite, so that the likeliest has weight 1 however small the temperature.
        let scale = if self.temperature == 0.0 { 0.0 } else { (1.0 / self.temperature).min(f32::MAX) };
        let (seed, position) = (self.seed, self.position as u64);
        Ok(ChoiceArgs { seed, position, scale, top_p: self.top_p, min_p: self.min_p, top_k: self.top_k })
    }
}

/// A chosen token; none where a logit was not finite.
pub(crate) fn token(chosen: i32) -> Option<TokenId> {
    TokenId::try_from(chosen).ok()
}
