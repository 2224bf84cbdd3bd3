//! The text side of a real checkpoint, against what transformers makes of the same one.

use engine_store::Gguf;
use engine_text::TextModel;
use engine_wire::openai::{ChatMessage, Role};
use proptest::prelude::*;
use std::path::Path;
use std::sync::LazyLock;

static MODEL: LazyLock<TextModel> = LazyLock::new(|| {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(path.exists(), "no checkpoint at {}: `cargo xtask setup` fetches it", path.display());
    let gguf = Gguf::open(&path).expect("the checkpoint opens");
    TextModel::from_gguf(&gguf).expect("the checkpoint has a tokenizer")
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
    let golden: Golden = serde_json::from_str(include_str!("smollm2.json")).expect("the reference outputs");
    assert_eq!(golden.cases.len(), 10);
    for case in golden.cases {
        assert_eq!(MODEL.encode(&case.text, true).expect("tokens"), case.prompt_ids, "{:?}", case.text);
        assert_eq!(MODEL.decode(&case.greedy_ids, false), case.greedy_text, "{:?}", case.text);
        assert_eq!(MODEL.decode(&case.prompt_ids, false), case.text);
    }
}

#[test]
fn metadata_is_taken_over() {
    assert_eq!(MODEL.vocab(), 49_152);
    assert_eq!(MODEL.context_tokens, 8192);
    assert_eq!(MODEL.bos_id(), Some(1));
    // <|endoftext|> and <|im_end|>.
    assert_eq!(MODEL.eos_ids(), [0, 2]);
}

fn message(role: Role, content: &str) -> ChatMessage {
    ChatMessage::text(role, content)
}

#[test]
fn a_conversation_becomes_chatml() {
    let user = message(Role::User, "Hi\n there ");
    let check = |messages: &[ChatMessage], expected: &str| {
        assert_eq!(MODEL.render_chat(messages, &[]).expect("a prompt"), expected);
    };
    check(
        std::slice::from_ref(&user),
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
         <|im_start|>user\nHi\n there <|im_end|>\n<|im_start|>assistant\n",
    );
    check(
        &[message(Role::System, "Be {{ brief }}."), user, message(Role::Assistant, "Yes?"), message(Role::User, "<b>")],
        "<|im_start|>system\nBe {{ brief }}.<|im_end|>\n<|im_start|>user\nHi\n there <|im_end|>\n\
         <|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>user\n<b><|im_end|>\n<|im_start|>assistant\n",
    );
}

#[test]
fn special_tokens_in_text_are_one_token_each() {
    let ids = MODEL.encode("<|im_start|>user\nHi<|im_end|>", false).expect("tokens");
    assert_eq!((ids.first(), ids.last()), (Some(&1), Some(&2)));
    assert_eq!(MODEL.decode(&ids, true), "user\nHi");
    assert_eq!(MODEL.decode(&ids, false), "<|im_start|>user\nHi<|im_end|>");
}

/// Long and repetitive texts: what makes a tokenizer quadratic, or its pattern engine give up.
#[test]
fn large_inputs_come_back_whole() {
    for unit in
        ["a", " ", "\n", "1", "é", "日本", "a b ", "  \n\t ", "'s", "!?", "The quick brown fox. ", "<|im_start|>", "😀"]
    {
        let text = unit.repeat((256 << 10) / unit.len());
        let started = std::time::Instant::now();
        let ids = MODEL.encode(&text, false).expect("tokens");
        println!("{unit:?}: {} tokens in {:?}", ids.len(), started.elapsed());
        assert!(MODEL.decode(&ids, false) == text, "{unit:?} repeated");
        assert!(ids.len() as u64 >= MODEL.tokens_at_least(text.len()), "{unit:?}");
    }
}

/// Bytes of valid UTF-8 that this vocabulary has no token for: SmolLM2's was trained without them, and
/// transformers drops them as well.
fn has_tokens(character: char) -> bool {
    let mut buffer = [0; 4];
    let missing = [0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2];
    character.encode_utf8(&mut buffer).bytes().all(|byte| !missing.contains(&byte))
}

fn texts() -> impl Strategy<Value = String> {
    let character = prop_oneof![
        any::<char>(),
        prop::char::range(' ', '~'),
        prop::sample::select(vec![
            ' ', '\n', '\t', '\r', '\u{a0}', '1', 'é', 'e', '\u{301}', '日', '😀', '\u{200d}', '|', '<'
        ])
    ];
    prop::collection::vec(character.prop_filter("no token for it", |character| has_tokens(*character)), 0..40)
        .prop_map(String::from_iter)
}

proptest! {
    #[test]
    fn decoding_undoes_encoding(text in texts()) {
        let ids = MODEL.encode(&text, false).expect("tokens");
        prop_assert_eq!(MODEL.decode(&ids, false), text);
    }

    #[test]
    fn streamed_text_equals_whole_text(ids in prop::collection::vec(0u32..49_152, 0..40), skip in any::<bool>()) {
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
