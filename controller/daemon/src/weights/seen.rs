//! Where the registered models' weights are, from what lies in memory and what their manifests name.

use controller_core::snapshot::{NodeWeights, Revision, WeightsTier, WeightsView};
use engine_store::Checksum;
use engine_store::host::Held;
use std::collections::{BTreeMap, BTreeSet};

/// The objects of weights and their bytes; none where the store has no manifest of them.
pub(super) type Objects = Option<Vec<(Checksum, u64)>>;

/// All weights at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Seen {
    by_revision: BTreeMap<Revision, WeightsView>,
    pub(crate) node: NodeWeights,
}

impl Seen {
    /// What is seen of these models when this lies in memory.
    pub(super) fn of(known: &BTreeMap<Revision, Objects>, held: &[Held]) -> Self {
        let held: BTreeMap<Checksum, &Held> = held.iter().map(|held| (held.name, held)).collect();
        let owners = owners(known, &held);
        let view = |(revision, objects): (&Revision, &Objects)| {
            (revision.clone(), objects.as_ref().map_or_else(absent, |objects| view(revision, objects, &held, &owners)))
        };
        let ours: BTreeSet<Checksum> = known.values().flatten().flatten().map(|(name, _)| *name).collect();
        let idle = held.values().filter(|held| !held.mapped && ours.contains(&held.name));
        Self {
            by_revision: known.iter().map(view).collect(),
            node: NodeWeights { idle_bytes: idle.map(|held| held.bytes).sum(), ..NodeWeights::default() },
        }
    }

    /// Of one model; none before it has been looked for.
    pub(crate) fn weights(&self, revision: &str) -> Option<&WeightsView> {
        self.by_revision.get(revision)
    }

    /// Bytes of all weights by the tier in which they are, each model's own counted.
    pub(crate) fn bytes_by_tier(&self) -> [(&'static str, u64); 2] {
        let sum = |of: fn(&WeightsView) -> u64| self.by_revision.values().map(of).sum();
        [
            ("memory", sum(|view| view.memory_bytes)),
            ("disk", sum(|view| view.bytes - view.memory_bytes.min(view.bytes))),
        ]
    }
}

fn absent() -> WeightsView {
    WeightsView { tier: WeightsTier::Absent, ..WeightsView::default() }
}

/// The models that are whole in memory, by the objects that they need there.
fn owners<'a>(
    known: &'a BTreeMap<Revision, Objects>,
    held: &BTreeMap<Checksum, &Held>,
) -> BTreeMap<Checksum, Vec<&'a Revision>> {
    let mut owners: BTreeMap<Checksum, Vec<&Revision>> = BTreeMap::new();
    for (revision, objects) in known {
        let Some(objects) = objects.as_ref().filter(|objects| is_whole(objects, held)) else { continue };
        objects.iter().for_each(|(name, _)| owners.entry(*name).or_default().push(revision));
    }
    owners
}

fn is_whole(objects: &[(Checksum, u64)], held: &BTreeMap<Checksum, &Held>) -> bool {
    objects.iter().all(|(name, _)| held.contains_key(name))
}

fn view(
    revision: &Revision,
    objects: &[(Checksum, u64)],
    held: &BTreeMap<Checksum, &Held>,
    owners: &BTreeMap<Checksum, Vec<&Revision>>,
) -> WeightsView {
    let there: Vec<&&Held> = objects.iter().filter_map(|(name, _)| held.get(name)).collect();
    let own = |name: &Checksum| owners.get(name).is_none_or(|owners| owners.iter().all(|owner| *owner == revision));
    let freeable = there.iter().filter(|held| !held.mapped && own(&held.name));
    WeightsView {
        bytes: objects.iter().map(|(_, bytes)| bytes).sum(),
        tier: if is_whole(objects, held) { WeightsTier::Memory } else { WeightsTier::Disk },
        memory_bytes: there.iter().map(|held| held.bytes).sum(),
        freeable_bytes: freeable.map(|held| held.bytes).sum(),
        mapped: there.iter().any(|held| held.mapped),
        ..WeightsView::default()
    }
}

/// What may be discarded of one model: nobody maps it, and no other model that is whole in memory needs it.
pub(super) fn freeable(known: &BTreeMap<Revision, Objects>, held: &[Held], revision: &str) -> Vec<Checksum> {
    let by_name: BTreeMap<Checksum, &Held> = held.iter().map(|held| (held.name, held)).collect();
    let owners = owners(known, &by_name);
    let Some((revision, Some(objects))) = known.get_key_value(revision) else { return Vec::new() };
    let is_free = |name: &Checksum| {
        let shared = owners.get(name).is_some_and(|owners| owners.iter().any(|owner| *owner != revision));
        by_name.get(name).is_some_and(|held| !held.mapped) && !shared
    };
    objects.iter().map(|(name, _)| *name).filter(is_free).collect()
}

/// What goes when memory is short by so many bytes: what no registered model has, those used longest ago first; then, with
/// `all`, the models' by their order, and whatever else nobody maps.
pub(super) fn victims(
    known: &BTreeMap<Revision, Objects>,
    held: &[Held],
    least_worth_first: &[Revision],
    bytes: u64,
    all: bool,
) -> Vec<(Checksum, u64)> {
    let ours: BTreeSet<Checksum> = known.values().flatten().flatten().map(|(name, _)| *name).collect();
    let idle: BTreeMap<Checksum, u64> =
        held.iter().filter(|held| !held.mapped).map(|held| (held.name, held.bytes)).collect();
    let strangers = held.iter().map(|held| held.name).filter(|name| !ours.contains(name));
    let planned = least_worth_first.iter().filter_map(|revision| known.get(revision)).flatten().flatten();
    let rest = held.iter().map(|held| held.name);
    let models = planned.map(|(name, _)| *name).chain(rest).take_while(|_| all);
    let (mut sum, mut taken) = (0, BTreeSet::new());
    let mut victims = Vec::new();
    for name in strangers.chain(models) {
        let Some(size) = idle.get(&name).filter(|_| sum < bytes && taken.insert(name)) else { continue };
        sum += size;
        victims.push((name, *size));
    }
    victims
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(letter: &str) -> Checksum {
        Checksum::of(letter.as_bytes())
    }

    fn known(models: &[(&str, &str)]) -> BTreeMap<Revision, Objects> {
        let objects = |letters: &str| letters.chars().map(|letter| (name(&letter.to_string()), 10)).collect();
        let known = models.iter().map(|(revision, letters)| ((*revision).to_owned(), Some(objects(letters))));
        known.chain([("gone".to_owned(), None)]).collect()
    }

    /// Capitals are mapped.
    fn held(letters: &str) -> Vec<Held> {
        let held = |(at, letter): (usize, char)| Held {
            name: name(&letter.to_lowercase().to_string()),
            bytes: 10,
            used_unix_ns: at as u128,
            mapped: letter.is_uppercase(),
        };
        letters.chars().enumerate().map(held).collect()
    }

    #[test]
    fn models_are_where_all_of_their_objects_are() {
        let known = known(&[("base", "abc"), ("tune", "abd"), ("other", "xy")]);
        let check = |letters: &str, expected: &[(&str, WeightsTier, u64, u64, bool)], idle_bytes| {
            let seen = Seen::of(&known, &held(letters));
            for (revision, tier, memory_bytes, freeable_bytes, mapped) in expected {
                let view = seen.weights(revision).expect("known");
                let found = (view.tier, view.memory_bytes, view.freeable_bytes, view.mapped);
                assert_eq!(found, (*tier, *memory_bytes, *freeable_bytes, *mapped), "{letters}: {revision}");
            }
            assert_eq!(seen.node.idle_bytes, idle_bytes, "{letters}");
        };
        use WeightsTier::{Absent, Disk, Memory};
        check("", &[("base", Disk, 0, 0, false), ("gone", Absent, 0, 0, false)], 0);
        check("abc", &[("base", Memory, 30, 30, false), ("tune", Disk, 20, 0, false)], 30);
        // What both have goes with the last of them.
        check("abcd", &[("base", Memory, 30, 10, false), ("tune", Memory, 30, 10, false)], 40);
        check("ABcxz", &[("base", Memory, 30, 10, true), ("other", Disk, 10, 10, false)], 20);
        assert_eq!(Seen::of(&known, &held("abc")).bytes_by_tier(), [("memory", 50), ("disk", 30)]);
        assert_eq!(Seen::default().weights("base"), None);
    }

    #[test]
    fn a_model_leaves_with_what_is_its_own_alone() {
        let known = known(&[("base", "abc"), ("tune", "abd")]);
        let check = |letters: &str, revision: &str, expected: &str| {
            let expected: Vec<Checksum> = expected.chars().map(|letter| name(&letter.to_string())).collect();
            assert_eq!(freeable(&known, &held(letters), revision), expected, "{letters} {revision}");
        };
        check("abcd", "tune", "d");
        check("abc", "base", "abc");
        check("Abcd", "base", "c");
        check("ABC", "base", "");
        check("abc", "gone", "");
        check("abc", "never heard of", "");
    }

    #[test]
    fn strangers_go_first_and_then_what_is_worth_least() {
        let known = known(&[("one", "ab"), ("two", "cd")]);
        let check = |bytes, all, letters: &str, expected: &str| {
            let order = ["two".to_owned(), "one".to_owned()];
            let found = victims(&known, &held(letters), &order, bytes, all);
            let expected: Vec<_> = expected.chars().map(|letter| (name(&letter.to_string()), 10)).collect();
            assert_eq!(found, expected, "{bytes} of {letters}");
        };
        check(0, true, "abcdx", "");
        check(1, true, "abcdx", "x");
        check(11, true, "abcdx", "xc");
        check(100, true, "aBcdx", "xcda");
        check(100, false, "abcdx", "x");
        check(100, true, "ABCD", "");
    }
}
