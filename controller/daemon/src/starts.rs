//! What cold starts took: all those of a model, and those of its weights by the tier that they came from.

use crate::timeline::StartRecord;
use controller_core::snapshot::Revision;
use engine_wire::control::Tier;
use std::collections::{BTreeMap, VecDeque};

/// Starts of each kind that the planner sees.
const SEEN: usize = 64;
/// Loads that are too small to tell how fast a disk is, bytes.
const TELLING_BYTES: u64 = 8 << 20;
/// Weight of the newest load in what is believed of the disk.
const NEWEST: f64 = 0.3;

/// Measured cold starts, ms, newest last.
#[derive(Debug, Default)]
pub(crate) struct ColdStarts {
    /// By model and revision.
    all: BTreeMap<(String, String), VecDeque<f64>>,
    /// From memory and from disk.
    by_tier: BTreeMap<Revision, [VecDeque<f64>; 2]>,
    disk_bytes_per_s: f64,
}

impl ColdStarts {
    /// Begins with what was kept, oldest first.
    pub(crate) fn new(kept: BTreeMap<(String, String), Vec<f64>>, starts: &[StartRecord]) -> Self {
        let all = kept.into_iter().map(|(model, samples)| (model, samples.into())).collect();
        let mut cold_starts = Self { all, ..Self::default() };
        starts.iter().for_each(|start| cold_starts.started(start));
        cold_starts
    }

    /// An instance became ready.
    pub(crate) fn push(&mut self, model: &str, revision: &str, cold_start_ms: f64) {
        keep(self.all.entry((model.to_owned(), revision.to_owned())).or_default(), cold_start_ms);
    }

    /// All that a start was made of is known.
    pub(crate) fn started(&mut self, start: &StartRecord) {
        let tier = usize::from(start.tier != Tier::Memory);
        keep(&mut self.by_tier.entry(start.revision.clone()).or_default()[tier], start.until_ready_ms());
        if start.tier != Tier::Disk || start.read_bytes < TELLING_BYTES || start.load_ms <= 0.0 {
            return;
        }
        let bytes_per_s = start.read_bytes as f64 / (start.load_ms / 1e3);
        self.disk_bytes_per_s = match self.disk_bytes_per_s > 0.0 {
            true => self.disk_bytes_per_s + NEWEST * (bytes_per_s - self.disk_bytes_per_s),
            false => bytes_per_s,
        };
    }

    pub(crate) fn of(&self, model: &str, revision: &str) -> Vec<f64> {
        listed(self.all.get(&(model.to_owned(), revision.to_owned())))
    }

    /// Of some weights, from memory and from disk.
    pub(crate) fn by_tier(&self, revision: &str) -> (Vec<f64>, Vec<f64>) {
        let known = self.by_tier.get(revision);
        (listed(known.map(|[memory, _]| memory)), listed(known.map(|[_, disk]| disk)))
    }

    /// How fast weights have come from disk, bytes/s; 0 while none have.
    pub(crate) fn disk_bytes_per_s(&self) -> f64 {
        self.disk_bytes_per_s
    }
}

fn keep(samples: &mut VecDeque<f64>, ms: f64) {
    samples.push_back(ms);
    if samples.len() > SEEN {
        samples.pop_front();
    }
}

fn listed(samples: Option<&VecDeque<f64>>) -> Vec<f64> {
    samples.into_iter().flatten().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(tier: Tier, read_bytes: u64, load_ms: f64) -> StartRecord {
        StartRecord {
            at_unix_s: 0,
            model: "m".to_owned(),
            revision: "r".to_owned(),
            instance: "m-1-1".to_owned(),
            spare: false,
            tier,
            read_bytes,
            decision_ms: 1.0,
            spawn_ms: 2.0,
            load_ms,
            ready_ms: 3.0,
            first_token_ms: Some(100.0),
        }
    }

    #[test]
    fn starts_are_told_apart_by_tier_and_tell_how_fast_the_disk_is() {
        let kept = [start(Tier::Memory, 0, 4.0), start(Tier::Disk, 100_000_000, 100.0)];
        let mut starts = ColdStarts::new(BTreeMap::from([(("m".into(), "r".into()), vec![5.0])]), &kept);
        assert_eq!(starts.by_tier("r"), (vec![10.0], vec![106.0]));
        assert_eq!(starts.disk_bytes_per_s(), 1e9);
        starts.started(&start(Tier::Disk, 100_000_000, 50.0));
        assert_eq!(starts.disk_bytes_per_s(), 1.3e9);
        // What was mapped, or is small, says nothing of it.
        starts.started(&start(Tier::File, 100_000_000, 1.0));
        starts.started(&start(Tier::Disk, 1, 1.0));
        assert_eq!(starts.disk_bytes_per_s(), 1.3e9);
        starts.push("m", "r", 7.0);
        assert_eq!(starts.of("m", "r"), [5.0, 7.0]);
        (0..100).for_each(|_| starts.started(&start(Tier::Memory, 0, 1.0)));
        assert_eq!(starts.by_tier("r").0.len(), SEEN);
        assert_eq!(starts.by_tier("other"), (vec![], vec![]));
    }
}
