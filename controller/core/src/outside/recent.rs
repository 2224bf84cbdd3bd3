//! The service of the last half minute, in quantiles.

use super::curve::quantile;
use super::flows::push;
use crate::{NS_PER_S, Nanos};
use serde::Serialize;
use std::collections::VecDeque;

/// Time that the figures are of.
const OVER_NS: Nanos = 30 * NS_PER_S;
/// First tokens and gaps that are kept.
const FIRSTS_KEPT: usize = 4096;
const GAPS_KEPT: usize = 32_768;
/// Whole seconds of which tokens are counted.
const SECONDS_KEPT: usize = 32;
/// Those that the rate of tokens is of.
const RATE_OVER_S: u64 = 5;

/// What streams got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Service {
    /// Streams that had their first token, and gaps between tokens; the figures below are of these, 0 of none.
    pub first_tokens: u32,
    pub gaps: u32,
    pub ttft_ms_p50: f64,
    /// At the objective's quantile.
    pub ttft_ms: f64,
    pub itl_ms_p50: f64,
    pub itl_ms: f64,
    pub tokens_per_s: f64,
}

/// Times as they came, with when.
#[derive(Clone, Debug, Default)]
pub(super) struct Recent {
    firsts_s: VecDeque<(Nanos, f64)>,
    gaps_s: VecDeque<(Nanos, f64)>,
    tokens: VecDeque<(u64, u64)>,
}

impl Recent {
    pub fn first_token(&mut self, at_ns: Nanos, ttft_s: f64) {
        push(&mut self.firsts_s, (at_ns, ttft_s), FIRSTS_KEPT);
    }

    pub fn gap(&mut self, at_ns: Nanos, gap_s: f64) {
        push(&mut self.gaps_s, (at_ns, gap_s), GAPS_KEPT);
    }

    pub fn tokens(&mut self, at_ns: Nanos, count: u32) {
        let second = at_ns / NS_PER_S;
        match self.tokens.back_mut() {
            // One that comes late counts in the second that is being counted.
            Some((latest, tokens)) if second <= *latest => *tokens = tokens.saturating_add(u64::from(count)),
            _ => push(&mut self.tokens, (second, u64::from(count)), SECONDS_KEPT),
        }
    }

    /// All gaps that are kept, s.
    pub fn gaps_s(&self) -> Vec<f64> {
        self.gaps_s.iter().map(|(_, gap_s)| *gap_s).collect()
    }

    pub fn service(&self, now_ns: Nanos, share: f64) -> Service {
        let from_ns = now_ns.saturating_sub(OVER_NS);
        let of = |ring: &VecDeque<(Nanos, f64)>| -> Vec<f64> {
            ring.iter().filter(|(at_ns, _)| (from_ns..=now_ns).contains(at_ns)).map(|(_, s)| s * 1e3).collect()
        };
        let (mut firsts_ms, mut gaps_ms) = (of(&self.firsts_s), of(&self.gaps_s));
        let second = now_ns / NS_PER_S;
        // The second that goes on is not counted, since it is not over.
        let counted = second.saturating_sub(RATE_OVER_S)..second;
        let tokens: u64 = self.tokens.iter().filter(|(at, _)| counted.contains(at)).map(|(_, tokens)| tokens).sum();
        Service {
            first_tokens: firsts_ms.len() as u32,
            gaps: gaps_ms.len() as u32,
            ttft_ms_p50: quantile(&mut firsts_ms, 0.5),
            ttft_ms: quantile(&mut firsts_ms, share),
            itl_ms_p50: quantile(&mut gaps_ms, 0.5),
            itl_ms: quantile(&mut gaps_ms, share),
            tokens_per_s: tokens as f64 / RATE_OVER_S as f64,
        }
    }
}
