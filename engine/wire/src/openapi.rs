//! The OpenAPI document of the data port, from tables that stand beside the types they describe.
//!
//! `docs/openapi.json` is this document, committed. Tests compare the two, feed every parameter's example to the
//! parsers, compare the answers' fields with the types, and ask a server for every path.

mod answers;
mod parameters;

use parameters::{CHAT, COMPLETION, DETOKENIZE, EMBEDDING, GENERATE, Parameter, TOKENIZE};
use serde_json::{Map, Value, json};

/// A path of the data port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// `get` or `post`.
    pub method: &'static str,
    pub path: &'static str,
    summary: &'static str,
    /// Schema of the body: among the document's components.
    request: Option<&'static str>,
    answer: Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Json(&'static str),
    /// JSON, or a stream of events of the second schema when `stream` is true.
    Streamable(&'static str, &'static str),
    Text,
}

const fn post(path: &'static str, summary: &'static str, request: &'static str, answer: Answer) -> Operation {
    Operation { method: "post", path, summary, request: Some(request), answer }
}

const fn get(path: &'static str, summary: &'static str, answer: Answer) -> Operation {
    Operation { method: "get", path, summary, request: None, answer }
}

/// Every path that gateway and engine serve alike.
pub const OPERATIONS: &[Operation] = &[
    post(
        "/v1/chat/completions",
        "Goes on with a conversation.",
        "ChatRequest",
        Answer::Streamable("ChatCompletion", "ChatCompletionChunk"),
    ),
    post(
        "/v1/completions",
        "Goes on with one or several prompts.",
        "CompletionRequest",
        Answer::Streamable("Completion", "Completion"),
    ),
    post("/v1/embeddings", "A vector for each text.", "EmbeddingRequest", Answer::Json("EmbeddingList")),
    post("/tokenize", "Tokens of a prompt or a conversation.", "TokenizeRequest", Answer::Json("Tokenized")),
    post("/detokenize", "Text of tokens.", "DetokenizeRequest", Answer::Json("Detokenized")),
    get("/v1/models", "The models that may be named.", Answer::Json("ModelList")),
    get("/v1/models/{model}", "One of them.", Answer::Json("Model")),
    get("/healthz", "Whether the process answers.", Answer::Text),
    get("/readyz", "Whether requests can be taken.", Answer::Text),
    get("/metrics", "Metrics in the Prometheus text format.", Answer::Text),
];

/// The whole document.
pub fn document() -> Value {
    let mut paths = Map::new();
    for operation in OPERATIONS {
        let entry = paths.entry(operation.path).or_insert_with(|| json!({}));
        entry[operation.method] = described(operation);
    }
    let mut schemas = answers::schemas();
    for (name, parts) in request_bodies() {
        schemas.insert(name.to_owned(), body_schema(parts));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Foreshock",
            "version": "1",
            "description": "The OpenAI API with vLLM's extra parameters, the same on the gateway and on every engine. Parameters that are not named here are refused with 400, except those that have no influence on an answer (user, metadata, store and the like).",
        },
        "paths": paths,
        "components": { "schemas": schemas },
    })
}

/// Name of each request body's schema, and the tables that it is made of.
fn request_bodies() -> [(&'static str, [&'static [Parameter]; 2]); 5] {
    [
        ("ChatRequest", [CHAT, GENERATE]),
        ("CompletionRequest", [COMPLETION, GENERATE]),
        ("EmbeddingRequest", [EMBEDDING, &[]]),
        ("TokenizeRequest", [TOKENIZE, &[]]),
        ("DetokenizeRequest", [DETOKENIZE, &[]]),
    ]
}

fn body_schema(parts: [&[Parameter]; 2]) -> Value {
    let parameters = || parts.into_iter().flatten();
    let properties: Map<String, Value> =
        parameters().map(|parameter| (parameter.name.into(), property(parameter))).collect();
    let required: Vec<&str> =
        parameters().filter(|parameter| parameter.required).map(|parameter| parameter.name).collect();
    json!({ "type": "object", "additionalProperties": false, "required": required, "properties": properties })
}

fn property(parameter: &Parameter) -> Value {
    // Not reachable otherwise: a test reads every table entry.
    let parsed = |text: &str| serde_json::from_str::<Value>(text).unwrap_or(Value::Null);
    let mut schema = parsed(parameter.schema);
    schema["description"] = parameter.about.into();
    schema["examples"] = json!([parsed(parameter.example)]);
    schema
}

fn described(operation: &Operation) -> Value {
    let mut described = json!({ "summary": operation.summary, "responses": responses(operation) });
    if let Some(request) = operation.request {
        let content = json!({ "application/json": { "schema": reference(request) } });
        described["requestBody"] = json!({ "required": true, "content": content });
    }
    if operation.path.contains("{model}") {
        let schema = json!({ "type": "string" });
        described["parameters"] = json!([{ "name": "model", "in": "path", "required": true, "schema": schema }]);
    }
    described
}

fn responses(operation: &Operation) -> Value {
    let content = match operation.answer {
        Answer::Json(schema) => json!({ "application/json": { "schema": reference(schema) } }),
        Answer::Streamable(whole, event) => json!({
            "application/json": { "schema": reference(whole) },
            "text/event-stream": { "schema": reference(event) },
        }),
        Answer::Text => json!({ "text/plain": { "schema": { "type": "string" } } }),
    };
    let error = json!({ "application/json": { "schema": reference("Error") } });
    json!({
        "200": { "description": "The answer.", "content": content },
        "default": { "description": "What went wrong: 4xx names the parameter at fault.", "content": error },
    })
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}
