//! The store on good disks and bad ones: what was packed is what is loaded, whatever happened between.

#[path = "common/faulty_disk.rs"]
mod faulty_disk;
#[path = "common/random_folder.rs"]
mod random_folder;
#[path = "common/tiny_folder.rs"]
mod tiny_folder;

use engine_store::{
    AsStored, Checkpoint, Freed, LoadOptions, Manifest, Packer, Progress, Quantisation, Segments, Store, StoreError,
    load, revision,
};
use faulty_disk::FaultyDisk;
use proptest::prelude::*;
use random_folder::{Tails, bytes, packed, scratch, tune, wide, write};
use std::{fs, io::ErrorKind, path::Path, sync::Arc};

const EVERY_WAY: [LoadOptions; 4] = {
    let base = LoadOptions { threads: 2, queue_depth: 4, io_uring: true, direct: true, wait_ms: 1000 };
    [
        base,
        LoadOptions { io_uring: false, ..base },
        LoadOptions { threads: 1, queue_depth: 1, direct: false, ..base },
        LoadOptions { threads: 3, io_uring: false, direct: false, ..base },
    ]
};

fn ingest(store: &Store, checkpoint: &Checkpoint, revision: &str) -> Result<(Manifest, Progress), StoreError> {
    let mut last = Progress::default();
    let manifest = store.ingest(checkpoint, revision, &Tails, &mut |progress| last = progress)?;
    Ok((manifest, last))
}

/// Loads into memory of its own.
fn loaded(store: &Store, manifest: &Manifest, folder: &Path, options: LoadOptions) -> engine_store::Loaded {
    let segments = Segments::open(folder).unwrap();
    load(store, manifest, &segments, options).unwrap()
}

#[test]
fn what_was_packed_is_what_is_loaded() {
    // One folder on a disk, the other in memory.
    for folder in [tempfile::tempdir().unwrap(), scratch()] {
        let source = folder.path().join("source");
        fs::create_dir(&source).unwrap();
        write(&wide(3000), &source, 1);
        let store = Store::open(folder.path().join("store")).unwrap();
        for quantise in [None, Some(Quantisation::Q8_0)] {
            let checkpoint = Checkpoint::open(&source, quantise).unwrap();
            let revision = revision(&source, quantise).unwrap();
            let (manifest, progress) = ingest(&store, &checkpoint, &revision).unwrap();
            assert_eq!(
                (progress.done_bytes, progress.total_bytes),
                (checkpoint.weight_bytes(), checkpoint.weight_bytes())
            );
            assert_eq!(store.manifest(&revision, Tails.layout()).unwrap().unwrap(), manifest);
            let want = packed(&checkpoint, &Tails);
            for (index, options) in EVERY_WAY.into_iter().enumerate() {
                let memory = folder.path().join(format!("segments{}{index}", quantise.is_some()));
                let first = loaded(&store, &manifest, &memory, options);
                assert_eq!(bytes(&first), want, "{options:?}");
                assert_eq!((first.facts.read_bytes, first.facts.adopted_bytes), (manifest.bytes(), 0));
                let again = loaded(&store, &manifest, &memory, options);
                assert_eq!(bytes(&again), want);
                assert_eq!((again.facts.read_bytes, again.facts.adopted_bytes), (0, manifest.bytes()));
            }
        }
        assert_eq!(store.gc().unwrap(), Freed { files: 2, bytes: 0 }, "two locks");
    }
}

#[test]
fn fine_tunes_share_what_they_did_not_change() {
    let folder = scratch();
    let store = Store::open(folder.path().join("store")).unwrap();
    let memory = folder.path().join("segments");
    let source = folder.path().join("source");
    fs::create_dir(&source).unwrap();
    write(&wide(3000), &source, 1);
    let base = ingest(&store, &Checkpoint::open(&source, None).unwrap(), "base").unwrap().0;
    loaded(&store, &base, &memory, EVERY_WAY[0]);
    let tuned_folder = folder.path().join("tuned");
    fs::create_dir(&tuned_folder).unwrap();
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::copy(source.join(file), tuned_folder.join(file)).unwrap();
    }
    tune(&tuned_folder, "model.layers.0.mlp.up_proj.weight");
    let checkpoint = Checkpoint::open(&tuned_folder, None).unwrap();
    let (tuned, progress) = ingest(&store, &checkpoint, "tuned").unwrap();
    let up = tuned.tensors.iter().find(|tensor| tensor.name == "blk.0.ffn_up.weight").unwrap();
    let changed = tuned.objects[up.object].bytes();
    assert_eq!((progress.written_bytes, progress.shared_bytes), (changed, tuned.bytes() - changed));
    let second = loaded(&store, &tuned, &memory, EVERY_WAY[0]);
    assert_eq!(second.facts.read_bytes, changed);
    assert_eq!(bytes(&second), packed(&checkpoint, &Tails));
    // What only one of them needs goes with it.
    assert!(store.remove("tuned", Tails.layout()).unwrap() && !store.remove("tuned", Tails.layout()).unwrap());
    assert_eq!(store.gc().unwrap(), Freed { files: 3, bytes: changed }, "two locks and an object");
    assert!(store.verify(&base, |_| {}).is_empty());
    assert_eq!(store.manifests().unwrap(), [base]);
}

/// Ingests on a disk that fails after so many changes, then on a good one, and checks what is seen between and after.
fn interrupted(limit: u64, error: ErrorKind, power: bool, checkpoint: &Checkpoint, whole: &Manifest) -> bool {
    let folder = scratch();
    let root = folder.path().join("store");
    let disk = FaultyDisk::failing(limit, error);
    let outcome = Store::open_on(&root, Arc::new(disk.clone())).and_then(|store| ingest(&store, checkpoint, "one"));
    let is_done = outcome.is_ok();
    if let Err(failure) = outcome {
        assert_eq!(matches!(failure, StoreError::Full { .. }), error == ErrorKind::StorageFull, "{failure}");
    }
    if power {
        disk.lose_power();
    }
    let store = Store::open(&root).unwrap();
    let seen = store.manifest("one", Tails.layout()).unwrap();
    assert!(seen.is_some() || !is_done, "a model that was ingested is gone, change {limit}");
    if let Some(seen) = seen {
        assert_eq!(seen, *whole);
        let damages = store.verify(&seen, |_| {});
        assert!(damages.is_empty(), "change {limit}: {damages:?}");
    }
    let (manifest, progress) = ingest(&store, checkpoint, "one").unwrap();
    assert_eq!(manifest, *whole);
    assert!(progress.written_bytes + progress.shared_bytes <= whole.bytes());
    let loaded = loaded(&store, &manifest, &folder.path().join("segments"), EVERY_WAY[limit as usize % 4]);
    assert_eq!(bytes(&loaded), packed(checkpoint, &Tails));
    is_done
}

#[test]
fn a_kill_at_any_moment_leaves_a_whole_model_or_none() {
    let folder = scratch();
    write(&wide(3000), folder.path(), 1);
    let checkpoint = Checkpoint::open(folder.path(), None).unwrap();
    let disk = FaultyDisk::default();
    let store = Store::open_on(folder.path().join("store"), Arc::new(disk.clone())).unwrap();
    let whole = ingest(&store, &checkpoint, "one").unwrap().0;
    assert!(disk.changes() > 15, "{}", disk.changes());
    for limit in 0..=disk.changes() {
        for power in [false, true] {
            let is_done = interrupted(limit, ErrorKind::Other, power, &checkpoint, &whole);
            assert_eq!(is_done, limit == disk.changes());
        }
        interrupted(limit, ErrorKind::StorageFull, false, &checkpoint, &whole);
    }
}

#[test]
fn an_object_half_written_goes_on_after_its_last_good_chunk() {
    let folder = scratch();
    write(&wide(9000), folder.path(), 1);
    let checkpoint = Checkpoint::open(folder.path(), None).unwrap();
    let root = folder.path().join("store");
    let whole = ingest(&Store::open(&root).unwrap(), &checkpoint, "one").unwrap().0;
    let embedding = whole.objects.iter().max_by_key(|object| object.bytes()).unwrap();
    let store = Store::open(&root).unwrap();
    store.remove("one", Tails.layout()).unwrap();
    // Two good chunks, one with a bit flipped, one cut.
    let path = store.object_path(embedding.name());
    let mut bytes = fs::read(&path).unwrap();
    bytes.truncate((7 << 20) / 2);
    bytes[(5 << 20) / 2] ^= 1;
    fs::remove_file(&path).unwrap();
    let part = format!("one.{}.{}", Tails.layout(), embedding.name());
    fs::write(root.join("staging").join(part), bytes).unwrap();
    let (manifest, progress) = ingest(&store, &checkpoint, "one").unwrap();
    assert_eq!((manifest, progress.written_bytes), (whole.clone(), embedding.bytes() - (2 << 20)));
    assert!(store.verify(&whole, |_| {}).is_empty());
}

#[test]
fn damage_is_named_never_served_and_mended() {
    let folder = scratch();
    write(&wide(3000), folder.path(), 1);
    let checkpoint = Checkpoint::open(folder.path(), None).unwrap();
    let store = Store::open(folder.path().join("store")).unwrap();
    let manifest = ingest(&store, &checkpoint, "one").unwrap().0;
    let tensor = manifest.tensors.iter().find(|tensor| tensor.name == "token_embd.weight").unwrap();
    let object = &manifest.objects[tensor.object];
    let path = store.object_path(object.name());
    let good = fs::read(&path).unwrap();
    type Damaging<'a> = Box<dyn Fn() + 'a>;
    let damages: [(&str, Damaging<'_>); 4] = [
        ("from 1048576 on", Box::new(|| fs::write(&path, flipped(&good, (1 << 20) + 77)).unwrap())),
        ("from 0 on", Box::new(|| fs::write(&path, flipped(&good, 0)).unwrap())),
        ("bytes instead of", Box::new(|| fs::write(&path, &good[..good.len() - 4096]).unwrap())),
        ("is missing", Box::new(|| fs::remove_file(&path).unwrap())),
    ];
    for (index, (said, damage)) in damages.into_iter().enumerate() {
        damage();
        for (way, options) in EVERY_WAY.into_iter().enumerate() {
            let segments = Segments::open(folder.path().join(format!("segments{index}{way}"))).unwrap();
            let error = load(&store, &manifest, &segments, options).err().unwrap().to_string();
            assert!(error.contains(said) && error.contains(&*path.to_string_lossy()), "{error}");
            let names: Vec<_> =
                fs::read_dir(segments.folder()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert!(!names.iter().any(|name| name.to_string_lossy().contains(&object.name().to_string())), "{names:?}");
        }
        let found = store.verify(&manifest, |_| {});
        assert_eq!(found.iter().map(|damage| damage.tensors.as_slice()).collect::<Vec<_>>(), [["token_embd.weight"]]);
        assert!(found[0].error.to_string().contains("add the model again"), "{}", found[0].error);
        store.discard(object).unwrap();
        let (mended, progress) = ingest(&store, &checkpoint, "one").unwrap();
        assert_eq!((&mended, progress.written_bytes), (&manifest, object.bytes()));
        assert!(store.verify(&manifest, |_| {}).is_empty());
    }
}

fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1;
    bytes
}

#[test]
fn a_store_is_shared_by_those_who_add_and_closed_to_who_takes_away() {
    let folder = scratch();
    write(&wide(3000), folder.path(), 1);
    let checkpoint = Checkpoint::open(folder.path(), None).unwrap();
    let store = Store::open(folder.path().join("store")).unwrap();
    let mut asked = 0;
    let other = store.clone();
    store
        .ingest(&checkpoint, "one", &AsStored, &mut |_| {
            asked += 1;
            assert!(matches!(other.gc(), Err(StoreError::Busy { .. })));
            let same = other.ingest(&checkpoint, "one", &AsStored, &mut |_| {});
            assert!(matches!(same, Err(StoreError::Busy { .. })));
        })
        .unwrap();
    assert!(asked > 0);
    for bad in ["", "../one", "One", "a/b", "a.b"] {
        assert!(matches!(ingest(&store, &checkpoint, bad), Err(StoreError::Manifest { .. })), "{bad}");
    }
    // What a manifest that cannot be read needs is not known, so nothing is removed.
    let path = folder.path().join("store/models/one.stored-1");
    let text = fs::read(&path).unwrap();
    fs::write(&path, flipped(&text, 100)).unwrap();
    let error = store.gc().unwrap_err().to_string();
    assert!(error.contains("one.stored-1") && error.contains("checksum differs"), "{error}");
    // Adding the model again makes it good.
    store.ingest(&checkpoint, "one", &AsStored, &mut |_| {}).unwrap();
    assert_eq!(fs::read(&path).unwrap(), text);
}

#[test]
fn one_of_many_reads_and_the_others_find_it() {
    let folder = scratch();
    write(&wide(9000), folder.path(), 1);
    let checkpoint = Checkpoint::open(folder.path(), None).unwrap();
    let store = Store::open(folder.path().join("store")).unwrap();
    let manifest = ingest(&store, &checkpoint, "one").unwrap().0;
    let memory = folder.path().join("segments");
    let options = LoadOptions { wait_ms: 60_000, ..EVERY_WAY[0] };
    let read_bytes: u64 = std::thread::scope(|scope| {
        let one = || scope.spawn(|| loaded(&store, &manifest, &memory, options).facts.read_bytes);
        let threads: Vec<_> = (0..8).map(|_| one()).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(read_bytes, manifest.bytes());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_model_survives_any_kill(
        vocab in 1u64..9000, seed: u64, limit in 0u64..70, power: bool, full: bool, quantise: bool
    ) {
        let folder = scratch();
        write(&wide(vocab), folder.path(), seed);
        let checkpoint = Checkpoint::open(folder.path(), quantise.then_some(Quantisation::Q4_0)).unwrap();
        let whole = ingest(&Store::open(folder.path().join("store")).unwrap(), &checkpoint, "one").unwrap().0;
        let error = if full { ErrorKind::StorageFull } else { ErrorKind::Other };
        interrupted(limit, error, power, &checkpoint, &whole);
    }
}
