//! Schemas of what is answered. A test compares their fields with the serialized types.

use serde_json::{Map, Value, json};

/// All of them by name.
pub(super) fn schemas() -> Map<String, Value> {
    let mut schemas = completions();
    schemas.extend(logprobs());
    schemas.extend(embeddings());
    schemas.extend(others());
    schemas
}

fn completions() -> Map<String, Value> {
    let finish = json!({ "enum": ["stop", "length", null] });
    let usage = any_of_null("Usage");
    let chat_finish = json!({ "enum": ["stop", "length", "tool_calls", null] });
    let function = object(&[("name", string()), ("arguments", string())]);
    let call = [("id", string()), ("type", json!({ "const": "function" })), ("function", function)];
    let message = object(&[
        ("role", string()),
        ("content", json!({ "type": ["string", "null"] })),
        ("refusal", json!({ "type": "null" })),
        ("tool_calls", array(object(&call))),
    ]);
    let call_delta = [("index", integer())].into_iter().chain(call).collect::<Vec<_>>();
    let choice = object(&[
        ("index", integer()),
        ("message", message),
        ("logprobs", any_of_null("ChatLogprobs")),
        ("finish_reason", chat_finish.clone()),
    ]);
    let delta = object(&[("role", string()), ("content", string()), ("tool_calls", array(object(&call_delta)))]);
    let chunk_choice = object(&[
        ("index", integer()),
        ("delta", delta),
        ("logprobs", any_of_null("ChatLogprobs")),
        ("finish_reason", chat_finish),
    ]);
    let text_choice = object(&[
        ("text", string()),
        ("index", integer()),
        ("logprobs", any_of_null("CompletionLogprobs")),
        ("finish_reason", finish),
    ]);
    let envelope = |kind: &str, choice: Value| {
        object(&[
            ("id", string()),
            ("object", json!({ "const": kind })),
            ("created", integer()),
            ("model", string()),
            ("choices", array(choice)),
            ("usage", usage.clone()),
        ])
    };
    named([
        ("ChatCompletion", envelope("chat.completion", choice)),
        ("ChatCompletionChunk", envelope("chat.completion.chunk", chunk_choice)),
        ("Completion", envelope("text_completion", text_choice)),
    ])
}

fn logprobs() -> Map<String, Value> {
    let bytes = array(integer());
    let top = object(&[("token", string()), ("logprob", number()), ("bytes", bytes.clone())]);
    let entry = object(&[("token", string()), ("logprob", number()), ("bytes", bytes), ("top_logprobs", array(top))]);
    named([
        ("ChatLogprobs", object(&[("content", array(entry)), ("refusal", json!({ "type": "null" }))])),
        (
            "CompletionLogprobs",
            object(&[
                ("text_offset", array(integer())),
                ("token_logprobs", array(json!({ "type": ["number", "null"] }))),
                ("tokens", array(string())),
                ("top_logprobs", array(json!({ "type": ["object", "null"], "additionalProperties": number() }))),
            ]),
        ),
    ])
}

fn embeddings() -> Map<String, Value> {
    let vector = json!({ "anyOf": [array(number()), string()] });
    let usage = object(&[("prompt_tokens", integer()), ("total_tokens", integer())]);
    let entry = object(&[("object", json!({ "const": "embedding" })), ("index", integer()), ("embedding", vector)]);
    let list = object(&[
        ("object", json!({ "const": "list" })),
        ("data", array(entry)),
        ("model", string()),
        ("usage", usage),
    ]);
    named([("EmbeddingList", list)])
}

fn others() -> Map<String, Value> {
    let details = object(&[("cached_tokens", integer())]);
    let error = object(&[
        ("message", string()),
        ("type", string()),
        ("param", json!({ "type": ["string", "null"] })),
        ("code", json!({ "type": ["string", "null"] })),
    ]);
    named([
        (
            "Usage",
            object(&[
                ("prompt_tokens", integer()),
                ("completion_tokens", integer()),
                ("total_tokens", integer()),
                ("prompt_tokens_details", details),
            ]),
        ),
        (
            "Model",
            object(&[
                ("id", string()),
                ("object", json!({ "const": "model" })),
                ("created", integer()),
                ("owned_by", string()),
                ("revision", string()),
                ("max_model_len", integer()),
                ("root", string()),
                ("parent", json!({ "type": ["string", "null"] })),
            ]),
        ),
        (
            "ModelList",
            object(&[
                ("object", json!({ "const": "list" })),
                ("data", array(json!({ "$ref": "#/components/schemas/Model" }))),
            ]),
        ),
        (
            "Tokenized",
            object(&[
                ("count", integer()),
                ("max_model_len", integer()),
                ("tokens", array(integer())),
                ("token_strs", array(string())),
            ]),
        ),
        ("Detokenized", object(&[("prompt", string())])),
        ("Error", object(&[("error", error)])),
    ])
}

fn named<const N: usize>(schemas: [(&str, Value); N]) -> Map<String, Value> {
    schemas.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect()
}

fn object(properties: &[(&str, Value)]) -> Value {
    let properties: Map<String, Value> =
        properties.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    json!({ "type": "object", "properties": properties })
}

fn array(items: Value) -> Value {
    json!({ "type": "array", "items": items })
}

fn any_of_null(schema: &str) -> Value {
    json!({ "anyOf": [{ "$ref": format!("#/components/schemas/{schema}") }, { "type": "null" }] })
}

fn string() -> Value {
    json!({ "type": "string" })
}

fn integer() -> Value {
    json!({ "type": "integer" })
}

fn number() -> Value {
    json!({ "type": "number" })
}
