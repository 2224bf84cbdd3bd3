//! Weights that come from the store compute what those of the file do, bit for bit, wherever they were.

use crate::support::{Driver, GEMMA3, Model, SMOLLM2, bits, teacher_forced};
use engine_runtime::{Compute, CpuBands};
use engine_store::{
    Checkpoint, LoadOptions, Store,
    host::{Tier, bring},
};

fn check(model: &Model, compute: Compute) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(folder.path().join("store")).expect("a store");
    let file = Checkpoint::open(model.path(), None).expect("a checkpoint");
    store.keep_head(&model.path(), "one").expect("kept");
    let manifest = store.ingest(&file, "one", &CpuBands, &mut |_| {}).expect("ingested");
    let cases = model.golden().cases;
    let expected = teacher_forced(&mut Driver::new(&file, compute), &cases);
    let segments = folder.path().join("segments");
    for (tier, reserve_bytes) in [(Tier::Disk, 0), (Tier::Memory, 0), (Tier::File, u64::MAX / 2)] {
        if tier == Tier::File {
            std::fs::remove_dir_all(&segments).expect("removed");
        }
        let brought = bring(&store, &manifest, &segments, LoadOptions::default(), reserve_bytes).expect("brought");
        assert_eq!(brought.tier, tier);
        let head = store.verify_head("one").expect("whole");
        let checkpoint = Checkpoint::open(head, None).expect("a head").with_loaded(brought.loaded).expect("the same");
        let found = teacher_forced(&mut Driver::new(&checkpoint, compute), &cases);
        let same = expected.iter().flatten().zip(found.iter().flatten()).all(|(a, b)| bits(a) == bits(b));
        assert!(same, "{model:?}, {compute:?}, {tier:?}");
    }
}

#[test]
fn stored_weights_compute_the_same_bits() {
    check(&SMOLLM2, Compute::Fast);
    check(&GEMMA3, Compute::Fast);
}

#[test]
fn stored_weights_compute_the_same_bits_in_f32() {
    check(&SMOLLM2, Compute::F32);
}
