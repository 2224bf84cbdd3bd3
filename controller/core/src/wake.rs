//! What the next cold start of a model takes, by where its weights lie now: the sleep levels and their wake times.
//!
//! Starts from host memory and from disk are different distributions. Where few have been measured of one, the other is
//! borrowed, with the time between them that reading takes at the speed that the disk was measured at.

use crate::snapshot::{ModelView, NodeView, WeightsTier, WeightsView};
use std::borrow::Cow;

/// Starts from which on a tier's own say enough.
const ENOUGH: usize = 3;
/// Assumed of a disk that nothing has been read from yet, bytes/s.
const PRIOR_BYTES_PER_S: f64 = 500e6;
/// Of reading, the least that is believed to be saved by having the weights in memory, whatever few starts said.
const LEAST_SAVED: f64 = 0.1;
/// Starts of a tier that the time of reading counts for where it is asked what memory saves: on a busy machine few starts
/// differ by more than models do.
const LENT_STARTS: f64 = 8.0;

/// Cold starts of which the next one is expected to be one, ms, newest last.
pub fn cold_starts_ms<'a>(view: &'a ModelView, node: &NodeView) -> Cow<'a, [f64]> {
    let Some(weights) = &view.weights else { return Cow::Borrowed(&view.cold_start_ms) };
    let known = of_tier(weights, weights.tier, node);
    if known.is_empty() { Cow::Borrowed(&view.cold_start_ms) } else { known }
}

/// Time that reading so many bytes from disk takes, s.
pub(crate) fn read_s(bytes: u64, node: &NodeView) -> f64 {
    let measured = node.weights.disk_bytes_per_s;
    let bytes_per_s = if measured.is_finite() && measured > 0.0 { measured.max(1e6) } else { PRIOR_BYTES_PER_S };
    bytes as f64 / bytes_per_s
}

/// Time by which a start from memory is sooner than one from disk, s.
pub(crate) fn saved_s(weights: &WeightsView, node: &NodeView) -> f64 {
    let reading_s = read_s(weights.bytes, node);
    let count = |samples: &[f64]| samples.iter().filter(|ms| ms.is_finite()).count();
    let known = count(&weights.memory_start_ms).min(count(&weights.disk_start_ms));
    if known == 0 {
        return reading_s;
    }
    let median_ms = |samples: &[f64]| crate::capacity::cold_start_quantiles_ms(samples).0;
    let saved_s = (median_ms(&weights.disk_start_ms) - median_ms(&weights.memory_start_ms)) / 1e3;
    let share = known as f64 / (known as f64 + LENT_STARTS);
    (reading_s + share * (saved_s - reading_s)).max(LEAST_SAVED * reading_s)
}

fn of_tier<'a>(weights: &'a WeightsView, tier: WeightsTier, node: &NodeView) -> Cow<'a, [f64]> {
    let (own, other, sign) = match tier {
        WeightsTier::Memory => (&weights.memory_start_ms, &weights.disk_start_ms, -1.0),
        WeightsTier::Disk | WeightsTier::Absent => (&weights.disk_start_ms, &weights.memory_start_ms, 1.0),
    };
    if own.len() >= ENOUGH || other.is_empty() {
        return Cow::Borrowed(own);
    }
    let apart_ms = sign * read_s(weights.bytes, node) * 1e3;
    // No start takes less than nothing, and what is no number is left out by whoever counts.
    let borrowed = other.iter().map(|ms| (ms + apart_ms).max(ms * LEAST_SAVED));
    Cow::Owned(borrowed.chain(own.iter().copied()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::NodeWeights;

    fn node(disk_bytes_per_s: f64) -> NodeView {
        let weights = NodeWeights { disk_bytes_per_s, ..NodeWeights::default() };
        NodeView { observed_at_ns: 0, cores: vec![0], cores_per_instance: 1, memory_budget_bytes: 0, weights }
    }

    fn view(tier: WeightsTier, memory_start_ms: &[f64], disk_start_ms: &[f64]) -> ModelView {
        let weights = WeightsView {
            bytes: 100_000_000,
            tier,
            memory_start_ms: memory_start_ms.to_vec(),
            disk_start_ms: disk_start_ms.to_vec(),
            ..WeightsView::default()
        };
        let weights = Some(weights);
        ModelView {
            revision: "r".into(),
            instance_bytes: 1,
            demand: Default::default(),
            cold_start_ms: vec![7.0],
            weights,
        }
    }

    #[test]
    fn the_next_start_is_one_of_its_tier() {
        let expected =
            |tier, memory: &[f64], disk: &[f64]| cold_starts_ms(&view(tier, memory, disk), &node(1e9)).to_vec();
        let (memory, disk) = ([20.0, 21.0, 22.0], [150.0, 160.0, 170.0]);
        assert_eq!(expected(WeightsTier::Memory, &memory, &disk), memory);
        assert_eq!(expected(WeightsTier::Disk, &memory, &disk), disk);
        // 100 MB take 100 ms at a gigabyte per second.
        assert_eq!(expected(WeightsTier::Disk, &memory, &[]), [120.0, 121.0, 122.0]);
        assert_eq!(expected(WeightsTier::Disk, &memory, &[150.0]), [120.0, 121.0, 122.0, 150.0]);
        assert_eq!(expected(WeightsTier::Memory, &[], &disk), [50.0, 60.0, 70.0]);
        assert_eq!(expected(WeightsTier::Memory, &[], &[]), [7.0], "what is known of all");
        let mut plain = view(WeightsTier::Disk, &memory, &disk);
        plain.weights = None;
        assert_eq!(cold_starts_ms(&plain, &node(1e9)).to_vec(), [7.0], "nothing is shared");
    }

    #[test]
    fn what_memory_saves_is_measured_or_the_time_of_reading() {
        let saved = |memory: &[f64], disk: &[f64], speed| {
            saved_s(view(WeightsTier::Disk, memory, disk).weights.as_ref().expect("given"), &node(speed))
        };
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-9, "{found} {expected}");
        near(saved(&[20.0; 8], &[170.0; 8], 1e9), 0.125);
        near(saved(&[20.0; 1], &[190.0; 9], 1e9), 0.1 + 0.07 / 9.0);
        near(saved(&[20.0; 64], &[170.0; 64], 1e9), 0.1 + 0.05 * 64.0 / 72.0);
        near(saved(&[500.0; 64], &[10.0; 64], 1e9), 0.1 * LEAST_SAVED);
        near(saved(&[], &[170.0; 8], 1e9), 0.1);
        assert_eq!(saved(&[], &[], 0.0), 0.2, "nothing measured");
        for nonsense in [f64::NAN, -1.0, f64::INFINITY] {
            assert!(saved(&[], &[], nonsense).is_finite());
        }
    }
}
