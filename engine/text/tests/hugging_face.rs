//! The text side of Hugging Face folders against that of the GGUF files with the same vocabularies.

#[path = "common/tokenizer_json.rs"]
mod tokenizer_json;

use engine_store::{Gguf, TextFiles};
use engine_text::{TextModel, end_tokens};
use engine_wire::openai::{ChatMessage, Role};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::LazyLock;

/// The same model in both forms, and the folder.
struct Pair {
    gguf: TextModel,
    folder: TextModel,
    path: tempfile::TempDir,
}

impl Pair {
    fn new(file: &str, context_tokens: u32) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/models").join(file);
        let gguf =
            Gguf::open(&path).unwrap_or_else(|error| panic!("{error}\nfetch the checkpoint with: cargo xtask setup"));
        let path = tempfile::tempdir().expect("a folder");
        tokenizer_json::write(&gguf, path.path());
        let config = json!({"model_type": "llama", "max_position_embeddings": context_tokens});
        std::fs::write(path.path().join("config.json"), config.to_string()).expect("a file");
        let folder = TextModel::open(path.path()).expect("the folder has a tokenizer");
        Self { gguf: TextModel::from_gguf(&gguf).expect("the file has a tokenizer"), folder, path }
    }

    fn check(&self, text: &str) {
        for add_special in [false, true] {
            let ids = self.gguf.encode(text, add_special).expect("tokens");
            assert_eq!(self.folder.encode(text, add_special).expect("tokens"), ids, "{text:?}");
            for skip in [false, true] {
                assert_eq!(self.folder.decode(&ids, skip), self.gguf.decode(&ids, skip), "{text:?}");
            }
        }
    }

    fn check_vocabulary(&self) {
        assert_eq!(self.folder.vocab(), self.gguf.vocab());
        for id in 0..self.gguf.vocab() as u32 {
            assert_eq!(self.folder.token_bytes(id), self.gguf.token_bytes(id), "token {id}");
        }
        let (found, expected) = (&self.folder, &self.gguf);
        assert_eq!(found.eos_ids(), expected.eos_ids());
        assert_eq!((found.bos_id(), found.context_tokens), (expected.bos_id(), expected.context_tokens));
        assert_eq!(found.tokens_at_least(100_000), expected.tokens_at_least(100_000));
    }
}

static SMOLLM2: LazyLock<Pair> = LazyLock::new(|| Pair::new("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 8192));
static GEMMA3: LazyLock<Pair> = LazyLock::new(|| Pair::new("gemma3-270m/gemma3-270m-q4_k_m.gguf", 32_768));

const TEXTS: [&str; 12] = [
    "",
    "Hello, world!",
    "  two  spaces\tand\ttabs\r\n\n\nlines  ",
    "1234567890 3.14159 2024-01-01",
    "Grüße, œuvre, naïve; e\u{301}tude",
    "日本語のテキスト、中文文本, 한국어",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 \u{200d}",
    "fn main() {\n    println!(\"{}\", 1 << 20);\n}\n",
    "<|im_start|>user\nHi<|im_end|>\n<start_of_turn>model\n<end_of_turn><eos><bos>",
    "<0x41> <unk> </s> <s>",
    "it's they'll WE'RE don't I'd",
    "\u{2581}▁ \u{feff}\u{a0}\u{3000}",
];

#[test]
fn texts_become_the_same_tokens() {
    for text in TEXTS {
        SMOLLM2.check(text);
        GEMMA3.check(text);
    }
}

#[test]
fn vocabularies_and_limits_are_the_same() {
    SMOLLM2.check_vocabulary();
    GEMMA3.check_vocabulary();
}

proptest! {
    #[test]
    fn any_text_becomes_the_same_tokens(text in "(\\PC|[ \n\t0-9a-z<>|éß日😀]){0,60}") {
        SMOLLM2.check(&text);
        GEMMA3.check(&text);
    }

    #[test]
    fn streams_become_the_same_text(ids in prop::collection::vec(0u32..49_152, 0..40), skip in any::<bool>()) {
        for pair in [&*SMOLLM2, &*GEMMA3] {
            let (mut detokenizer, mut streamed) = (pair.folder.detokenizer(skip), String::new());
            ids.iter().for_each(|id| detokenizer.push(*id, &mut streamed));
            detokenizer.finish(&mut streamed);
            prop_assert_eq!(streamed, pair.gguf.decode(&ids, skip));
        }
    }
}

#[test]
fn chats_are_rendered_alike_wherever_the_template_stands() {
    let message = ChatMessage::text(Role::User, "Hi\n there ");
    let messages = [message];
    let expected = SMOLLM2.gguf.render_chat(&messages, &[]).expect("a prompt");
    assert_eq!(SMOLLM2.folder.render_chat(&messages, &[]).expect("a prompt"), expected);
    let folder = Edited::new();
    folder.write("chat_template.jinja", "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}");
    let text = TextModel::open(folder.0.path()).expect("a tokenizer");
    assert_eq!(text.render_chat(&messages, &[]).expect("a prompt"), "<|im_start|>Hi\n there <|im_end|>");
    // The file of its own went before the field; without either there is none.
    folder.remove("chat_template.jinja");
    folder.edit("tokenizer_config.json", |config| config["chat_template"] = Value::Null);
    let text = TextModel::open(folder.0.path()).expect("a tokenizer");
    let error = text.template_error().expect("no template");
    assert!(error.contains("chat_template.jinja"), "{error}");
    folder.edit("tokenizer_config.json", |config| {
        config["chat_template"] = json!([{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]);
    });
    assert_eq!(TextModel::open(folder.0.path()).expect("a tokenizer").render_chat(&messages, &[]).expect("d"), "d");
}

/// A copy of SmolLM2's folder.
struct Edited(tempfile::TempDir);

impl Edited {
    fn new() -> Self {
        let copy = tempfile::tempdir().expect("a folder");
        for entry in std::fs::read_dir(SMOLLM2.path.path()).expect("a folder") {
            let entry = entry.expect("an entry");
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).expect("a copy");
        }
        Self(copy)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).expect("a file");
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.0.path().join(name)).expect("a file");
    }

    fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let path = self.0.path().join(name);
        let mut value = serde_json::from_slice(&std::fs::read(&path).expect("a file")).expect("JSON");
        change(&mut value);
        std::fs::write(path, value.to_string()).expect("a file");
    }

    fn ends(&self) -> Vec<u32> {
        let ends = end_tokens(&TextFiles::open(self.0.path()).expect("files")).expect("end tokens");
        assert_eq!(TextModel::open(self.0.path()).expect("a tokenizer").eos_ids(), ends);
        ends
    }
}

#[test]
fn end_tokens_come_from_every_file_that_names_some() {
    let folder = Edited::new();
    assert_eq!(folder.ends(), [0, 2]);
    folder.edit("generation_config.json", |config| config["eos_token_id"] = json!(7));
    folder.edit("config.json", |config| config["eos_token_id"] = json!([9, 7]));
    assert_eq!(folder.ends(), [0, 2, 7, 9]);
    folder.remove("generation_config.json");
    folder.remove("special_tokens_map.json");
    // Without the list in tokenizer_config.json, that of tokenizer.json is read.
    folder.edit("tokenizer_config.json", |config| config["added_tokens_decoder"] = Value::Null);
    assert_eq!(folder.ends(), [0, 2, 7, 9]);
    folder.remove("tokenizer_config.json");
    assert_eq!(folder.ends(), [0, 2, 7, 9]);
}

fn check_fault(change: impl FnOnce(&Edited), expected: &str) {
    let folder = Edited::new();
    change(&folder);
    match TextModel::open(folder.0.path()) {
        Ok(_) => panic!("accepted, expected {expected:?}"),
        Err(error) => assert!(error.to_string().contains(expected), "{error} does not say {expected:?}"),
    }
}

#[test]
fn every_fault_is_named() {
    check_fault(|folder| folder.remove("tokenizer.json"), "has no tokenizer.json");
    check_fault(|folder| folder.remove("config.json"), "config.json: No such file");
    check_fault(|folder| folder.write("tokenizer.json", "{"), "tokenizer.json cannot be used: EOF");
    check_fault(|folder| folder.write("tokenizer_config.json", "[1]"), "tokenizer_config.json is not as it should be");
    check_fault(
        |folder| folder.edit("config.json", |c| c["max_position_embeddings"] = json!(0)),
        "max_position_embeddings",
    );
    check_fault(|folder| folder.edit("config.json", |c| c["eos_token_id"] = json!("</s>")), "eos_token_id");
    let word_level = json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"});
    let word_level = |tokenizer: &mut Value| tokenizer["model"] = word_level;
    check_fault(|folder| folder.edit("tokenizer.json", word_level), "no BPE");
    let huge_id = |tokenizer: &mut Value| tokenizer["model"]["vocab"]["zzzzzz"] = json!(u32::MAX);
    check_fault(|folder| folder.edit("tokenizer.json", huge_id), "a token of id 4294967295");
}

#[test]
fn a_template_that_does_not_parse_leaves_completions() {
    let folder = Edited::new();
    folder.write("chat_template.jinja", "{% for m in messages %}");
    let text = TextModel::open(folder.0.path()).expect("a tokenizer");
    let error = text.template_error().expect("an error");
    assert!(error.contains("cannot be used: syntax error"), "{error}");
    assert_eq!(text.encode("Hello", true).expect("tokens"), SMOLLM2.gguf.encode("Hello", true).expect("tokens"));
}
