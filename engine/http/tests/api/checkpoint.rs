//! The smallest checkpoint with a text side: one token per byte, two control tokens and a chat template, as GGUF bytes.

use engine_text::{Gguf, TextModel};

/// Start and end of a turn; ids below 256 are bytes.
pub const TURN_END: u32 = 257;
/// Longest sequence of the model, tokens.
pub const CONTEXT_TOKENS: u32 = 64;

/// The text side of the checkpoint.
pub fn text_model() -> TextModel {
    let gguf = Gguf::from_bytes(gguf_bytes()).expect("a well-formed file");
    TextModel::from_gguf(&gguf).expect("a tokenizer")
}

/// Tokens of a text: its bytes.
pub fn ids(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

fn gguf_bytes() -> Vec<u8> {
    let mut tokens: Vec<String> = alphabet().iter().map(char::to_string).collect();
    tokens.extend(["<|im_start|>".to_owned(), "<|im_end|>".to_owned()]);
    let template = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}";
    let pairs = [
        ("general.architecture", string("llama")),
        ("llama.context_length", number(CONTEXT_TOKENS)),
        ("tokenizer.ggml.model", string("gpt2")),
        ("tokenizer.ggml.pre", string("gpt-2")),
        ("tokenizer.ggml.token_type", types(tokens.len())),
        ("tokenizer.ggml.tokens", strings(&tokens)),
        ("tokenizer.ggml.merges", strings(&[])),
        ("tokenizer.ggml.eos_token_id", number(TURN_END)),
        ("tokenizer.chat_template", string(template)),
    ];
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend(0u64.to_le_bytes());
    out.extend((pairs.len() as u64).to_le_bytes());
    for (key, value) in pairs {
        out.extend(text(key));
        out.extend(value);
    }
    out
}

/// GPT-2's byte alphabet, written out from its definition.
fn alphabet() -> Vec<char> {
    let mut next = 256;
    let character = |byte: u32| {
        if matches!(byte, 33..=126 | 161..=172 | 174..=255) {
            return char::from_u32(byte).expect("a character");
        }
        next += 1;
        char::from_u32(next - 1).expect("a character")
    };
    (0..256).map(character).collect()
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn string(value: &str) -> Vec<u8> {
    [8u32.to_le_bytes().to_vec(), text(value)].concat()
}

fn number(value: u32) -> Vec<u8> {
    [4u32.to_le_bytes(), value.to_le_bytes()].concat()
}

fn strings(values: &[String]) -> Vec<u8> {
    let mut out = array(8, values.len());
    values.iter().for_each(|value| out.extend(text(value)));
    out
}

fn types(tokens: usize) -> Vec<u8> {
    let mut out = array(5, tokens);
    (0..tokens).for_each(|id| out.extend(if id < 256 { 1i32 } else { 3 }.to_le_bytes()));
    out
}

fn array(element: u32, length: usize) -> Vec<u8> {
    [&9u32.to_le_bytes()[..], &element.to_le_bytes(), &(length as u64).to_le_bytes()].concat()
}
