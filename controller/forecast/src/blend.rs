//! The experts' quantiles mixed: three rules, and over each group of quantiles a fourth that chooses between them.
//!
//! The quantiles of a group (low, middle, high, highest) are weighed together, since the far ones alone say too little:
//! one bin in ten tells something of the 0.9 quantile.

use crate::QUANTILES;
use crate::mixture::{Aggregation, Density, Likelihood};
use serde::{Deserialize, Serialize};

pub(crate) const COUNT: usize = QUANTILES.len();
/// Group of each quantile, the share of a group's quantiles among all, and the loss of each quantile for normal errors
/// of unit size.
const GROUP: [usize; COUNT] = [0, 0, 0, 1, 1, 2, 2, 3, 3];
const GROUPS: usize = 4;
const GROUP_SHARE: [f64; GROUPS] = [3.0 / 9.0, 2.0 / 9.0, 2.0 / 9.0, 2.0 / 9.0];
const NORMAL_LOSS: [f64; COUNT] = [0.103, 0.175, 0.3178, 0.399, 0.3178, 0.175, 0.103, 0.048, 0.027];
/// How much an expert's weight over one group owes to its skill over all of them.
const SHARED: f64 = 0.4;
/// Rules that are chosen between, and what is trusted in each at first: the guarded one is slow and the others have no
/// guarantee.
const RULES: usize = 3;
const AT_FIRST: [f64; RULES] = [0.1, 0.3, 0.6];

/// What the rules made of each quantile.
pub(crate) type Mixes = [[f32; RULES]; COUNT];

/// Weights of the experts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Blend {
    prior: Vec<f64>,
    groups: Vec<Group>,
    density: Density,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Group {
    guarded: Aggregation,
    quick: Likelihood,
    between: Aggregation,
}

/// What experts said of one bin, quantile by quantile.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Said(pub(crate) Vec<f32>);

impl Said {
    /// One quantile, by expert.
    pub(crate) fn at(&self, quantile: usize) -> &[f32] {
        let experts = self.0.len() / COUNT;
        &self.0[quantile * experts..(quantile + 1) * experts]
    }
}

impl Blend {
    /// Weights to begin with, which sum to 1.
    pub(crate) fn new(prior: Vec<f64>) -> Self {
        let group = Group {
            guarded: Aggregation::new(&prior),
            quick: Likelihood::new(prior.len()),
            between: Aggregation::new(&AT_FIRST),
        };
        Self { density: Density::new(prior.len()), groups: vec![group; GROUPS], prior }
    }

    /// What the rules make of each quantile, and what that comes to.
    pub(crate) fn mix(&self, said: &Said, ahead: usize) -> (Mixes, [f64; COUNT]) {
        let (mut mixes, mut mixed) = (Mixes::default(), [0.0; COUNT]);
        let by_density = self.density.weights(&self.prior, ahead);
        let by_loss: Vec<_> = self.groups.iter().map(|group| group.quick.weights(&self.prior, ahead)).collect();
        for at in 0..COUNT {
            let (group, said) = (&self.groups[GROUP[at]], said.at(at));
            let guarded = group.guarded.mix(said);
            let quick = by_loss[GROUP[at]].as_ref().map_or(guarded, |weights| dot(said, weights));
            mixes[at] = [guarded, quick, dot(said, &by_density)].map(|mix| mix as f32);
            mixed[at] = group.between.mix(&mixes[at]);
        }
        (mixes, mixed)
    }

    /// Moves the weights by what came of it. `usual` is the usual size of an error.
    pub(crate) fn learn(&mut self, said: &Said, mixes: &Mixes, mixed: &[f64; COUNT], count: f64, usual: f64) {
        let experts = self.prior.len();
        // By how much each expert did better than the guarded mix by its linearised loss, and its loss: over each group
        // and, last, over all quantiles.
        let mut sums = vec![(0.0, 0.0); experts * (GROUPS + 1)];
        let mut between = [[0.0; RULES]; GROUPS];
        let (in_groups, in_all) = sums.split_at_mut(experts * GROUPS);
        for (at, q) in QUANTILES.into_iter().enumerate() {
            let norm = 1.0 / (NORMAL_LOSS[at] * COUNT as f64);
            let mix = f64::from(mixes[at][0]);
            let by_mix = norm * slope(q, count, mix) / usual;
            let own = &mut in_groups[GROUP[at] * experts..];
            for ((said, own), all) in said.at(at).iter().zip(own).zip(in_all.iter_mut()) {
                let said = f64::from(*said);
                let (gain, loss) = (by_mix * (mix - said), norm * pinball(q, count, said));
                (own.0, own.1) = (own.0 + gain, own.1 + loss);
                (all.0, all.1) = (all.0 + gain, all.1 + loss);
            }
            let by_mixed = norm * slope(q, count, mixed[at]) / usual;
            for (to, mix) in between[GROUP[at]].iter_mut().zip(mixes[at]) {
                *to += by_mixed * (mixed[at] - f64::from(mix));
            }
        }
        for (at, group) in self.groups.iter_mut().enumerate() {
            let own = (1.0 - SHARED) / GROUP_SHARE[at];
            let sums = || in_groups[at * experts..].iter().zip(in_all.iter());
            group.guarded.learn(&self.prior, sums().map(|(group, all)| own * group.0 + SHARED * all.0));
            group.quick.learn(sums().map(|(group, all)| own * group.1 + SHARED * all.1));
            group.between.learn(&AT_FIRST, between[at].iter().map(|gain| gain / GROUP_SHARE[at]));
        }
        let [low, middle, high] = [0, 3, 6].map(|at| said.at(at));
        let fans = low.iter().zip(middle).zip(high).map(|((low, middle), high)| [*low, *middle, *high].map(f64::from));
        self.density.learn(fans, count);
    }

    /// What each expert counts for at a quantile, in order of the experts; the weights sum to 1.
    pub(crate) fn weights(&self, quantile: usize, ahead: usize) -> Vec<f64> {
        let Some(group) = GROUP.get(quantile).map(|group| &self.groups[*group]) else { return Vec::new() };
        let guarded = group.guarded.weights();
        let quick = group.quick.weights(&self.prior, ahead).unwrap_or_else(|| guarded.to_vec());
        let dense = self.density.weights(&self.prior, ahead);
        let share = group.between.weights();
        let all = guarded.iter().zip(&quick).zip(&dense);
        all.map(|((guarded, quick), dense)| share[0] * guarded + share[1] * quick + share[2] * dense).collect()
    }
}

fn dot(said: &[f32], weights: &[f64]) -> f64 {
    said.iter().zip(weights).map(|(said, weight)| f64::from(*said) * weight).sum()
}

/// Pinball loss of stating `stated` as the `q` quantile of what turned out to be `count`.
pub fn pinball(q: f64, count: f64, stated: f64) -> f64 {
    if count >= stated { q * (count - stated) } else { (1.0 - q) * (stated - count) }
}

/// Its slope in `stated`.
fn slope(q: f64, count: f64, stated: f64) -> f64 {
    if count < stated { 1.0 - q } else { -q }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two experts, of whom the second is far off from bin 100 on and the first until then.
    #[test]
    fn weight_goes_to_who_is_right_and_comes_back() {
        let mut blend = Blend::new(vec![0.5; 2]);
        let mut share = Vec::new();
        for bin in 0..600_u32 {
            let count = f64::from(20 + bin * 7 % 5);
            let right = QUANTILES.map(|q| 20.0 + 4.0 * q as f32);
            let wrong = right.map(|value| value + 15.0);
            let pair = if bin < 100 { [wrong, right] } else { [right, wrong] };
            let said = Said((0..COUNT).flat_map(|at| pair.map(|expert| expert[at])).collect());
            let (mixes, mixed) = blend.mix(&said, 1);
            blend.learn(&said, &mixes, &mixed, count, 2.0);
            if [99, 599].contains(&bin) {
                share.push(blend.weights(5, 1));
            }
        }
        assert!(share[0][1] > 0.9 && share[1][0] > 0.9, "{share:?}");
        assert!(share.iter().all(|weights| (weights.iter().sum::<f64>() - 1.0).abs() < 1e-6), "{share:?}");
    }
}
