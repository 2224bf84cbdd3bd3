//! The tokenizer of all-MiniLM-L6-v2 against reference tokens.

use engine_store::{EncoderCheckpoint, ShorterVectors};
use engine_text::{TextModel, VectorFacts};
use serde::Deserialize;
use std::path::PathBuf;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    input_ids: Vec<u32>,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn model() -> TextModel {
    let path = root().join("target/models/minilm");
    let checkpoint = EncoderCheckpoint::open(&path).unwrap_or_else(|error| panic!("{error}: run `cargo xtask setup`"));
    TextModel::from_encoder(&checkpoint).expect("a tokenizer")
}

#[test]
fn tokens_are_the_references_cut_at_the_models_limit() {
    let path = root().join("../shared/golden/minilm_l6_v2_embeddings_f32.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (model, golden) = (model(), serde_json::from_str::<Golden>(&text).expect("the golden file's shape"));
    let mut cut = 0;
    for case in golden.cases {
        let mut ids = model.encode(&case.text, true).expect("tokens");
        let whole = ids.clone();
        cut += usize::from(whole.len() > model.context_tokens as usize);
        model.truncate(&mut ids, model.context_tokens as usize);
        assert_eq!(ids, case.input_ids, "{:?}", case.text);
        let content = model.encode(&case.text, false).expect("tokens");
        assert_eq!(whole[1..whole.len() - 1], content);
    }
    assert_eq!(cut, 1, "one of the texts is longer than the limit");
    assert_eq!((model.context_tokens, model.vocab()), (256, 30_522));
}

#[test]
fn cuts_keep_the_tokens_around_a_text() {
    let model = model();
    let check = |limit: usize, expected: &[u32]| {
        let mut ids = vec![101, 7, 8, 9, 102];
        model.truncate(&mut ids, limit);
        assert_eq!(ids, expected, "{limit}");
    };
    check(9, &[101, 7, 8, 9, 102]);
    check(5, &[101, 7, 8, 9, 102]);
    check(4, &[101, 7, 8, 102]);
    check(3, &[101, 7, 102]);
    check(2, &[101, 7]);
    check(1, &[101]);
    let mut bare = vec![7, 8, 9];
    model.truncate(&mut bare, 2);
    assert_eq!(bare, [7, 8], "token ids that came without the tokens around them");
}

#[test]
fn tokens_become_text_again() {
    let model = model();
    let ids = model.encode("Embeddings, unaffable!", true).expect("tokens");
    assert_eq!(model.decode(&ids, true), "embeddings , unaffable !");
    assert_eq!(model.decode(&ids, false), "[CLS] embeddings , unaffable ![SEP]");
    assert_eq!((model.tokens_at_least(1 << 20), model.eos_ids().len()), (1, 0));
    assert!(model.template_error().is_some(), "an encoder holds no conversation");
}

#[test]
fn shorter_vectors_only_where_the_model_was_trained_for_them() {
    let allowed = |shorter: ShorterVectors| {
        let facts = VectorFacts { dimensions: 384, shorter };
        [0, 1, 64, 128, 384, 385].map(|dimensions| facts.allows(dimensions))
    };
    assert_eq!(allowed(ShorterVectors::None), [false, false, false, false, true, false]);
    assert_eq!(allowed(ShorterVectors::Any), [false, true, true, true, true, false]);
    assert_eq!(allowed(ShorterVectors::Of(vec![64, 512])), [false, false, true, false, true, false]);
    assert_eq!(model().vectors().map(|facts| facts.dimensions), Some(384));
}
