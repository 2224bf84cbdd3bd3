//! What a store keeps so that a model outlives its source, where its weights come from, and what goes.

#[path = "common/random_folder.rs"]
mod random_folder;
#[path = "common/tiny_folder.rs"]
mod tiny_folder;

use engine_store::{
    Checkpoint, LoadOptions, Manifest, Packer, Quantisation, Segments, Store, StoreError,
    host::{Ahead, Tier, bring, bring_ahead},
};
use random_folder::{Tails, bytes, packed, scratch, wide, write};
use std::{collections::BTreeSet, fs, path::Path};

fn kept(root: &Path, source: &Path, revision: &str) -> (Store, Manifest) {
    kept_as(root, source, revision, None)
}

fn kept_as(root: &Path, source: &Path, revision: &str, quantise: Option<Quantisation>) -> (Store, Manifest) {
    let store = Store::open(root).unwrap();
    store.keep_head(source, revision).unwrap();
    let checkpoint = Checkpoint::open(source, quantise).unwrap();
    let manifest = store.ingest(&checkpoint, revision, &Tails, &mut |_| {}).unwrap();
    (store, manifest)
}

#[test]
fn a_model_outlives_the_folder_that_it_came_from() {
    for quantise in [None, Some(Quantisation::Q8_0)] {
        let folder = scratch();
        let source = folder.path().join("source");
        fs::create_dir(&source).unwrap();
        write(&wide(3000), &source, 1);
        let (store, manifest) = kept_as(&folder.path().join("store"), &source, "one", quantise);
        let original = Checkpoint::open(&source, quantise).unwrap();
        let (config, want) = (original.validate().unwrap(), packed(&original, &Tails));
        fs::remove_dir_all(&source).unwrap();
        let head = store.verify_head("one").unwrap();
        assert!(Store::is_head(&head) && head == store.head_path("one").unwrap());
        let segments = folder.path().join("segments");
        let brought = bring(&store, &manifest, &segments, LoadOptions::default(), 0).unwrap();
        assert_eq!((brought.tier, brought.fallback), (Tier::Disk, None));
        let checkpoint = Checkpoint::open(&head, quantise).unwrap().with_loaded(brought.loaded.clone()).unwrap();
        assert_eq!(checkpoint.validate().unwrap(), config);
        assert_eq!(bytes(&brought.loaded), want);
        // Weights of another form are not taken for these.
        let other = if quantise.is_none() { Some(Quantisation::Q8_0) } else { None };
        assert!(Checkpoint::open(&head, other).unwrap().with_loaded(brought.loaded).is_err());
        // Holes take no room.
        let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(head.join("model.safetensors")).unwrap());
        assert!(blocks * 512 < manifest.bytes() / 2);
    }
}

#[test]
fn a_damaged_head_is_named_and_mended() {
    let folder = scratch();
    let source = folder.path().join("source");
    fs::create_dir(&source).unwrap();
    write(&wide(3000), &source, 1);
    let (store, _) = kept(&folder.path().join("store"), &source, "one");
    let head = store.head_path("one").unwrap();
    for (file, change) in [
        ("config.json", Some(b'x')),
        ("tokenizer.json", None),
        ("model.safetensors", Some(b'x')),
        ("../sums", Some(b'x')),
        ("../sums", None),
    ] {
        let path = head.join(file);
        let mut bytes = fs::read(&path).unwrap();
        match change {
            Some(byte) => {
                bytes[10] = byte;
                fs::write(&path, bytes).unwrap();
            }
            None => fs::remove_file(&path).unwrap(),
        }
        let error = store.verify_head("one").unwrap_err().to_string();
        let name = Path::new(file).file_name().unwrap().to_string_lossy();
        assert!(error.contains(&*name) && error.contains("add the model again"), "{error}");
        store.keep_head(&source, "one").unwrap();
        store.verify_head("one").unwrap();
    }
    let outside = format!("{} 1 1 ../../../passwd\n", engine_store::Checksum::of(b"x"));
    fs::write(head.with_file_name("sums"), outside).unwrap();
    assert!(matches!(store.verify_head("one"), Err(StoreError::Head { .. })));
}

#[test]
fn without_room_the_files_of_the_store_are_mapped_and_damage_is_found_all_the_same() {
    let folder = scratch();
    let source = folder.path().join("source");
    fs::create_dir(&source).unwrap();
    write(&wide(3000), &source, 1);
    let (store, manifest) = kept(&folder.path().join("store"), &source, "one");
    let want = packed(&Checkpoint::open(&source, None).unwrap(), &Tails);
    let segments = folder.path().join("segments");
    // More than any machine has is to stay free.
    let brought = bring(&store, &manifest, &segments, LoadOptions::default(), u64::MAX / 2).unwrap();
    assert_eq!(brought.tier, Tier::File);
    assert!(brought.fallback.unwrap().contains("no memory is left"));
    assert_eq!(bytes(&brought.loaded), want);
    // A folder that others may write is not believed.
    let open = folder.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let brought = bring(&store, &manifest, &open, LoadOptions::default(), 0).unwrap();
    assert_eq!((brought.tier, bytes(&brought.loaded)), (Tier::File, want));
    let path = store.object_path(manifest.objects[0].name());
    let mut damaged = fs::read(&path).unwrap();
    damaged[5] ^= 1;
    fs::write(&path, damaged).unwrap();
    let error = bring(&store, &manifest, &open, LoadOptions::default(), 0).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
}

#[test]
fn what_no_model_needs_is_known_and_goes() {
    let folder = scratch();
    let root = folder.path().join("store");
    let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
    for (source, seed) in [(&first, 1), (&second, 2)] {
        fs::create_dir(source).unwrap();
        write(&wide(3000), source, seed);
    }
    let (store, one) = kept(&root, &first, "one");
    let (_, two) = kept(&root, &second, "two");
    let only_two: BTreeSet<_> =
        two.objects.iter().filter(|object| !one.objects.contains(object)).map(|object| object.name()).collect();
    let forgotten: BTreeSet<_> = store.forget("two", Tails.layout()).unwrap().into_iter().collect();
    assert_eq!(forgotten, only_two);
    assert!(store.verify_head("two").is_err() && store.verify_head("one").is_ok());
    assert!(store.forget("two", Tails.layout()).unwrap().is_empty());
    let freed = store.keep_only(&["one".to_owned()].into()).unwrap();
    assert!(freed.bytes > 0 && store.verify(&one, |_| {}).is_empty());
    let segments = Segments::open(folder.path().join("segments")).unwrap();
    let brought = bring(&store, &one, segments.folder(), LoadOptions::default(), 0).unwrap();
    assert_eq!(segments.held().unwrap().len(), one.objects.len());
    assert!(segments.held().unwrap().iter().all(|held| held.mapped));
    drop(brought);
    store.keep_only(&BTreeSet::new()).unwrap();
    assert!(store.manifests().unwrap().is_empty() && store.verify_head("one").is_err());
    assert_eq!(fs::read_dir(root.join("heads")).unwrap().count(), 0);
}

#[test]
fn weights_come_ahead_of_a_start_part_by_part_and_stop_when_told() {
    let folder = scratch();
    let source = folder.path().join("source");
    fs::create_dir(&source).unwrap();
    write(&wide(3000), &source, 1);
    let (store, manifest) = kept(&folder.path().join("store"), &source, "one");
    let place = folder.path().join("segments");
    let stopped = bring_ahead(&store, &manifest, &place, 0, &mut |_| false).unwrap();
    assert_eq!(stopped, Ahead::default());
    let mut asked = Vec::new();
    let mut first = |read_bytes| {
        asked.push(read_bytes);
        asked.len() == 1
    };
    let stopped = bring_ahead(&store, &manifest, &place, 0, &mut first).unwrap();
    let whole = bring_ahead(&store, &manifest, &place, 0, &mut |_| true).unwrap();
    assert_eq!((whole.whole, stopped.read_bytes + whole.read_bytes), (true, manifest.bytes()), "{asked:?}");
    // A start finds them, and they are what the source says.
    let brought = bring(&store, &manifest, &place, LoadOptions::default(), 0).unwrap();
    assert_eq!(brought.tier, Tier::Memory);
    let original = Checkpoint::open(&source, None).unwrap();
    assert_eq!(bytes(&brought.loaded), packed(&original, &Tails));
    let again = bring_ahead(&store, &manifest, &place, 0, &mut |_| panic!("nothing is missing")).unwrap();
    assert_eq!(again, Ahead { read_bytes: 0, whole: true });
}

#[test]
fn what_comes_ahead_is_verified_and_takes_no_memory_that_is_short() {
    let folder = scratch();
    let source = folder.path().join("source");
    fs::create_dir(&source).unwrap();
    write(&wide(3000), &source, 1);
    let (store, manifest) = kept(&folder.path().join("store"), &source, "one");
    let place = folder.path().join("segments");
    let refused = bring_ahead(&store, &manifest, &place, u64::MAX / 2, &mut |_| true).unwrap_err();
    assert!(matches!(refused, StoreError::Memory { .. }), "{refused}");
    let object = store.object_path(manifest.objects[0].name());
    let mut bytes = fs::read(&object).unwrap();
    bytes[100] ^= 1;
    fs::write(&object, bytes).unwrap();
    assert!(bring_ahead(&store, &manifest, &place, 0, &mut |_| true).is_err());
    assert!(!place.join(manifest.objects[0].name().to_string()).exists());
}
