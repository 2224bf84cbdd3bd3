//! Gaps between the tokens of one stream, in bounded memory: a histogram whose buckets are a sixteenth of an
//! octave wide, so that a quantile is off by at most a sixteenth of itself. The maximum is exact.

use std::collections::BTreeMap;

/// Buckets per octave, as a power of two.
const SHIFT: u32 = 4;

/// The gaps seen so far. At most 976 buckets exist, and a stream's gaps lie in few of them.
#[derive(Debug, Default)]
pub struct Gaps {
    buckets: BTreeMap<u32, u32>,
    count: u64,
    max_ns: u64,
}

impl Gaps {
    pub fn add(&mut self, gap_ns: u64) {
        let count = self.buckets.entry(bucket(gap_ns)).or_default();
        *count = count.saturating_add(1);
        self.count += 1;
        self.max_ns = self.max_ns.max(gap_ns);
    }

    /// The gap, ns, that at most `per_hundred` of a hundred gaps are shorter than (nearest rank); 0 without gaps.
    pub fn quantile_ns(&self, per_hundred: u64) -> u64 {
        let rank = (self.count * per_hundred).div_ceil(100).max(1);
        let mut below = 0;
        let found = self.buckets.iter().find(|&(_, &count)| {
            below += u64::from(count);
            below >= rank
        });
        found.map_or(0, |(&bucket, _)| upper_ns(bucket).min(self.max_ns))
    }

    pub fn max_ns(&self) -> u64 {
        self.max_ns
    }
}

fn bucket(ns: u64) -> u32 {
    let octave = ns.checked_ilog2().unwrap_or(0);
    if octave < SHIFT {
        return ns as u32;
    }
    let shift = octave - SHIFT;
    ((shift + 1) << SHIFT) + ((ns >> shift) as u32 & ((1 << SHIFT) - 1))
}

/// The largest value of a bucket.
fn upper_ns(bucket: u32) -> u64 {
    let Some(shift) = (bucket >> SHIFT).checked_sub(1) else { return u64::from(bucket) };
    let low = u128::from((1 << SHIFT) + (bucket & ((1 << SHIFT) - 1))) << shift;
    u64::try_from(low + (1u128 << shift) - 1).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn quantiles_are_within_a_sixteenth(mut gaps in proptest::collection::vec(any::<u64>().prop_map(|n| n >> (n % 61)), 1..200)) {
            let mut seen = Gaps::default();
            gaps.iter().for_each(|&gap| seen.add(gap));
            gaps.sort_unstable();
            for per_hundred in [50, 99] {
                let exact = gaps[(gaps.len() * per_hundred).div_ceil(100) - 1];
                let told = seen.quantile_ns(per_hundred as u64);
                prop_assert!(exact <= told && told - exact <= exact / 16, "{told} for {exact}");
            }
            prop_assert_eq!(seen.max_ns(), gaps[gaps.len() - 1]);
        }
    }

    #[test]
    fn without_gaps_there_is_nothing_to_tell() {
        assert_eq!((Gaps::default().quantile_ns(50), Gaps::default().max_ns()), (0, 0));
    }
}
