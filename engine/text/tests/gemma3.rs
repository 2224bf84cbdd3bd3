//! SentencePiece on a real checkpoint, against what transformers makes of the same one.

use engine_store::Gguf;
use engine_text::TextModel;
use engine_wire::openai::{ChatMessage, Role};
use proptest::prelude::*;
use std::path::Path;
use std::sync::LazyLock;

static MODEL: LazyLock<TextModel> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/models/gemma3-270m/gemma3-270m-q4_k_m.gguf");
    assert!(path.exists(), "no checkpoint at {}: `cargo xtask setup` fetches it", path.display());
    let gguf = Gguf::open(&path).expect("the checkpoint opens");
    let started = std::time::Instant::now();
    let model = TextModel::from_gguf(&gguf).expect("the checkpoint has a tokenizer");
    println!("the text side loads in {:?}", started.elapsed());
    model
});

#[derive(serde::Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    text: String,
    prompt_ids: Vec<u32>,
    greedy_ids: Vec<u32>,
    greedy_text: String,
}

#[test]
fn tokens_and_text_are_those_of_transformers() {
    let golden: Golden = serde_json::from_str(include_str!("gemma3.json")).expect("the reference outputs");
    assert_eq!(golden.cases.len(), 5);
    for case in golden.cases {
        assert_eq!(MODEL.encode(&case.text, true).expect("tokens"), case.prompt_ids, "{:?}", case.text);
        assert_eq!(MODEL.decode(&case.greedy_ids, false), case.greedy_text, "{:?}", case.text);
        assert_eq!(MODEL.decode(&case.prompt_ids, true), case.text);
        // What it wrote itself is cut as it was written, begin token apart.
        assert_eq!(MODEL.encode(&case.greedy_text, false).expect("tokens"), case.greedy_ids, "{:?}", case.text);
    }
}

#[test]
fn metadata_is_taken_over() {
    assert_eq!(MODEL.vocab(), 262_144);
    assert_eq!(MODEL.context_tokens, 32_768);
    assert_eq!(MODEL.bos_id(), Some(2));
    // <eos> and <end_of_turn>.
    assert_eq!(MODEL.eos_ids(), [1, 106]);
}

#[test]
fn without_a_template_chats_are_refused_with_the_way_out() {
    let message = ChatMessage::text(Role::User, "Hi");
    let error = MODEL.render_chat(&[message], &[]).expect_err("there is no template").to_string();
    assert!(error.contains("/v1/completions"), "{error}");
}

fn check(text: &str, expected: &[&str]) {
    let ids = MODEL.encode(text, false).expect("tokens");
    let pieces: Vec<String> = ids.iter().map(|id| MODEL.decode(&[*id], false)).collect();
    assert_eq!(pieces, expected, "{text:?}");
}

#[test]
fn special_tokens_runs_and_bytes() {
    check("<start_of_turn>user\nHi<end_of_turn>", &["<start_of_turn>", "user", "\n", "Hi", "<end_of_turn>"]);
    // Runs of blanks and line feeds are tokens of their own; a single space belongs to its word.
    check("if x:\n\n        return", &["if", " x", ":", "\n\n", "        ", "return"]);
    // A byte token written out is text, not that byte.
    check("<0x41>", &["<", "0", "x", "4", "1", ">"]);
    // A character that the vocabulary lacks becomes its four bytes, none of which is text by itself.
    check("\u{10FFFD}", &["\u{FFFD}"; 4]);
    check("", &[]);
}

/// Long and repetitive texts: what makes a tokenizer quadratic.
#[test]
fn large_inputs_come_back_whole() {
    for unit in
        ["a", " ", "\n", "1", "é", "日本", "a b ", "  \n\t ", "<", "The quick brown fox. ", "<end_of_turn>", "😀"]
    {
        let text = unit.repeat((256 << 10) / unit.len());
        let started = std::time::Instant::now();
        let ids = MODEL.encode(&text, false).expect("tokens");
        println!("{unit:?}: {} tokens in {:?}", ids.len(), started.elapsed());
        assert!(MODEL.decode(&ids, false) == text, "{unit:?} repeated");
        assert!(ids.len() as u64 >= MODEL.tokens_at_least(text.len()), "{unit:?}");
    }
}

/// Any text but U+2581, which this vocabulary cannot tell from a space.
fn texts() -> impl Strategy<Value = String> {
    let blanks = prop::sample::select(vec![' ', '\n', '\t', '\r', '\u{a0}', '1', 'é', '\u{301}', '日', '😀', '<']);
    let character = prop_oneof![any::<char>(), prop::char::range(' ', '~'), blanks];
    let character = character.prop_filter("a space", |character| *character != '\u{2581}');
    prop::collection::vec(character, 0..40).prop_map(String::from_iter)
}

proptest! {
    #[test]
    fn decoding_undoes_encoding(text in texts()) {
        let ids = MODEL.encode(&text, false).expect("tokens");
        prop_assert_eq!(MODEL.decode(&ids, false), text);
    }

    #[test]
    fn streamed_text_equals_whole_text(ids in prop::collection::vec(0u32..262_144, 0..40), skip in any::<bool>()) {
        let mut detokenizer = MODEL.detokenizer(skip);
        let mut streamed = String::new();
        for id in &ids {
            let mut text = String::new();
            detokenizer.push(*id, &mut text);
            streamed.push_str(&text);
        }
        detokenizer.finish(&mut streamed);
        prop_assert_eq!(streamed, MODEL.decode(&ids, skip));
    }
}
