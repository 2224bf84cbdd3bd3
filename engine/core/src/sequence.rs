//! One sequence: its tokens, how far they are computed, its blocks, and when it ends.

use crate::forward::{AdapterId, BlockId, TokenId};
use crate::prefix::{BlockKey, Link};
use crate::queue::{Rank, Standing};
use crate::speculation::Drafter;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Name of a sequence, chosen by the caller and unique while the sequence lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SequenceId(pub u64);

/// When a sequence ends, in output tokens. Those emitted by an earlier instance count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Output tokens in all.
    pub max_tokens: usize,
    /// Output tokens before which neither end-of-sequence nor a stop token ends it.
    pub min_tokens: usize,
    /// Output tokens that are not drawn but known before: none of them ends it by what it is.
    pub given_tokens: usize,
    /// Go on after the model's end-of-sequence tokens.
    pub ignore_eos: bool,
    /// More tokens that end it.
    pub stop_token_ids: Vec<TokenId>,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndReason {
    /// An end-of-sequence or stop token.
    Stop,
    /// `max_tokens`, the context, or the whole KV pool is used up.
    Length,
}

/// A low-rank adapter that a sequence is computed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapter {
    /// As the device calls it.
    pub id: AdapterId,
    /// Digest of what it is: cached prefixes are shared within one revision only.
    pub revision: Arc<str>,
}

/// A sequence to serve.
#[derive(Clone, Debug, PartialEq)]
pub struct Submission {
    pub id: SequenceId,
    /// Whose it is: cached prefixes are shared within a tenant only, and tenants take turns.
    pub tenant: Arc<str>,
    /// None for the model as it is.
    pub adapter: Option<Adapter>,
    /// At least one token.
    pub prompt: Vec<TokenId>,
    /// Output that was already delivered elsewhere: it is computed again, never sampled again.
    pub emitted: Vec<TokenId>,
    pub limits: Limits,
    /// Lower goes first among its tenant's, and is preempted last.
    pub priority: i32,
    /// By some clock of the caller's, ns: the earliest goes first among those of one priority.
    pub deadline_ns: u64,
    /// Whether drafts may be made for it: not where a draw depends on more than the tokens before it.
    pub speculate: bool,
}

/// What all sequences of a model share in judging an end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndRule {
    /// Tokens that end a sequence unless its `ignore_eos` is set.
    pub eos_token_ids: Vec<TokenId>,
    /// Longest sequence, prompt and output together.
    pub max_sequence_tokens: usize,
}

impl EndRule {
    /// Whether the output so far, of which `last` is the newest token, ends the sequence.
    /// `output_tokens` and `sequence_tokens` count `last`.
    pub fn end(
        &self,
        limits: &Limits,
        last: TokenId,
        output_tokens: usize,
        sequence_tokens: usize,
    ) -> Option<EndReason> {
        let may_stop = output_tokens >= limits.min_tokens && output_tokens > limits.given_tokens;
        if may_stop && self.is_stop(limits, last) {
            return Some(EndReason::Stop);
        }
        let full = output_tokens >= limits.max_tokens || sequence_tokens >= self.max_sequence_tokens;
        full.then_some(EndReason::Length)
    }

    /// Whether this token ends a sequence with these limits, once `min_tokens` are there.
    pub fn is_stop(&self, limits: &Limits, token: TokenId) -> bool {
        (!limits.ignore_eos && self.eos_token_ids.contains(&token)) || limits.stop_token_ids.contains(&token)
    }

    /// The end that a resumed sequence had already reached with its emitted tokens, if any.
    pub(crate) fn end_of_emitted(&self, submission: &Submission) -> Option<EndReason> {
        let Submission { prompt, emitted, limits, .. } = submission;
        if limits.max_tokens == 0 {
            return Some(EndReason::Length);
        }
        emitted.iter().enumerate().find_map(|(i, token)| self.end(limits, *token, i + 1, prompt.len() + i + 1))
    }
}

/// Preemptions after which a sequence gives way only to those that were let in before it.
const PREEMPTIONS_MAX: u32 = 2;

/// A sequence inside the scheduler.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    /// Prompt, then output.
    pub tokens: Vec<TokenId>,
    pub prompt_tokens: usize,
    /// Positions whose KV is in the blocks.
    pub computed: usize,
    /// Whether the whole prefix has been computed, so that one token a step is left to do.
    pub decoding: bool,
    /// Number of its first admission; none before that.
    pub admission: Option<u64>,
    pub preemptions: u32,
    pub rank: Rank,
    /// Those before the attention's window are [`NO_BLOCK`](crate::blocks::NO_BLOCK).
    pub blocks: Vec<BlockId>,
    /// How many of those there are.
    pub released: usize,
    pub limits: Limits,
    pub tenant: Arc<str>,
    pub adapter: Option<Adapter>,
    /// The beginning of its chain of keys.
    root: BlockKey,
    /// Keys of its full blocks, as far as they were asked for.
    keys: Vec<BlockKey>,
    /// How many of its first blocks have been in the cache while it held them.
    pub published: usize,
    /// None when no drafts may be made for it.
    pub drafter: Option<Drafter>,
}

impl Sequence {
    pub fn new(submission: Submission, root: BlockKey) -> Self {
        let Submission { id: _, tenant, adapter, prompt, emitted, limits, priority, deadline_ns, speculate } =
            submission;
        let prompt_tokens = prompt.len();
        let mut tokens = prompt;
        tokens.extend(emitted);
        Self {
            tokens,
            prompt_tokens,
            computed: 0,
            decoding: false,
            admission: None,
            preemptions: 0,
            rank: Rank { priority, deadline_ns },
            blocks: Vec::new(),
            released: 0,
            limits,
            tenant,
            adapter,
            root,
            keys: Vec::new(),
            published: 0,
            drafter: speculate.then(Drafter::default),
        }
    }

    /// Its `index`-th block, which must be full of tokens, as the prefix cache knows it. Keys are kept, so that
    /// each block is hashed once however often it is asked for.
    pub fn link(&mut self, index: usize, parent: Option<BlockId>, block_tokens: usize) -> Link<'_> {
        for full in self.keys.len()..=index {
            let before = full.checked_sub(1).map_or(self.root, |last| self.keys[last]);
            self.keys.push(before.child(&self.tokens[full * block_tokens..(full + 1) * block_tokens]));
        }
        let tokens = &self.tokens[index * block_tokens..(index + 1) * block_tokens];
        let adapter = self.adapter.as_ref().map(|adapter| &adapter.revision);
        Link { key: self.keys[index], tenant: &self.tenant, adapter, parent, tokens }
    }

    /// Its place among those that have been let in.
    pub fn standing(&self) -> Standing {
        let admission = self.admission.unwrap_or(u64::MAX);
        match self.preemptions < PREEMPTIONS_MAX {
            true => Standing { class: 1, priority: self.rank.priority, admission },
            false => Standing { class: 0, priority: 0, admission },
        }
    }

    /// Forgets what its blocks held, which are gone.
    pub fn restart(&mut self) {
        self.computed = 0;
        self.published = 0;
        self.released = 0;
        self.decoding = false;
    }

    pub fn output_tokens(&self) -> usize {
        self.tokens.len() - self.prompt_tokens
    }

    /// Tokens that may still be drawn.
    pub fn output_left(&self, rule: &EndRule) -> usize {
        let context = rule.max_sequence_tokens.saturating_sub(self.tokens.len());
        self.limits.max_tokens.saturating_sub(self.output_tokens()).min(context)
    }

    /// Tokens whose KV is still to be computed before the next one can be sampled.
    pub fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(limits: Limits, last: TokenId, output_tokens: usize, expected: Option<EndReason>) {
        let rule = EndRule { eos_token_ids: vec![2], max_sequence_tokens: 20 };
        assert_eq!(rule.end(&limits, last, output_tokens, output_tokens + 10), expected, "{limits:?} {last}");
    }

    #[test]
    fn ends() {
        let limits =
            Limits { max_tokens: 8, min_tokens: 0, given_tokens: 0, ignore_eos: false, stop_token_ids: vec![5] };
        check(limits.clone(), 1, 1, None);
        check(limits.clone(), 2, 1, Some(EndReason::Stop));
        check(limits.clone(), 5, 1, Some(EndReason::Stop));
        check(limits.clone(), 1, 8, Some(EndReason::Length));
        check(limits.clone(), 2, 8, Some(EndReason::Stop));
        check(Limits { ignore_eos: true, ..limits.clone() }, 2, 1, None);
        check(Limits { ignore_eos: true, ..limits.clone() }, 5, 1, Some(EndReason::Stop));
        check(Limits { min_tokens: 3, ..limits.clone() }, 2, 2, None);
        check(Limits { min_tokens: 3, ..limits.clone() }, 2, 3, Some(EndReason::Stop));
        check(Limits { given_tokens: 2, ..limits.clone() }, 2, 2, None);
        check(Limits { given_tokens: 2, ..limits.clone() }, 2, 3, Some(EndReason::Stop));
        check(Limits { max_tokens: 99, ..limits }, 1, 10, Some(EndReason::Length));
    }
}
