//! The real checkpoints as Hugging Face folders: in f32 the reference tokens, in shards the same bits, quantised at
//! load within the bounds of the fast path.

use crate::fast::{Bounds, check as check_fast};
use crate::golden::check as check_golden;
use crate::support::{Driver, GEMMA3, Model, SMOLLM2, bits};
use crate::{folder, tokenizer_json};
use engine_runtime::Compute;
use engine_store::{Checkpoint, GgmlType, Quantisation};
use folder::Dtype;
use tempfile::TempDir;

/// The model as a folder.
pub fn folder_of(model: &Model, dtype: Dtype, shards: usize) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    tokenizer_json::write(&model.gguf(), folder.path());
    folder::write(&model.gguf(), folder.path(), dtype, shards);
    folder
}

fn open(folder: &TempDir, quantisation: Option<Quantisation>) -> Checkpoint {
    Checkpoint::open(folder.path(), quantisation).expect("a good folder")
}

#[test]
fn f32_folders_reproduce_every_reference_token() {
    for model in [&SMOLLM2, &GEMMA3] {
        let folder = folder_of(model, Dtype::F32, 1);
        check_golden(model, &mut Driver::new(&open(&folder, None), Compute::F32));
    }
}

/// Logits after a prompt, prefilled in one step.
fn logits(checkpoint: &Checkpoint, compute: Compute) -> Vec<u32> {
    let mut driver = Driver::new(checkpoint, compute);
    let mut sequence = driver.sequence(&SMOLLM2.golden().cases[0].prompt_ids, 0);
    bits(&driver.finish(&mut sequence))
}

#[test]
fn shards_compute_the_same_bits_as_one_file() {
    let [one, many] = [1, 3].map(|shards| folder_of(&SMOLLM2, Dtype::BF16, shards));
    assert!(many.path().join("model-00003-of-00003.safetensors").exists());
    let [first, second] = [&one, &many].map(|folder| open(folder, None));
    assert_eq!(first.tensors().count(), 272);
    assert!(first.tensors().eq(second.tensors()));
    assert!(logits(&first, Compute::Fast) == logits(&second, Compute::Fast));
    // Quantised in pieces or whole.
    let [first, second] = [&one, &many].map(|folder| open(folder, Some(Quantisation::Q4_0)));
    for tensor in first.tensors() {
        let data = [&first, &second].map(|checkpoint| checkpoint.tensor_data(tensor.name).expect("a tensor"));
        assert!(data[0][..] == data[1][..], "{}", tensor.name);
    }
}

#[test]
fn folders_quantised_at_load_stay_within_the_bounds_of_the_fast_path() {
    let folder = folder_of(&SMOLLM2, Dtype::F32, 1);
    let checkpoint = open(&folder, Some(Quantisation::Q8_0));
    let kinds: Vec<GgmlType> = checkpoint.tensors().filter(|x| x.dims.len() == 2).map(|x| x.kind).collect();
    assert!(kinds.len() == 211 && kinds.iter().all(|kind| *kind == GgmlType::Q8_0), "{kinds:?}");
    // Measured: 0.079 and 0.41; rounding weights to eight bits errs as much as rounding activations does.
    check_fast(&SMOLLM2, &checkpoint, Bounds { mean: 0.1, worst: 0.5, decided: 200 });
    // These weights have been in Q4_1 before, so going there again changes them little.
    let checkpoint = open(&folder, Some(Quantisation::Q4_1));
    check_fast(&SMOLLM2, &checkpoint, Bounds { mean: 0.08, worst: 0.4, decided: 200 });
}
