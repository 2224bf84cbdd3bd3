//! Weights that come from the store compute what those of the file do, bit for bit, wherever they were.

use crate::folder::Dtype;
use crate::folders::folder_of;
use crate::support::{Case, Driver, GEMMA3, SMOLLM2, Top, bits, teacher_forced};
use engine_runtime::{Compute, CpuBands};
use engine_store::{
    Checkpoint, LoadOptions, Quantisation, Store,
    host::{Tier, bring},
};
use std::path::Path;

/// Ordinary tokens of either model; which ones does not matter.
fn case(number: u32) -> Case {
    let tokens = |from: u32, count: u32| (from..from + count).map(|id| 1000 + id * 37).collect();
    let first_step_top5 = Top { ids: Vec::new(), logits: Vec::new() };
    Case {
        prompt_ids: tokens(number * 100, 17 + number),
        greedy_ids: tokens(number * 50, 6),
        top1_minus_top2: Vec::new(),
        first_step_top5,
    }
}

fn check(path: &Path, quantise: Option<Quantisation>, compute: Compute) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(folder.path().join("store")).expect("a store");
    let source = Checkpoint::open(path, quantise).expect("a checkpoint");
    store.keep_head(path, "one").expect("kept");
    let manifest = store.ingest(&source, "one", &CpuBands, &mut |_| {}).expect("ingested");
    let cases: Vec<Case> = (0..3).map(case).collect();
    let expected = teacher_forced(&mut Driver::new(&source, compute), &cases);
    let segments = folder.path().join("segments");
    for (tier, reserve_bytes) in [(Tier::Disk, 0), (Tier::Memory, 0), (Tier::File, u64::MAX / 2)] {
        if tier == Tier::File {
            std::fs::remove_dir_all(&segments).expect("removed");
        }
        let brought = bring(&store, &manifest, &segments, LoadOptions::default(), reserve_bytes).expect("brought");
        assert_eq!(brought.tier, tier);
        let head = store.verify_head("one").expect("whole");
        let checkpoint = Checkpoint::open(head, quantise).expect("a head").with_loaded(brought.loaded);
        let found = teacher_forced(&mut Driver::new(&checkpoint.expect("the same"), compute), &cases);
        let same = expected.iter().flatten().zip(found.iter().flatten()).all(|(a, b)| bits(a) == bits(b));
        assert!(same, "{}, {quantise:?}, {compute:?}, {tier:?}", path.display());
    }
}

#[test]
fn stored_weights_compute_the_same_bits() {
    check(&SMOLLM2.path(), None, Compute::Fast);
    check(&GEMMA3.path(), None, Compute::Fast);
}

#[test]
fn stored_weights_compute_the_same_bits_in_f32() {
    check(&SMOLLM2.path(), None, Compute::F32);
}

#[test]
fn stored_folders_compute_the_same_bits() {
    let folder = folder_of(&SMOLLM2, Dtype::BF16, 3);
    check(folder.path(), Some(Quantisation::Q4_0), Compute::Fast);
    check(folder.path(), None, Compute::Fast);
}
