//! `/v1/embeddings` over a scripted backend with a real tokenizer: what comes back, in which form, and every refusal.

use crate::support::{DIMENSIONS, EMBEDDER, HANGS, Setup, post};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use engine_http::{AccessOutcome, ApiError};
use serde_json::{Value, json};

const PATH: &str = "/v1/embeddings";

/// The JSON answer, which must be a good one.
async fn answer(fields: Value) -> Value {
    let server = Setup::default().start().await;
    let mut body = json!({"model": EMBEDDER});
    body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    let answer = server.post(PATH, &body.to_string()).await;
    assert_eq!(answer.status, 200, "{body}: {}", answer.body());
    serde_json::from_str(&answer.body()).expect("JSON")
}

/// Numbers of the vector at an index.
fn numbers(answer: &Value, index: usize) -> Vec<f32> {
    let entry = &answer["data"][index];
    assert_eq!((&entry["object"], &entry["index"]), (&json!("embedding"), &json!(index)));
    match &entry["embedding"] {
        Value::String(text) => {
            let bytes = STANDARD.decode(text).expect("base64");
            bytes.as_chunks::<4>().0.iter().map(|number| f32::from_le_bytes(*number)).collect()
        }
        numbers => serde_json::from_value(numbers.clone()).expect("numbers"),
    }
}

#[tokio::test]
async fn every_form_of_input_and_answer() {
    let texts = json!(["The cat sits on the mat.", "", "GPU autoscaling with eBPF"]);
    let floats = answer(json!({"input": texts, "user": "u"})).await;
    let coded = answer(json!({"input": texts, "encoding_format": "base64"})).await;
    assert_eq!((&floats["object"], &floats["model"]), (&json!("list"), &json!(EMBEDDER)));
    assert_eq!(floats["usage"], json!({"prompt_tokens": 9 + 2 + 11, "total_tokens": 22}));
    assert_eq!(coded["usage"], floats["usage"]);
    for (index, tokens) in [9.0f32, 2.0, 11.0].into_iter().enumerate() {
        let vector = numbers(&floats, index);
        assert_eq!((vector.len(), &vector[..2]), (DIMENSIONS, &[tokens / 7.0, 101.0 / 1e5][..]));
        let bits = |vector: Vec<f32>| vector.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(vector), bits(numbers(&coded, index)), "both forms are the same bits");
    }
    let one = answer(json!({"input": "The cat sits on the mat."})).await;
    assert_eq!(one["data"], json!([floats["data"][0]]));
    // Token ids are taken as they are.
    let ids = answer(json!({"input": [101, 7, 102], "dimensions": DIMENSIONS})).await;
    assert_eq!((numbers(&ids, 0)[0], &ids["usage"]["prompt_tokens"]), (3.0 / 7.0, &json!(3)));
    let several = answer(json!({"input": [[7], [8, 9]]})).await;
    assert_eq!((numbers(&several, 0)[0], numbers(&several, 1)[0]), (1.0 / 7.0, 2.0 / 7.0));
    let cut = answer(json!({"input": ["word ".repeat(400), "a"], "truncate_prompt_tokens": -1})).await;
    assert_eq!(numbers(&cut, 0)[..3], [256.0 / 7.0, 101.0 / 1e5, 102.0 / 1e5]);
    let cut = answer(json!({"input": "word ".repeat(400), "truncate_prompt_tokens": 16})).await;
    assert_eq!(cut["usage"]["prompt_tokens"], 16);
}

#[tokio::test]
async fn the_backend_gets_ids_and_the_record_counts_them() {
    let mut server = Setup::default().start().await;
    let body = json!({"model": EMBEDDER, "input": ["The cat sits on the mat.", [5, 6]]});
    assert_eq!(server.post(PATH, &body.to_string()).await.status, 200);
    let asked = server.embedded.lock().expect("no poison").remove(0);
    assert_eq!(asked.model, EMBEDDER);
    assert_eq!(asked.texts, [vec![101, 1996, 4937, 7719, 2006, 1996, 13523, 1012, 102], vec![5, 6]]);
    let record = server.record().await;
    assert_eq!((record.model.as_str(), record.outcome, record.status), (EMBEDDER, AccessOutcome::Finished, 200));
    assert_eq!((record.prompt_tokens, record.output_tokens, record.stream), (11, 0, false));
    assert!(record.last_write_ns.is_some() && record.first_token_write_ns.is_none());
}

#[tokio::test]
async fn a_client_that_leaves_cancels_the_work() {
    let mut server = Setup::default().start().await;
    let mut client = server.connect().await;
    client.send(&post(PATH, "", json!({"model": EMBEDDER, "input": HANGS}).to_string().as_bytes())).await;
    drop(client);
    server.cancelled().await;
    assert_eq!(server.record().await.outcome, AccessOutcome::Cancelled);
}

/// A request that is refused: status, message, parameter and code of the error object.
async fn refused(path: &str, body: Value, status: u16, message: &str, param: Value, code: Value) {
    let mut server = Setup::default().start().await;
    let answer = server.post(path, &body.to_string()).await;
    let kind = if status < 500 { "invalid_request_error" } else { "server_error" };
    let expected = json!({"error": {"message": message, "type": kind, "param": param, "code": code}});
    let found: Value = serde_json::from_str(&answer.body()).expect("JSON");
    assert_eq!((answer.status, &found), (status, &expected), "{body}");
    let record = server.record().await;
    assert_eq!((record.status, record.outcome, record.prompt_tokens), (status, AccessOutcome::Rejected, 0), "{body}");
}

/// The same for a field of an otherwise good request.
async fn invalid(field: &str, value: Value, message: &str, param: &str) {
    let mut body = json!({"model": EMBEDDER, "input": "a"});
    body[field] = value;
    refused(PATH, body, 400, message, json!(param), Value::Null).await;
}

#[tokio::test]
async fn bad_requests_name_their_parameter() {
    let body = json!({"model": EMBEDDER});
    refused(PATH, body, 400, "Missing required parameter: 'input'.", json!("input"), Value::Null).await;
    let message = "Missing required parameter: 'model'.";
    refused(PATH, json!({"input": "a"}), 400, message, json!("model"), Value::Null).await;
    let expected = "a string, an array of strings, an array of token ids or an array of arrays of token ids";
    let message = format!("Invalid type for 'input': expected {expected}, but got a number (7) instead.");
    invalid("input", json!(7), &message, "input").await;
    let message = "Invalid 'input': empty array. Expected at least one input.";
    invalid("input", json!([]), message, "input").await;
    let message = "Invalid 'input': array too long. Expected at most 2048 inputs, but got 2049.";
    invalid("input", json!(vec!["a"; 2049]), message, "input").await;
    let message = "Invalid 'input[1]': it has no tokens. Expected at least one.";
    invalid("input", json!([[1], []]), message, "input[1]").await;
    let message = "Invalid 'input': token id 30522 is outside the vocabulary of 30522.";
    invalid("input", json!([1, 30_522]), message, "input").await;
    let message =
        "Invalid type for 'input[1]': expected a string or an array of token ids, but got a number (3) instead.";
    invalid("input", json!(["a", 3]), message, "input[1]").await;
    let message = "Invalid 'input': too many tokens. At most 300000 in one request are accepted.";
    invalid("input", json!(vec![vec![7; 200]; 1501]), message, "input").await;
    let message = "Invalid value for 'encoding_format': 'hex' is neither 'float' nor 'base64'.";
    invalid("encoding_format", json!("hex"), message, "encoding_format").await;
    let message = "Invalid value for 'dimensions': 0 is not an integer of at least 1.";
    invalid("dimensions", json!(0), message, "dimensions").await;
    let message = "Invalid value for 'dimensions': 128. Vectors of `embedder` have 384, and it was not trained for this length (Matryoshka). Leave it out or ask for 384.";
    invalid("dimensions", json!(128), message, "dimensions").await;
    let message = "Invalid value for 'truncate_prompt_tokens': 0 is not -1 or an integer of at least 1.";
    invalid("truncate_prompt_tokens", json!(0), message, "truncate_prompt_tokens").await;
    let message = "Unrecognized request argument supplied: temperature";
    invalid("temperature", json!(1), message, "temperature").await;
}

#[tokio::test]
async fn texts_that_are_too_long_are_refused_unless_they_may_be_cut() {
    let long = "word ".repeat(300);
    let check = async |input: Value, param: &str| {
        let message = format!(
            "This model's maximum context length is 256 tokens, but '{param}' has 302. Shorten it, or have its end cut off with 'truncate_prompt_tokens': -1."
        );
        let code = json!("context_length_exceeded");
        refused(PATH, json!({"model": EMBEDDER, "input": input}), 400, &message, json!(param), code).await;
    };
    check(json!(long), "input").await;
    check(json!(["a", long]), "input[1]").await;
    check(json!(vec![7; 302]), "input").await;
}

#[tokio::test]
async fn models_of_the_other_kind_are_refused() {
    let message = "The model `tiny` generates text and makes no embeddings: use /v1/completions or /v1/chat/completions, or name an embedding model.";
    refused(PATH, json!({"model": "tiny", "input": "a"}), 400, message, json!("model"), Value::Null).await;
    let message = "The model `embedder` makes embeddings and generates no text: use /v1/embeddings.";
    let messages = json!([{"role": "user", "content": "a"}]);
    for (path, body) in [
        ("/v1/chat/completions", json!({"model": EMBEDDER, "messages": messages})),
        ("/v1/completions", json!({"model": EMBEDDER, "prompt": "a"})),
    ] {
        refused(path, body, 400, message, json!("model"), Value::Null).await;
    }
    let message =
        "The model `none` does not exist. GET /v1/models lists those that do; `foreshock models add` registers one.";
    let body = json!({"model": "none", "input": "a"});
    refused(PATH, body, 404, message, json!("model"), json!("model_not_found")).await;
}

#[tokio::test]
async fn what_the_backend_refuses_reaches_the_client() {
    let refusal = Some(ApiError::QueueFull { model: EMBEDDER.to_owned(), limit: 3, retry_after_s: 9 });
    let server = Setup { refusal, ..Setup::default() }.start().await;
    let answer = server.post(PATH, &json!({"model": EMBEDDER, "input": "a"}).to_string()).await;
    assert_eq!((answer.status, answer.header("retry-after")), (429, Some("9")));
}
