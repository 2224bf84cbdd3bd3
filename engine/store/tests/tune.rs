//! Fine-tunes that are kept as differences: what is loaded is what was packed, on good disks and bad ones, and what a
//! difference is from stays as long as the difference.

#[path = "common/faulty_disk.rs"]
mod faulty_disk;
#[path = "common/random_folder.rs"]
mod random_folder;
#[path = "common/tiny_folder.rs"]
mod tiny_folder;

use engine_store::{
    Checkpoint, LoadOptions, Manifest, Object, Packer, Progress, Segments, Store, StoreError,
    host::{Tier, bring},
    load,
};
use faulty_disk::FaultyDisk;
use random_folder::{Tails, bytes, packed, scratch, wide, write};
use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
};
use tempfile::TempDir;

/// A base and a fine-tune of it, on disk.
struct Pair {
    folder: TempDir,
    base: Checkpoint,
    tuned: Checkpoint,
}

/// Every number of the fine-tune is the base's or one of its neighbours'.
fn pair(vocab: u64) -> Pair {
    let folder = scratch();
    let paths = ["base", "tuned"].map(|name| folder.path().join(name));
    paths.iter().for_each(|path| {
        fs::create_dir(path).unwrap();
        write(&wide(vocab), path, 1);
    });
    let file = paths[1].join("model.safetensors");
    let mut weights = fs::read(&file).unwrap();
    let header = 8 + u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let mut state = 7u64;
    for number in weights[header..].as_chunks_mut::<2>().0 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *number = u16::from_le_bytes(*number).wrapping_add((state >> 62) as u16).to_le_bytes();
    }
    fs::write(file, weights).unwrap();
    let [base, tuned] = paths.map(|path| Checkpoint::open(path, None).unwrap());
    Pair { folder, base, tuned }
}

fn ingest(
    store: &Store,
    checkpoint: &Checkpoint,
    revision: &str,
    base: Option<&Manifest>,
) -> Result<(Manifest, Progress), StoreError> {
    let mut last = Progress::default();
    let manifest = store.ingest_tune(checkpoint, revision, &Tails, base, &mut |progress| last = progress)?;
    Ok((manifest, last))
}

impl Pair {
    fn store(&self) -> Store {
        Store::open(self.folder.path().join("store")).unwrap()
    }

    /// Both in the store, and how the second came in.
    fn ingested(&self, store: &Store) -> (Manifest, Manifest, Progress) {
        let base = ingest(store, &self.base, "base", None).unwrap().0;
        let (tuned, progress) = ingest(store, &self.tuned, "tuned", Some(&base)).unwrap();
        (base, tuned, progress)
    }

    fn segments(&self, name: &str) -> Segments {
        Segments::open(self.folder.path().join(format!("segments-{name}"))).unwrap()
    }
}

const OPTIONS: LoadOptions = LoadOptions { threads: 2, queue_depth: 4, io_uring: true, direct: true, wait_ms: 1000 };

/// Objects that are kept as differences.
fn different<'a>(store: &Store, manifest: &'a Manifest) -> Vec<(&'a Object, PathBuf)> {
    let path = |object: &Object| store.object_path(object.name()).with_added_extension("diff");
    manifest.objects.iter().map(|object| (object, path(object))).filter(|(_, path)| path.exists()).collect()
}

/// Bytes of all files of a folder.
fn disk_bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| if entry.path().is_dir() { disk_bytes(&entry.path()) } else { entry.metadata().unwrap().len() })
        .sum()
}

#[test]
fn a_difference_takes_less_room_and_gives_the_same_bytes() {
    let pair = pair(9000);
    let store = pair.store();
    let base = ingest(&store, &pair.base, "base", None).unwrap().0;
    let before = disk_bytes(&store.root().join("objects"));
    assert_eq!(store.base_of(&pair.tuned, Tails.layout()).unwrap(), Some(base.clone()));
    assert_eq!(store.base_of(&pair.tuned, "other-1").unwrap(), None);
    let (tuned, progress) = ingest(&store, &pair.tuned, "tuned", Some(&base)).unwrap();
    let plain = Store::open(pair.folder.path().join("plain")).unwrap();
    assert_eq!(ingest(&plain, &pair.tuned, "tuned", None).unwrap().0, tuned, "how it is kept is nobody's business");
    assert_eq!(disk_bytes(&store.root().join("objects")) - before, progress.written_bytes);
    assert_eq!(progress.written_bytes + progress.saved_bytes, tuned.bytes());
    // Two bits of sixteen have changed.
    assert!(progress.saved_bytes * 10 > tuned.bytes() * 7, "{progress:?}");
    assert!(different(&store, &tuned).len() > 1 && store.verify(&tuned, |_| {}).is_empty());
    let want = packed(&pair.tuned, &Tails);
    for io_uring in [true, false] {
        let options = LoadOptions { io_uring, ..OPTIONS };
        let (cold, warm) = (pair.segments(&format!("cold{io_uring}")), pair.segments(&format!("warm{io_uring}")));
        let loaded = load(&store, &tuned, &cold, options).unwrap();
        assert_eq!((bytes(&loaded), loaded.facts.read_bytes), (want.clone(), tuned.bytes()));
        assert_eq!(load(&store, &tuned, &cold, options).unwrap().facts.adopted_bytes, tuned.bytes());
        load(&store, &base, &warm, options).unwrap();
        assert_eq!(bytes(&load(&store, &tuned, &warm, options).unwrap()), want);
    }
    for object in &tuned.objects {
        let rebuilt = store.rebuilt(object).unwrap();
        assert_eq!(rebuilt.is_none(), store.object_path(object.name()).exists());
        let plain = fs::read(plain.object_path(object.name())).unwrap();
        assert!(rebuilt.is_none_or(|map| map[..] == plain));
    }
    // It is there already, and is no base itself.
    assert_eq!(ingest(&store, &pair.tuned, "again", Some(&base)).unwrap().1.shared_bytes, tuned.bytes());
    assert_eq!(store.base_of(&pair.tuned, Tails.layout()).unwrap(), Some(base));
}

#[test]
fn without_room_a_difference_is_put_together_for_this_process_alone_and_damage_is_found() {
    let pair = pair(3000);
    let store = pair.store();
    let (_, tuned, _) = pair.ingested(&store);
    let want = packed(&pair.tuned, &Tails);
    let segments = pair.segments("none");
    // More than any machine has is to stay free.
    let brought = || bring(&store, &tuned, segments.folder(), OPTIONS, u64::MAX / 2);
    let whole = brought().unwrap();
    assert_eq!((whole.tier, bytes(&whole.loaded)), (Tier::File, want.clone()));
    assert!(segments.held().unwrap().is_empty());
    // What is nobody's file cannot be read again: an engine that lets go of pages must not lose it.
    for name in whole.loaded.names() {
        let data = whole.loaded.tensor_data(name).unwrap();
        data.release(0..data.len());
    }
    assert_eq!(bytes(&whole.loaded), want);
    let (_, path) = &different(&store, &tuned)[0];
    let mut difference = fs::read(path).unwrap();
    difference[9] ^= 1;
    fs::write(path, difference).unwrap();
    assert!(brought().is_err());
    fs::remove_file(path).unwrap();
    assert!(matches!(brought(), Err(StoreError::Missing { .. })));
}

#[test]
fn what_gains_little_is_kept_as_it_is() {
    let pair = pair(3000);
    let store = pair.store();
    let base = ingest(&store, &pair.base, "base", None).unwrap().0;
    let other = pair.folder.path().join("other");
    fs::create_dir(&other).unwrap();
    write(&wide(3000), &other, 99);
    let path = other.join("model.safetensors");
    let mut weights = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    // Both bytes of each number are noise.
    let mut state = 5u64;
    for number in weights[header..].as_chunks_mut::<8>().0 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *number = (state ^ state >> 29).to_le_bytes();
    }
    fs::write(&path, weights).unwrap();
    let other = Checkpoint::open(&other, None).unwrap();
    let (manifest, progress) = ingest(&store, &other, "other", Some(&base)).unwrap();
    assert_eq!((different(&store, &manifest).len(), progress.saved_bytes), (0, 0));
    assert_eq!(progress.written_bytes, manifest.bytes());
    assert_eq!(bytes(&load(&store, &manifest, &pair.segments("other"), OPTIONS).unwrap()), packed(&other, &Tails));
}

#[test]
fn a_base_stays_as_long_as_its_differences() {
    let pair = pair(3000);
    let store = pair.store();
    let (base, tuned, _) = pair.ingested(&store);
    store.remove("base", Tails.layout()).unwrap();
    store.gc().unwrap();
    assert!(store.verify(&tuned, |_| {}).is_empty());
    assert_eq!(bytes(&load(&store, &tuned, &pair.segments("a"), OPTIONS).unwrap()), packed(&pair.tuned, &Tails));
    // What is kept as it is by somebody needs no difference.
    store.remove("tuned", Tails.layout()).unwrap();
    store.gc().unwrap();
    assert_eq!(disk_bytes(&store.root().join("objects")), 0);
    assert!(ingest(&store, &pair.tuned, "tuned", Some(&base)).unwrap().1.saved_bytes == 0, "its base is gone");
}

#[test]
fn damage_to_a_difference_or_its_base_is_named_never_served_and_mended() {
    let pair = pair(9000);
    let store = pair.store();
    let (base, tuned, _) = pair.ingested(&store);
    let (object, path) = different(&store, &tuned).into_iter().max_by_key(|(object, _)| object.bytes()).unwrap();
    let of_base = base.objects.iter().max_by_key(|object| object.bytes()).unwrap();
    let base_path = store.object_path(of_base.name());
    let flip = |path: &Path, at: usize| {
        let mut bytes = fs::read(path).unwrap();
        let at = at.min(bytes.len() - 1);
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let good = fs::read(&path).unwrap();
    type Damaging<'a> = Box<dyn Fn() + 'a>;
    let damages: [Damaging<'_>; 6] = [
        Box::new(|| flip(&path, 1000)),
        Box::new(|| flip(&path, usize::MAX)),
        Box::new(|| flip(&path, good.len() - 14)),
        Box::new(|| fs::write(&path, &good[..good.len() / 2]).unwrap()),
        Box::new(|| fs::write(&path, b"").unwrap()),
        Box::new(|| fs::remove_file(&path).unwrap()),
    ];
    let is_refused = |name: &str| {
        let segments = pair.segments(name);
        let error = load(&store, &tuned, &segments, OPTIONS).err().unwrap().to_string();
        let there = fs::read_dir(segments.folder()).unwrap().map(|entry| entry.unwrap().file_name());
        let name = object.name().to_string();
        assert!(!there.into_iter().any(|file| file.to_string_lossy().contains(&name)), "{error}");
        let found = store.verify(&tuned, |_| {});
        assert!(found.iter().any(|damage| damage.tensors == ["token_embd.weight"]), "{found:?}");
    };
    for (index, damage) in damages.iter().enumerate() {
        damage();
        is_refused(&format!("{index}"));
        store.discard(object).unwrap();
        let (mended, _) = ingest(&store, &pair.tuned, "tuned", Some(&base)).unwrap();
        assert!(mended == tuned && store.verify(&tuned, |_| {}).is_empty());
        assert_eq!(fs::read(&path).unwrap(), good);
    }
    // A damaged base: nothing is made of it anew, and mending it mends what differs from it.
    flip(&base_path, 3000);
    is_refused("base");
    store.discard(object).unwrap();
    ingest(&store, &pair.tuned, "tuned", Some(&base)).unwrap();
    assert!(!path.exists() && store.verify(&tuned, |_| {}).is_empty(), "it is kept as it is");
    fs::write(&path, &good).unwrap();
    fs::remove_file(store.object_path(object.name())).unwrap();
    store.discard(of_base).unwrap();
    is_refused("gone");
    ingest(&store, &pair.base, "base", None).unwrap();
    assert!(store.verify(&tuned, |_| {}).is_empty());
}

#[test]
fn a_kill_at_any_moment_leaves_a_whole_fine_tune_or_none() {
    let pair = pair(3000);
    let disk = FaultyDisk::default();
    let store = Store::open_on(pair.folder.path().join("store"), Arc::new(disk.clone())).unwrap();
    let base = ingest(&store, &pair.base, "base", None).unwrap().0;
    let before = disk.changes();
    let whole = ingest(&store, &pair.tuned, "tuned", Some(&base)).unwrap().0;
    let changes = disk.changes() - before;
    assert!(changes > 15, "{changes}");
    let mut done = 0;
    for (limit, power) in (0..=changes + 8).flat_map(|limit| [(limit, false), (limit, true)]) {
        let folder = scratch();
        let root = folder.path().join("store");
        ingest(&Store::open(&root).unwrap(), &pair.base, "base", None).unwrap();
        let error = if limit % 2 == 0 { ErrorKind::Other } else { ErrorKind::StorageFull };
        let disk = FaultyDisk::failing(limit, error);
        let outcome = Store::open_on(&root, Arc::new(disk.clone()))
            .and_then(|store| ingest(&store, &pair.tuned, "tuned", Some(&base)));
        done += usize::from(outcome.is_ok());
        if power {
            disk.lose_power();
        }
        let store = Store::open(&root).unwrap();
        let seen = store.manifest("tuned", Tails.layout()).unwrap();
        assert!(seen.is_some() || outcome.is_err(), "a model that was ingested is gone, change {limit}");
        if let Some(seen) = seen {
            assert!(seen == whole && store.verify(&seen, |_| {}).is_empty(), "change {limit}");
        }
        ingest(&store, &pair.tuned, "tuned", Some(&base)).unwrap();
        assert!(store.verify(&whole, |_| {}).is_empty() && store.verify(&base, |_| {}).is_empty());
    }
    assert!(done > 0);
}
