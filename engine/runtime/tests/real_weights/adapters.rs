//! Adapters beside each other and the base in one batch: what they compute, and that nobody notices the others.

#[path = "../../../store/tests/made/adapter.rs"]
mod made;

use crate::support::{Driver, GEMMA3, Model, SMOLLM2, Sequence, bits};
use engine_core::{AdapterId, TokenId};
use engine_runtime::{Compute, LoadedAdapter, sampling::argmax};
use engine_store::{Checkpoint, GgmlType, Gguf};
use made::{Shape, Tensor, config, linears, tensors, write};
use serde_json::json;
use std::collections::BTreeMap;

const SMOLLM2_SHAPE: Shape = Shape { width: 576, q: 576, kv: 192, ffn: 1536 };
const GEMMA3_SHAPE: Shape = Shape { width: 640, q: 1024, kv: 256, ffn: 2048 };

/// An adapter of all linear layers, loaded.
fn adapter(driver: &Driver, shape: Shape, layers: usize, rank: usize, seed: u32) -> LoadedAdapter {
    let folder = tempfile::tempdir().expect("a folder");
    let layers: Vec<usize> = (0..layers).collect();
    write(folder.path(), &config(rank), &tensors(shape, &layers, rank, seed, 0.3));
    driver.load_adapter(folder.path())
}

/// Two adapters of different rank.
fn two(driver: &Driver, model: &Model) -> [LoadedAdapter; 2] {
    let (shape, layers) = if model == &GEMMA3 { (GEMMA3_SHAPE, 18) } else { (SMOLLM2_SHAPE, 30) };
    [adapter(driver, shape, layers, 16, 1), adapter(driver, shape, layers, 7, 2)]
}

fn sequence(driver: &mut Driver, tokens: &[TokenId], adapter: Option<AdapterId>) -> Sequence {
    let mut sequence = driver.sequence(tokens, 8);
    sequence.adapter = adapter;
    sequence
}

/// The logits of each of three sequences in each of four steps that cut and mix them; `wanted` chooses which of the
/// sequences are there.
fn run(model: &Model, compute: Compute, threads: usize, wanted: &[usize]) -> BTreeMap<usize, Vec<Vec<u32>>> {
    let mut driver = model.device_on(compute, threads, engine_runtime::kernels::cpu::simd::Isa::detect());
    let adapters = two(&driver, model);
    let prompt: Vec<TokenId> = model.golden().cases.iter().flat_map(|case| case.prompt_ids.clone()).collect();
    let prompt: Vec<TokenId> = prompt.into_iter().cycle().take(45).collect();
    let of = [None, Some(adapters[0].id()), Some(adapters[1].id())];
    let mut sequences: Vec<(usize, Sequence)> =
        wanted.iter().map(|index| (*index, sequence(&mut driver, &prompt, of[*index]))).collect();
    let mut out: BTreeMap<usize, Vec<Vec<u32>>> = BTreeMap::new();
    // Each by its own cuts, so that prefills and decodes meet.
    let cuts = [[40, 1, 20], [5, 43, 4], [1, 1, 21], [1, 1, 1]];
    for cuts in cuts {
        let parts: Vec<usize> = sequences.iter().map(|(index, _)| cuts[*index]).collect();
        let mut refs: Vec<&mut Sequence> = sequences.iter_mut().map(|(_, sequence)| sequence).collect();
        let mut logits = driver.step(&mut refs, &parts).into_iter();
        for (index, sequence) in &mut sequences {
            if sequence.done == sequence.tokens.len() {
                let logits = logits.next().expect("a row");
                sequence.tokens.push(argmax(&logits).expect("finite"));
                out.entry(*index).or_default().push(bits(&logits));
            }
        }
    }
    out
}

fn check_mixed(model: &Model, compute: Compute) {
    let alone: Vec<_> = (0..3).map(|index| run(model, compute, 1, &[index]).remove(&index).expect("it ran")).collect();
    assert!(alone[0].last() != alone[1].last() && alone[1].last() != alone[2].last(), "adapters change what is said");
    for threads in [1, 2, 3] {
        let mixed = run(model, compute, threads, &[0, 1, 2]);
        let turned = run(model, compute, threads, &[2, 1, 0]);
        for (index, alone) in alone.iter().enumerate() {
            assert!(&mixed[&index] == alone && &turned[&index] == alone, "sequence {index}, {threads} threads");
        }
    }
}

#[test]
fn adapters_and_base_in_one_batch_do_not_notice_each_other() {
    check_mixed(&SMOLLM2, Compute::Fast);
}

#[test]
fn nor_in_f32_nor_in_gemma3() {
    check_mixed(&SMOLLM2, Compute::F32);
    check_mixed(&GEMMA3, Compute::Fast);
}

#[test]
fn an_adapter_that_is_gone_is_named_and_the_device_goes_on() {
    use engine_core::{Batch, BatchSequence, ForwardError};
    let mut driver = SMOLLM2.device_on(Compute::Fast, 1, engine_runtime::kernels::cpu::simd::Isa::detect());
    let loaded = adapter(&driver, SMOLLM2_SHAPE, 30, 8, 1);
    assert!(loaded.bytes() > 4_000_000, "{}", loaded.bytes());
    let part = BatchSequence { new_tokens: 1, start: 0, blocks: vec![0], logits: 1, adapter: Some(loaded.id()) };
    let batch = Batch { tokens: vec![1], sequences: vec![part] };
    assert_eq!(driver.device.forward(&batch, &mut Vec::new()), Ok(()));
    drop(loaded);
    match driver.device.forward(&batch, &mut Vec::new()) {
        Err(ForwardError::Device { message }) => assert!(message.contains("adapter 0 is not loaded"), "{message}"),
        other => panic!("{other:?}"),
    }
    let again = adapter(&driver, SMOLLM2_SHAPE, 30, 8, 1);
    assert_eq!(again.id(), 1, "names are never given twice");
}

/// Merging `W + scale B A` into dequantised weights is another way to the same model.
#[test]
fn merged_weights_say_the_same_as_the_adapter() {
    let layers = [0, 7, 29];
    let (rank, alpha) = (8, 12.0f32);
    let tensors = tensors(SMOLLM2_SHAPE, &layers, rank, 5, 0.3);
    let folder = tempfile::tempdir().expect("a folder");
    let mut fields = config(rank);
    fields.insert("lora_alpha".to_owned(), json!(alpha));
    fields.insert("layers_to_transform".to_owned(), json!(layers));
    write(folder.path(), &fields, &tensors);

    let mut driver = SMOLLM2.device_on(Compute::F32, 2, engine_runtime::kernels::cpu::simd::Isa::detect());
    let loaded = driver.load_adapter(folder.path());
    let merged = merged(&SMOLLM2.gguf(), &tensors, rank, alpha / rank as f32);
    let mut other = Driver::new(&Checkpoint::from(&merged), Compute::F32);
    let mut unlike_the_base = 0;
    for case in SMOLLM2.golden().cases.iter().take(4) {
        let mut adapted = driver.sequence(&case.prompt_ids, 16);
        adapted.adapter = Some(loaded.id());
        let mut whole = other.sequence(&case.prompt_ids, 16);
        for step in 0..16 {
            let (found, expected) = (driver.finish(&mut adapted), other.finish(&mut whole));
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() < 2e-3, "step {step}: {found}, expected {expected}");
            }
            let token = argmax(&expected).expect("finite");
            assert_eq!(argmax(&found), Ok(token), "step {step}");
            unlike_the_base += usize::from(token != case.greedy_ids[step]);
            adapted.tokens.push(token);
            whole.tokens.push(token);
        }
    }
    assert!(unlike_the_base > 16, "the adapter has an effect: {unlike_the_base}");
}

/// The same model with the adapter in its weights, which are f32 where it changes them.
fn merged(base: &Gguf, tensors: &[Tensor], rank: usize, scale: f32) -> Gguf {
    let by_name: BTreeMap<&str, &[f32]> = tensors.iter().map(|(name, _, data)| (&name[..], &data[..])).collect();
    let stored = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
    let mut parts: Vec<(String, Vec<u64>, u32, Vec<u8>)> = Vec::new();
    for tensor in base.tensors() {
        let mut fields = tensor.name.split('.').skip(1);
        let layer = fields.next().unwrap_or_default();
        let place = fields.next().and_then(|part| stored.iter().position(|name| *name == part));
        let pair = place.map(|place| (place, linears(SMOLLM2_SHAPE)[place].0)).and_then(|(place, path)| {
            let name = |half: &str| format!("base_model.model.model.layers.{layer}.{path}.{half}.weight");
            Some((place, *by_name.get(&name("lora_A")[..])?, *by_name.get(&name("lora_B")[..])?))
        });
        let number = match tensor.kind {
            GgmlType::F32 => 0,
            GgmlType::Q4_1 => 3,
            GgmlType::Q8_0 => 8,
            other => panic!("{other} in this file"),
        };
        let dims = tensor.dims.to_vec();
        let Some((place, a, b)) = pair else {
            parts.push((tensor.name.to_owned(), dims, number, tensor.bytes.to_vec()));
            continue;
        };
        let (cols, rows) = (dims[0] as usize, dims[1] as usize);
        let weights = dequantised(tensor.kind, tensor.bytes);
        let mut out = Vec::with_capacity(weights.len() * 4);
        for row in 0..rows {
            // Row of the file -> row of transformers: pairs of rows stand together in a head of 64.
            let theirs = if place < 2 { row / 64 * 64 + row % 2 * 32 + row % 64 / 2 } else { row };
            for col in 0..cols {
                let added: f64 =
                    (0..rank).map(|k| f64::from(b[theirs * rank + k]) * f64::from(a[k * cols + col])).sum();
                let merged = f64::from(weights[row * cols + col]) + f64::from(scale) * added;
                out.extend((merged as f32).to_le_bytes());
            }
        }
        parts.push((tensor.name.to_owned(), dims, 0, out));
    }
    rebuilt(&std::fs::read(SMOLLM2.path()).expect("the file"), &parts)
}

fn dequantised(kind: GgmlType, bytes: &[u8]) -> Vec<f32> {
    assert_eq!(kind, GgmlType::Q4_1);
    let half = |bytes: &[u8]| half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
    let blocks = bytes.as_chunks::<20>().0.iter();
    let block = |block: &[u8; 20]| -> Vec<f32> {
        let (d, m) = (half(&block[..2]), half(&block[2..4]));
        let nibble = |i: usize| (block[4 + i % 16] >> (i / 16 * 4)) & 15;
        (0..32).map(|i| d * f32::from(nibble(i)) + m).collect()
    };
    blocks.flat_map(block).collect()
}

/// A GGUF file with the metadata of another and these tensors.
fn rebuilt(file: &[u8], parts: &[(String, Vec<u64>, u32, Vec<u8>)]) -> Gguf {
    let u64_at = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().expect("eight bytes"));
    let mut end = 24;
    for _ in 0..u64_at(16) {
        end += 8 + u64_at(end) as usize;
        end = after_value(file, end + 4, u32::from_le_bytes(file[end..end + 4].try_into().expect("four bytes")));
    }
    let mut out = [&file[..8], &(parts.len() as u64).to_le_bytes(), &file[16..end]].concat();
    let mut offset = 0u64;
    for (name, dims, number, bytes) in parts {
        out.extend((name.len() as u64).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
        out.extend(number.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += (bytes.len() as u64).next_multiple_of(32);
    }
    for (_, _, _, bytes) in parts {
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(bytes);
    }
    Gguf::from_bytes(out).expect("a well-formed file")
}

/// Where a metadata value of this type ends that begins at `at`.
fn after_value(file: &[u8], at: usize, kind: u32) -> usize {
    let u64_at = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().expect("eight bytes")) as usize;
    match kind {
        0 | 1 | 7 => at + 1,
        2 | 3 => at + 2,
        4..=6 => at + 4,
        8 => at + 8 + u64_at(at),
        9 => {
            let item = u32::from_le_bytes(file[at..at + 4].try_into().expect("four bytes"));
            (0..u64_at(at + 4)).fold(at + 12, |at, _| after_value(file, at, item))
        }
        _ => at + 8,
    }
}
