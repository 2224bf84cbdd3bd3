//! Whether drafts pay, and how long they should be.
//!
//! A draft is verified by the draws that are made anyway, so it changes no output; what it can waste is the time of
//! the rows that it adds to a step. So for every sequence it is measured how often a looked-up token is the one
//! that is drawn, in two classes by how long the look-up agreed. This costs nothing while no draft is made: what
//! would have been drafted is compared with what came. With these rates, and the cost of steps as measured, the
//! tokens that are worth most are added while the step time that they are expected to save is more than what they add.
//! Every number here comes from the sequences and from what is put in, so the same inputs make the same drafts.

use crate::cost::StepCost;
use crate::forward::TokenId;
use crate::lookup::{Found, Lookup, copy};

/// Drafted tokens of one sequence in one step.
pub(crate) const DRAFT_MAX: usize = 8;

/// When to draft.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speculation {
    /// Never.
    Off,
    /// When the measured rates say that it saves time.
    #[default]
    WhenItPays,
    /// Whenever there is something to look up: for tests and measurements.
    Always,
}

/// Agreement from which a look-up counts as a long one.
const LONG_AGREEMENT: usize = 4;
/// Weight of the newest comparison in a rate.
const GAIN: f64 = 1.0 / 8.0;
/// Rates before anything was compared: low, since it costs nothing to wait for proof.
const FIRST_RATES: [f64; 2] = [0.2, 0.5];
/// What drafts must save of what they cost, to go on and to begin: between the two nothing changes.
const SAVES_TO_STAY: f64 = 1.05;
const SAVES_TO_BEGIN: f64 = 1.25;

/// The looking-up of one sequence, and how often it was right.
#[derive(Clone, Debug)]
pub(crate) struct Drafter {
    lookup: Lookup,
    rates: [f64; 2],
    /// What stands behind the sequence's end if the look-up is right, since the last `look`.
    found: Option<(Found, TokenId)>,
}

impl Default for Drafter {
    fn default() -> Self {
        Self { lookup: Lookup::default(), rates: FIRST_RATES, found: None }
    }
}

impl Drafter {
    /// Looks up what may come next; answers how likely it is to be right, token for token, if there is anything.
    pub fn look(&mut self, tokens: &[TokenId]) -> Option<f64> {
        let found = self.lookup.find(tokens)?;
        let first = copy(tokens, found, 1).first().copied()?;
        self.found = Some((found, first));
        Some(self.rates[class(found)])
    }

    /// The draft that was looked up.
    pub fn draft(&self, tokens: &[TokenId], count: usize) -> Vec<TokenId> {
        self.found.map(|(found, _)| copy(tokens, found, count)).unwrap_or_default()
    }

    /// Learns from the tokens that were drawn: of a draft of `drafted` tokens, `accepted` were right. With no draft,
    /// the first token that came is compared with what was looked up.
    pub fn learn(&mut self, drafted: usize, accepted: usize, came: Option<TokenId>) {
        let Some((found, first)) = self.found.take() else { return };
        let rate = &mut self.rates[class(found)];
        let mut note = |right: bool| *rate += (f64::from(u8::from(right)) - *rate) * GAIN;
        if drafted == 0 {
            return came.into_iter().for_each(|token| note(token == first));
        }
        (0..accepted).for_each(|_| note(true));
        if accepted < drafted {
            note(false);
        }
    }
}

fn class(found: Found) -> usize {
    usize::from(found.agreement >= LONG_AGREEMENT)
}

/// What a sequence could draft.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    /// How likely a token is right if those before it are.
    pub rate: f64,
    /// Tokens at most.
    pub most: usize,
}

/// A step as it stands before drafts are added.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Base {
    pub tokens: usize,
    /// Decoding sequences in it.
    pub decodes: usize,
    /// Whether the last step had drafts.
    pub drafting: bool,
}

/// Tokens to draft for each candidate: those that save the most time by expectation, or none.
pub(crate) fn lengths(candidates: &[Candidate], base: Base, cost: &StepCost) -> Vec<usize> {
    let mut lengths = vec![0; candidates.len()];
    let (Some(now_ns), Some(alone_ns)) = (cost.estimate_ns(base.tokens), cost.estimate_ns(base.decodes)) else {
        return lengths;
    };
    // A right draft spares a row of a later step: a share of what a step of the decodes alone takes.
    let saved_ns_per_token = alone_ns / base.decodes.max(1) as f64;
    let threshold = if base.drafting { SAVES_TO_STAY } else { SAVES_TO_BEGIN };
    let (mut expected, mut best_gain, mut best) = (0.0, 0.0, 0);
    let order = by_worth(candidates);
    for (index, (worth, _)) in order.iter().enumerate() {
        expected += worth;
        let added_ns = cost.estimate_ns(base.tokens + index + 1).unwrap_or(now_ns) - now_ns;
        let gain = expected * saved_ns_per_token - threshold * added_ns;
        if gain > best_gain {
            (best_gain, best) = (gain, index + 1);
        }
    }
    order[..best].iter().for_each(|(_, candidate)| lengths[*candidate] += 1);
    lengths
}

/// All tokens that could be drafted, as (probability that it is right, candidate), the likeliest first. A candidate's
/// own come in their order, since each is at most as likely as the one before.
fn by_worth(candidates: &[Candidate]) -> Vec<(f64, usize)> {
    let mut order = Vec::new();
    for (index, candidate) in candidates.iter().enumerate() {
        let mut worth = 1.0;
        for _ in 0..candidate.most {
            worth *= candidate.rate;
            order.push((worth, index));
        }
    }
    // Stable, so that equals stay in the candidates' order.
    order.sort_by(|a, b| b.0.total_cmp(&a.0));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps of a fixed part and a part for each token.
    fn cost(fixed_ns: u64, token_ns: u64) -> StepCost {
        let mut cost = StepCost::default();
        for tokens in [1, 2, 4, 8, 16, 32, 64, 128] {
            cost.observe(tokens, fixed_ns + token_ns * tokens as u64);
        }
        cost
    }

    fn check(rates: &[f64], drafting: bool, cost: &StepCost, expected: &[usize]) {
        let candidates: Vec<_> = rates.iter().map(|rate| Candidate { rate: *rate, most: DRAFT_MAX }).collect();
        let base = Base { tokens: rates.len(), decodes: rates.len(), drafting };
        assert_eq!(lengths(&candidates, base, cost), expected, "{rates:?}");
    }

    #[test]
    fn length_follows_from_rate_and_cost() {
        // One stream, a row costs a twentieth of a step.
        let cheap = cost(1900, 100);
        check(&[0.95], false, &cheap, &[8]);
        check(&[0.55], false, &cheap, &[4]);
        check(&[0.05], false, &cheap, &[0]);
        // It goes on where it would not begin.
        check(&[0.06], true, &cheap, &[1]);
        check(&[0.06], false, &cheap, &[0]);
        // Eight streams, of which one repeats itself.
        check(&[0.1, 0.1, 0.95, 0.1, 0.1, 0.1, 0.1, 0.1], false, &cheap, &[0, 0, 8, 0, 0, 0, 0, 0]);
        check(&[0.1; 8], false, &cheap, &[0; 8]);
        // Where rows cost as much as steps, no draft can pay.
        check(&[0.99], false, &cost(0, 1000), &[0]);
        check(&[0.99], true, &StepCost::default(), &[0]);
    }

    #[test]
    fn rates_are_learnt_without_drafting_and_by_drafting() {
        let mut drafter = Drafter::default();
        let mut tokens: Vec<TokenId> = [1, 2, 3, 4, 5].repeat(6);
        let first = drafter.look(&tokens).expect("it repeats");
        for _ in 0..20 {
            drafter.look(&tokens);
            let next = tokens[tokens.len() - 5];
            drafter.learn(0, 0, Some(next));
            tokens.push(next);
        }
        let proven = drafter.look(&tokens).expect("it repeats");
        assert!(first <= 0.5 && proven > 0.9, "{first}, {proven}");
        assert_eq!(drafter.draft(&tokens, 3), tokens[tokens.len() - 5..tokens.len() - 2]);
        drafter.learn(8, 0, None);
        let after = drafter.look(&tokens).expect("it repeats");
        assert!(after < proven);
        // A short agreement has its own rate.
        tokens.extend([90, 91, 92, 90, 91]);
        assert_eq!(drafter.look(&tokens), Some(FIRST_RATES[0]));
    }
}
