//! The OpenAPI document is true: it is the committed one, its parameters are accepted, its answers are the types'.

use engine_wire::openai::{
    ChatLogprobs, ChatTokenLogprob, CompletionLogprobs, Detokenized, EmbeddingList, EmbeddingUsage, ModelList,
    ModelObject, TextCompletion, Tokenized, TopLogprob, Usage, parse_chat, parse_completion, parse_detokenize,
    parse_embedding, parse_tokenize,
};
use engine_wire::openapi::document;
use serde_json::{Value, json};
use std::collections::BTreeSet;

#[test]
fn the_committed_document_is_this_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
    let committed = std::fs::read_to_string(path).expect("docs/openapi.json");
    let committed: Value = serde_json::from_str(&committed).expect("JSON");
    let how =
        "docs/openapi.json is out of date: cargo run --release -p engine-wire --example openapi > docs/openapi.json";
    assert!(committed == document(), "{how}");
}

/// Sends each parameter's example, alone beside what must be there, and all defaults and limits that it names.
fn check_parameters(schema: &str, base: Value, accepts: impl Fn(&[u8]) -> Result<(), String>) {
    let document = document();
    let schema = &document["components"]["schemas"][schema];
    let properties = schema["properties"].as_object().expect("properties");
    assert!(properties.len() > 1, "{schema}");
    for (name, property) in properties {
        let values = ["default", "minimum", "maximum", "const"].map(|key| property.get(key)).into_iter().flatten();
        for value in values.chain(property["examples"].as_array().expect("examples")) {
            let mut body = base.clone();
            // Some parameters mean nothing without another one.
            match name.as_str() {
                "top_logprobs" => body["logprobs"] = true.into(),
                "tool_choice" => body["tools"] = json!([{"type": "function", "function": {"name": "now"}}]),
                "min_tokens" => body["max_tokens"] = 9.into(),
                "prompt" | "messages" => drop(body.as_object_mut().map(|body| body.remove("prompt"))),
                "tools" if body.get("prompt").is_some() => {
                    body = json!({"model": "m", "messages": [{"role": "user", "content": "a"}]});
                }
                "add_generation_prompt" => body = json!({"model": "m", "messages": [{"role": "user", "content": "a"}]}),
                _ => {}
            }
            body[name] = value.clone();
            accepts(body.to_string().as_bytes()).unwrap_or_else(|error| panic!("{body}: {error}"));
        }
    }
    for required in schema["required"].as_array().expect("a list") {
        let mut body = base.clone();
        body.as_object_mut().expect("an object").remove(required.as_str().expect("a name"));
        let error = accepts(body.to_string().as_bytes()).expect_err("it is required");
        assert!(error.contains("Missing required parameter"), "{required}: {error}");
    }
}

#[test]
fn every_parameter_is_accepted() {
    let chat = json!({"model": "m", "messages": [{"role": "user", "content": "a"}]});
    check_parameters("ChatRequest", chat, |body| parse_chat(body).map(drop).map_err(|error| error.to_string()));
    let completion = json!({"model": "m", "prompt": "a"});
    let accepts = |body: &[u8]| parse_completion(body).map(drop).map_err(|error| error.to_string());
    check_parameters("CompletionRequest", completion.clone(), accepts);
    let accepts = |body: &[u8]| parse_embedding(body).map(drop).map_err(|error| error.to_string());
    check_parameters("EmbeddingRequest", json!({"model": "m", "input": "a"}), accepts);
    let accepts = |body: &[u8]| parse_tokenize(body).map(drop).map_err(|error| error.to_string());
    check_parameters("TokenizeRequest", completion, accepts);
    let accepts = |body: &[u8]| parse_detokenize(body).map(drop).map_err(|error| error.to_string());
    check_parameters("DetokenizeRequest", json!({"model": "m", "tokens": [1]}), accepts);
}

/// The fields of a serialized answer are those of its schema.
fn check_answer(schema: &str, answer: &impl serde::Serialize) {
    let document = document();
    let keys = |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<BTreeSet<_>>();
    let answer = serde_json::to_value(answer).expect("JSON");
    assert_eq!(keys(&answer), keys(&document["components"]["schemas"][schema]["properties"]), "{schema}");
}

#[test]
fn answers_have_the_fields_of_their_schemas() {
    let usage = Usage::new(1, 2, 0);
    check_answer("Usage", &usage);
    let model = ModelObject {
        id: "m".to_owned(),
        object: "model".to_owned(),
        created: 0,
        owned_by: "foreshock".to_owned(),
        revision: "r".to_owned(),
        max_model_len: 1,
        root: "m".to_owned(),
        parent: None,
    };
    check_answer("Model", &model);
    check_answer("ModelList", &ModelList { object: "list".to_owned(), data: vec![model] });
    let tokenized = Tokenized { count: 0, max_model_len: 1, tokens: Vec::new(), token_strs: Some(Vec::new()) };
    check_answer("Tokenized", &tokenized);
    check_answer("Detokenized", &Detokenized { prompt: String::new() });
    check_answer("CompletionLogprobs", &CompletionLogprobs::default());
    let list = EmbeddingList { object: "list", data: Vec::new(), model: "m", usage: EmbeddingUsage::default() };
    check_answer("EmbeddingList", &list);
    let top = TopLogprob { token: "a".to_owned(), logprob: -0.5, bytes: vec![97] };
    let entry = ChatTokenLogprob { token: "a".to_owned(), logprob: -0.5, bytes: vec![97], top_logprobs: vec![top] };
    check_answer("ChatLogprobs", &ChatLogprobs { content: vec![entry], refusal: None });
    let completion = TextCompletion {
        id: "x",
        object: "text_completion",
        created: 0,
        model: "m",
        choices: &[],
        usage: Some(Some(usage)),
    };
    check_answer("Completion", &completion);
}
