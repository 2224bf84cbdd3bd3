//! The tokenizer files of a Hugging Face folder, made from a GGUF file's vocabulary as transformers writes them:
//! byte-level BPE for SmolLM2, BPE with bytes as a fallback for what comes from SentencePiece.

use engine_store::Gguf;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::Path;

/// Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json and generation_config.json.
pub fn write(gguf: &Gguf, folder: &Path) {
    let write = |name: &str, value: &Value| {
        std::fs::write(folder.join(name), value.to_string()).expect("the folder can be written");
    };
    write("tokenizer.json", &tokenizer(gguf));
    let token = |key: &str| {
        let id = gguf.u32(key).expect("an id") as usize;
        gguf.strings("tokenizer.ggml.tokens").expect("tokens").nth(id).expect("a token").to_owned()
    };
    let (bos, eos) = (token("tokenizer.ggml.bos_token_id"), token("tokenizer.ggml.eos_token_id"));
    let decoder: Map<String, Value> =
        added(gguf).into_iter().map(|token| (token["id"].to_string(), token.clone())).collect();
    let template = gguf.str("tokenizer.chat_template").ok();
    write(
        "tokenizer_config.json",
        &json!({"added_tokens_decoder": decoder, "bos_token": bos, "eos_token": {"content": eos},
                "chat_template": template, "model_max_length": 8192}),
    );
    write("special_tokens_map.json", &json!({"bos_token": bos, "eos_token": eos}));
    let eos_id = gguf.u32("tokenizer.ggml.eos_token_id").expect("an id");
    write("generation_config.json", &json!({"eos_token_id": [eos_id], "temperature": 0.7}));
}

fn tokenizer(gguf: &Gguf) -> Value {
    let parts = match gguf.str("tokenizer.ggml.model").expect("a model") {
        "gpt2" => byte_level(gguf),
        _ => sentencepiece(gguf),
    };
    let [normalizer, pre_tokenizer, post_processor, decoder, model] = parts;
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added(gguf),
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": post_processor,
        "decoder": decoder, "model": model
    })
}

/// Control and user-defined tokens.
fn added(gguf: &Gguf) -> Vec<Value> {
    let kinds = gguf.i64s("tokenizer.ggml.token_type").expect("types");
    let tokens = gguf.strings("tokenizer.ggml.tokens").expect("tokens");
    let token = |(id, (content, kind)): (usize, (&str, i64))| {
        let special = matches!(kind, 2 | 3 | 5);
        (special || kind == 4).then(|| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": special})
        })
    };
    tokens.zip(kinds).enumerate().filter_map(token).collect()
}

fn vocab(gguf: &Gguf) -> Map<String, Value> {
    let tokens = gguf.strings("tokenizer.ggml.tokens").expect("tokens");
    tokens.enumerate().map(|(id, token)| (token.to_owned(), id.into())).collect()
}

/// As HuggingFaceTB/SmolLM2-135M-Instruct's.
fn byte_level(gguf: &Gguf) -> [Value; 5] {
    let merges: Vec<&str> = gguf.strings("tokenizer.ggml.merges").expect("merges").collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let digits = json!({"type": "Digits", "individual_digits": true});
    [
        Value::Null,
        json!({"type": "Sequence", "pretokenizers": [digits, byte_level]}),
        Value::Null,
        byte_level.clone(),
        json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
               "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
               "vocab": vocab(gguf), "merges": merges}),
    ]
}

/// As google/gemma-3-270m's.
fn sentencepiece(gguf: &Gguf) -> [Value; 5] {
    let bos = gguf.u32("tokenizer.ggml.bos_token_id").expect("an id");
    let piece = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let begin = json!({"SpecialToken": {"id": "<bos>", "type_id": 0}});
    [
        json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}),
        json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false}),
        json!({"type": "TemplateProcessing", "single": [begin, piece("A")],
               "pair": [begin, piece("A"), begin, piece("B")],
               "special_tokens": {"<bos>": {"id": "<bos>", "ids": [bos], "tokens": ["<bos>"]}}}),
        json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}]}),
        json!({"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
               "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
               "vocab": vocab(gguf), "merges": merges(gguf)}),
    ]
}

/// Merges from scores, as transformers' converter makes them: every way to cut an entry into two others, best entry
/// first.
fn merges(gguf: &Gguf) -> Vec<[&str; 2]> {
    let kinds = gguf.i64s("tokenizer.ggml.token_type").expect("types");
    let scores = gguf.f32s("tokenizer.ggml.scores").expect("scores");
    let tokens: Vec<&str> = gguf.strings("tokenizer.ggml.tokens").expect("tokens").collect();
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
    let mut found = Vec::new();
    for (id, token) in tokens.iter().enumerate().filter(|(id, _)| kinds[*id] == 1) {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(left_id), Some(right_id)) = (ids.get(left), ids.get(right)) {
                found.push((scores[id], id, *left_id, *right_id, [left, right]));
            }
        }
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
    found.into_iter().map(|(.., pair)| pair).collect()
}
