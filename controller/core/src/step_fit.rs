//! What a step of an engine takes: a fixed time, some for each sequence in it, and some for each prompt token.
//!
//! Between two looks an engine has been busy for
//!
//! ```text
//! fixed x steps + per sequence x tokens decoded + per prompt token x prompt tokens
//! ```
//!
//! since a step decodes one token of each sequence in it. Weighted least squares over looks tell the three apart as far
//! as batches have differed. Where they have not, two weak assumptions stand in: how a step splits between its fixed
//! part and its sequences, and that prompt tokens cost nothing.
//!
//! Looks are forgotten for newer ones at about the same batch, and hardly for others: a fleet that has been made larger
//! sees small batches only, and must not unlearn what larger ones take, or it would be made larger still.

use serde::{Deserialize, Serialize};

/// Busy time at about one batch over which looks at it are forgotten, s, over all instances of the model.
pub(crate) const MEMORY_BUSY_S: f64 = 120.0;
/// Busy time at other batches over which they are, s.
const MEMORY_OTHERS_S: f64 = 100.0 * MEMORY_BUSY_S;
/// Batches that are told apart, by powers of two; the last takes all that are larger.
const SIZES: usize = 8;
/// Busy time from which a batch counts as measured, s.
const MEASURED_S: f64 = 0.5;
/// Assumed share that one sequence has in a step by itself. A device that is bound by its memory has less, so what is
/// said of batches beyond those measured is too little rather than too much.
pub(crate) const SEQUENCE_SHARE: f64 = 0.3;
/// Weight of the assumptions against measurements that say nothing else.
const ASSUMED_WEIGHT: f64 = 0.01;
/// A pivot below this share of its diagonal is no direction that was measured.
const SINGULAR: f64 = 1e-9;

/// What an engine did between two looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Look {
    pub(crate) busy_s: f64,
    pub(crate) steps: f64,
    pub(crate) decode_tokens: f64,
    pub(crate) prefill_tokens: f64,
}

/// Time of a step by its parts, s.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StepCost {
    pub(crate) fixed_s: f64,
    pub(crate) per_sequence_s: f64,
    pub(crate) per_prompt_token_s: f64,
}

impl StepCost {
    /// A step that decodes one token of each of so many sequences, s.
    #[cfg(test)]
    pub(crate) fn step_s(&self, sequences: f64) -> f64 {
        self.fixed_s + self.per_sequence_s * sequences
    }
}

/// What was measured, by size of the batch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct StepFit {
    sizes: [Sums; SIZES],
}

/// Sums over looks of what least squares need: the products of steps, decoded tokens and prompt tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Sums {
    busy_s: f64,
    /// The largest batch among them, forgotten like them.
    largest: f64,
    products: [[f64; 3]; 3],
    with_busy: [f64; 3],
}

impl Sums {
    fn add(&mut self, other: &Self) {
        self.busy_s += other.busy_s;
        self.largest = self.largest.max(other.largest);
        for (row, others) in self.products.iter_mut().zip(&other.products) {
            row.iter_mut().zip(others).for_each(|(sum, other)| *sum += other);
        }
        self.with_busy.iter_mut().zip(&other.with_busy).for_each(|(sum, other)| *sum += other);
    }

    fn fade(&mut self, keep: f64) {
        self.busy_s *= keep;
        self.products.iter_mut().flatten().chain(&mut self.with_busy).for_each(|sum| *sum *= keep);
    }
}

impl StepFit {
    /// Takes in one look.
    pub(crate) fn observe(&mut self, look: &Look) {
        let batch = (look.decode_tokens / look.steps.max(1.0)).max(0.0);
        let size = (batch.max(1.0).log2() as usize).min(SIZES - 1);
        let causes = [look.steps, look.decode_tokens, look.prefill_tokens];
        let seen = Sums {
            busy_s: look.busy_s,
            largest: batch,
            products: causes.map(|cause| causes.map(|other| cause * other)),
            with_busy: causes.map(|cause| cause * look.busy_s),
        };
        let (own, others) = (fading(look.busy_s, MEMORY_BUSY_S), fading(look.busy_s, MEMORY_OTHERS_S));
        for (at, sums) in self.sizes.iter_mut().enumerate() {
            sums.fade(if at == size { own } else { others });
        }
        let sums = &mut self.sizes[size];
        // It lies between its size's least and twice that, so it is forgotten with no harm.
        sums.largest *= own;
        sums.add(&seen);
    }

    fn all(&self) -> Sums {
        self.sizes.iter().fold(Sums::default(), |mut all, sums| {
            all.add(sums);
            all
        })
    }

    /// Busy time that is remembered, s.
    pub(crate) fn busy_s(&self) -> f64 {
        self.sizes.iter().map(|sums| sums.busy_s).sum()
    }

    /// The largest batch that was measured; 0 before any.
    pub(crate) fn largest(&self) -> f64 {
        let measured = self.sizes.iter().filter(|sums| sums.busy_s >= MEASURED_S);
        measured.map(|sums| sums.largest).fold(0.0, f64::max)
    }

    /// The parts of a step's time, none of them negative; none while nothing was decoded. Where batches have not differed
    /// a sequence is assumed to have the given share in a step by itself.
    pub(crate) fn cost(&self, sequence_share: f64) -> Option<StepCost> {
        let Sums { mut products, with_busy, .. } = self.all();
        let steps2 = products[0][0];
        if steps2 <= 0.0 || products[1][1] <= 0.0 {
            return None;
        }
        // As if it had been measured, once, that a sequence has its assumed share of a step and a prompt token none.
        let split = [-sequence_share, 1.0 - sequence_share];
        for (row, a) in split.into_iter().enumerate() {
            for (column, b) in split.into_iter().enumerate() {
                products[row][column] += ASSUMED_WEIGHT * steps2 * a * b;
            }
        }
        products[2][2] *= 1.0 + ASSUMED_WEIGHT;
        let candidates = (1..8u8).filter_map(|parts| solve(&products, &with_busy, parts));
        let (_, best) = candidates.min_by(|a, b| a.0.total_cmp(&b.0))?;
        let cost = StepCost { fixed_s: best[0], per_sequence_s: best[1], per_prompt_token_s: best[2] };
        (cost.fixed_s + cost.per_sequence_s > 0.0).then_some(cost)
    }
}

fn fading(busy_s: f64, memory_s: f64) -> f64 {
    (-busy_s / memory_s).exp()
}

/// The least squares with only these parts, as bits, and what is left of the squared error but for a constant; none
/// where a part comes out negative or was not measured. The best over all sets of parts is the best without negative ones.
fn solve(products: &[[f64; 3]; 3], with_busy: &[f64; 3], parts: u8) -> Option<(f64, [f64; 3])> {
    let used = |part: usize| parts >> part & 1 == 1;
    let mut matrix = *products;
    let mut right = *with_busy;
    for pivot in (0..3).filter(|part| used(*part)) {
        let own = matrix[pivot][pivot];
        if !own.is_finite() || own <= SINGULAR * products[pivot][pivot] || own <= 0.0 {
            return None;
        }
        for row in (0..3).filter(|row| used(*row) && *row != pivot) {
            let factor = matrix[row][pivot] / own;
            let subtracted = matrix[pivot];
            matrix[row].iter_mut().zip(subtracted).for_each(|(value, pivot)| *value -= factor * pivot);
            right[row] -= factor * right[pivot];
        }
    }
    let mut found = [0.0; 3];
    for part in (0..3).filter(|part| used(*part)) {
        found[part] = right[part] / matrix[part][part];
        if !found[part].is_finite() || found[part] < 0.0 {
            return None;
        }
    }
    let explained: f64 = found.iter().zip(with_busy).map(|(part, with)| part * with).sum();
    // At the least squares the squared error is a constant less what is explained.
    Some((-explained, found))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(cost: &StepCost, steps: f64, batch: f64, prefill_tokens: f64) -> Look {
        let busy_s = steps * cost.step_s(batch) + prefill_tokens * cost.per_prompt_token_s;
        Look { busy_s, steps, decode_tokens: steps * batch, prefill_tokens }
    }

    fn fitted(cost: &StepCost, looks: &[(f64, f64)]) -> StepCost {
        let mut fit = StepFit::default();
        for (batch, prefill_tokens) in looks {
            fit.observe(&look(cost, 10.0, *batch, *prefill_tokens));
        }
        fit.cost(SEQUENCE_SHARE).expect("something was decoded")
    }

    #[test]
    fn the_parts_are_told_apart_when_batches_differ() {
        let cost = StepCost { fixed_s: 0.025, per_sequence_s: 0.0008, per_prompt_token_s: 0.0002 };
        let looks: Vec<(f64, f64)> =
            (0..40).map(|at| (1.0 + f64::from(at % 4), f64::from(at * 7 % 5) * 300.0)).collect();
        let found = fitted(&cost, &looks);
        assert!((found.fixed_s / cost.fixed_s - 1.0).abs() < 0.03, "{found:?}");
        assert!((found.step_s(16.0) / cost.step_s(16.0) - 1.0).abs() < 0.1, "{found:?}");
        assert!((found.per_prompt_token_s / cost.per_prompt_token_s - 1.0).abs() < 0.03, "{found:?}");
    }

    #[test]
    fn one_batch_tells_the_step_and_no_more() {
        let cost = StepCost { fixed_s: 0.025, per_sequence_s: 0.0008, per_prompt_token_s: 0.0 };
        let found = fitted(&cost, &[(1.0, 0.0); 20]);
        assert!((found.step_s(1.0) - cost.step_s(1.0)).abs() < 1e-4, "{found:?}");
        // What larger batches take is assumed, on the careful side.
        assert!((found.per_sequence_s / found.step_s(1.0) - SEQUENCE_SHARE).abs() < 0.01, "{found:?}");
    }

    #[test]
    fn nothing_is_negative_and_nothing_is_made_up() {
        // Larger batches that take less: no sequence has a negative cost.
        let mut fit = StepFit::default();
        fit.observe(&Look { busy_s: 1.0, steps: 10.0, decode_tokens: 10.0, prefill_tokens: 0.0 });
        fit.observe(&Look { busy_s: 0.5, steps: 10.0, decode_tokens: 80.0, prefill_tokens: 0.0 });
        let cost = fit.cost(SEQUENCE_SHARE).expect("decoded");
        assert!(cost.fixed_s > 0.0 && cost.per_sequence_s == 0.0 && cost.per_prompt_token_s == 0.0, "{cost:?}");
        assert_eq!(StepFit::default().cost(SEQUENCE_SHARE), None);
        fit = StepFit::default();
        fit.observe(&Look { busy_s: 1.0, steps: 10.0, decode_tokens: 0.0, prefill_tokens: 500.0 });
        assert_eq!(fit.cost(SEQUENCE_SHARE), None);
    }
}
