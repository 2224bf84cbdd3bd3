//! all-MiniLM-L6-v2 against vectors from transformers in float32, and the same bits in any company.

use engine_core::{Encode, EncodeBatch, ForwardError, TokenId};
use engine_runtime::kernels::cpu::simd::Isa;
use engine_runtime::{LoadOptions, load_encoder, load_encoder_on};
use engine_store::EncoderCheckpoint;
use serde::Deserialize;
use std::path::PathBuf;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    input_ids: Vec<TokenId>,
    embedding: Vec<f64>,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn golden() -> Vec<Case> {
    let path = root().join("../shared/golden/minilm_l6_v2_embeddings_f32.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str::<Golden>(&text).expect("the golden file's shape").cases
}

fn checkpoint() -> EncoderCheckpoint {
    let path = root().join("target/models/minilm");
    EncoderCheckpoint::open(&path).unwrap_or_else(|error| panic!("{error}: run `cargo xtask setup`"))
}

fn batch(texts: &[Vec<TokenId>]) -> EncodeBatch {
    EncodeBatch { tokens: texts.concat(), lengths: texts.iter().map(Vec::len).collect() }
}

fn encode(device: &mut dyn Encode, texts: &[Vec<TokenId>]) -> Vec<Vec<u32>> {
    let mut out = Vec::new();
    device.encode(&batch(texts), &mut out).expect("vectors");
    let dimensions = device.shape().dimensions;
    assert_eq!(out.len(), texts.len() * dimensions);
    out.chunks_exact(dimensions).map(|vector| vector.iter().map(|x| x.to_bits()).collect()).collect()
}

#[test]
fn vectors_are_the_references() {
    let cases = golden();
    let mut device = load_encoder(&checkpoint(), &LoadOptions::default()).expect("a device");
    let texts: Vec<Vec<TokenId>> = cases.iter().map(|case| case.input_ids.clone()).collect();
    for (case, bits) in cases.iter().zip(encode(&mut *device, &texts)) {
        let vector: Vec<f64> = bits.iter().map(|bits| f64::from(f32::from_bits(*bits))).collect();
        let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
        let reference = case.embedding.iter().map(|x| x * x).sum::<f64>().sqrt();
        let cosine = vector.iter().zip(&case.embedding).map(|(a, b)| a * b).sum::<f64>() / length / reference;
        assert!(cosine > 0.999_999_9, "{:?}: cosine {cosine}", case.text);
        assert!((length - 1.0).abs() < 1e-6, "{:?}: length {length}", case.text);
    }
}

#[test]
fn vectors_do_not_depend_on_company_threads_or_instruction_set() {
    let texts: Vec<Vec<TokenId>> = golden().into_iter().map(|case| case.input_ids).collect();
    let checkpoint = checkpoint();
    let options = |threads| LoadOptions { threads, ..LoadOptions::default() };
    let mut device = load_encoder(&checkpoint, &options(2)).expect("a device");
    let alone: Vec<Vec<u32>> = texts.iter().flat_map(|text| encode(&mut *device, std::slice::from_ref(text))).collect();
    // In both orders, so that each has others before it and behind it; and again after larger batches.
    let mut reversed = texts.clone();
    reversed.reverse();
    let mut backwards = encode(&mut *device, &reversed);
    backwards.reverse();
    assert_eq!(alone, encode(&mut *device, &texts));
    assert_eq!(alone, backwards);
    let mut single = load_encoder(&checkpoint, &options(1)).expect("a device");
    assert_eq!(alone, encode(&mut *single, &texts));
    let mut portable = load_encoder_on(&checkpoint, &options(2), Isa::Portable).expect("a device");
    assert_eq!(alone[..3], encode(&mut *portable, &texts[..3]));
}

#[test]
fn malformed_batches_are_refused() {
    let mut device = load_encoder(&checkpoint(), &LoadOptions::default()).expect("a device");
    let mut check = |tokens: Vec<TokenId>, lengths: Vec<usize>, expected: &str| {
        let error = device.encode(&EncodeBatch { tokens, lengths }, &mut Vec::new()).expect_err("malformed");
        assert!(matches!(&error, ForwardError::Device { message } if message.contains(expected)), "{error}");
    };
    check(vec![1], vec![1, 0], "a text of 0 tokens");
    check(vec![1; 257], vec![257], "a text of 257 tokens; 1 to 256 can be");
    check(vec![1; 3], vec![1, 1], "3 tokens, but the texts have 2");
    check(vec![30_522], vec![1], "outside the vocabulary of 30522");
}
