//! Every refusal: status and the OpenAI error object, one row each.

use crate::support::{Answer, PATIENCE, Setup, bare, post};
use engine_http::{AccessOutcome, ApiError, Limits};
use std::time::Duration;

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// Limits that the tests can reach.
fn limits() -> Limits {
    Limits { body_bytes_max: 2048, body_timeout: Duration::from_millis(300), ..Limits::default() }
}

/// Sends one request to a server without scripts, so that a request that is let through fails as well.
async fn check(request: Vec<u8>, status: u16, expected: &str) -> Answer {
    let server = Setup { limits: limits(), ..Setup::default() }.start().await;
    let answer = server.exchange(&request).await;
    let sent = String::from_utf8_lossy(&request).into_owned();
    assert_eq!((answer.status, answer.body().as_str()), (status, expected), "{sent}");
    assert_eq!(answer.header("x-request-id"), Some("t1"), "{sent}");
    assert_eq!(answer.header("content-type"), Some("application/json"), "{sent}");
    answer
}

fn error(message: &str, param: &str, code: &str) -> String {
    let quoted = |text: &str| if text.is_empty() { "null".to_owned() } else { format!("\"{text}\"") };
    let message = serde_json::to_string(message).expect("a string");
    format!(
        r#"{{"error":{{"message":{message},"type":"invalid_request_error","param":{},"code":{}}}}}"#,
        quoted(param),
        quoted(code)
    )
}

/// A request that is refused with 400 for one parameter.
async fn invalid(path: &str, body: &str, message: &str, param: &str) {
    check(post(path, "", body.as_bytes()), 400, &error(message, param, "")).await;
}

/// The same for a field added to an otherwise good completion.
pub(crate) async fn invalid_field(field: &str, message: &str, param: &str) {
    invalid(TEXT, &format!(r#"{{"model":"tiny","prompt":"x",{field}}}"#), message, param).await;
}

#[tokio::test]
async fn bodies_that_are_no_request() {
    let broken = r#"{"model": "tiny", "prompt": }"#;
    let message = "We could not parse the JSON body of your request: expected value at line 1 column 29";
    invalid(TEXT, broken, message, "").await;
    let message = "We could not parse the JSON body of your request: EOF while parsing a value at line 1 column 0";
    invalid(CHAT, "", message, "").await;
    invalid(CHAT, "[1]", "The request body must be a JSON object, but it is an array", "").await;
    let message = error("The request body is not valid UTF-8 (at byte 11)", "", "");
    check(post(TEXT, "", b"{\"prompt\":\"\xff\"}"), 400, &message).await;
    let deep = format!(r#"{{"model":{}"#, "[".repeat(1000));
    let message = "We could not parse the JSON body of your request: EOF while parsing a list at line 1 column 1009";
    invalid(TEXT, &deep, message, "").await;
}

#[tokio::test]
async fn fields_of_the_wrong_type() {
    invalid(CHAT, r#"{"messages":[]}"#, "Missing required parameter: 'model'.", "model").await;
    invalid(CHAT, r#"{"model":"tiny"}"#, "Missing required parameter: 'messages'.", "messages").await;
    invalid(TEXT, r#"{"model":"tiny","prompt":null}"#, "Missing required parameter: 'prompt'.", "prompt").await;
    let message = "Invalid type for 'model': expected a string, but got a number (7) instead.";
    invalid(TEXT, r#"{"model":7,"prompt":"x"}"#, message, "model").await;
    let message = "Invalid type for 'temperature': expected a number, but got a string instead.";
    invalid_field(r#""temperature":"hot""#, message, "temperature").await;
    let message = "Invalid type for 'max_tokens': expected an integer, but got a number (1.5) instead.";
    invalid_field(r#""max_tokens":1.5"#, message, "max_tokens").await;
    let message = "Invalid type for 'stream': expected a boolean, but got a number (1) instead.";
    invalid_field(r#""stream":1"#, message, "stream").await;
    let message = "Invalid type for 'stop': expected a string or an array of strings, but got an object instead.";
    invalid_field(r#""stop":{}"#, message, "stop").await;
    let message = "Invalid type for 'messages': expected an array of objects, but got a string instead.";
    invalid(CHAT, r#"{"model":"tiny","messages":"hi"}"#, message, "messages").await;
    let message = "Invalid type for 'messages[0].content': expected a string or an array of text parts, but got a number (3) instead.";
    invalid(CHAT, r#"{"model":"tiny","messages":[{"role":"user","content":3}]}"#, message, "messages[0].content").await;
    let message = "Missing required parameter: 'messages[1].content'.";
    let body = r#"{"model":"tiny","messages":[{"role":"user","content":"a"},{"role":"user"}]}"#;
    invalid(CHAT, body, message, "messages[1].content").await;
    let message = "Invalid value for 'messages[0].role': 'king'. Supported values are: 'system', 'developer', 'user', 'assistant' and 'tool'.";
    invalid(CHAT, r#"{"model":"tiny","messages":[{"role":"king","content":""}]}"#, message, "messages[0].role").await;
    let message = "'messages[0].content[0]' is of type 'image_url': only parts of type 'text' are supported yet.";
    let body = r#"{"model":"tiny","messages":[{"role":"user","content":[{"type":"image_url","image_url":{}}]}]}"#;
    invalid(CHAT, body, message, "messages[0].content[0].type").await;
    let message = "Invalid 'prompt': an element is not a token id (an integer from 0 to 4294967295).";
    invalid(TEXT, r#"{"model":"tiny","prompt":[1,"a"]}"#, message, "prompt").await;
    let message =
        "Invalid type for 'prompt[1]': expected a string or an array of token ids, but got a number (1) instead.";
    invalid(TEXT, r#"{"model":"tiny","prompt":["a",1]}"#, message, "prompt[1]").await;
}

#[tokio::test]
async fn values_out_of_bounds() {
    let message = "Invalid value for 'max_tokens': 0 is not an integer of at least 1.";
    invalid_field(r#""max_tokens":0"#, message, "max_tokens").await;
    let message = "Invalid value for 'temperature': 2.5 is not between 0 and 2.";
    invalid_field(r#""temperature":2.5"#, message, "temperature").await;
    let message = "Invalid value for 'top_p': 0 is not greater than 0 and at most 1.";
    invalid_field(r#""top_p":0"#, message, "top_p").await;
    let message = "Invalid value for 'top_k': -2 is not -1 or 0 (off) or a count.";
    invalid_field(r#""top_k":-2"#, message, "top_k").await;
    let message = "Invalid value for 'min_p': 1.1 is not between 0 and 1.";
    invalid_field(r#""min_p":1.1"#, message, "min_p").await;
    let message = "Invalid 'min_tokens': it is greater than max_tokens.";
    invalid_field(r#""min_tokens":3,"max_tokens":2"#, message, "min_tokens").await;
    let message = "Invalid 'stop': string 1 has 0 bytes. Expected 1 to 1024 bytes.";
    invalid_field(r#""stop":["a",""]"#, message, "stop").await;
    let seventeen = format!(r#""stop":[{}]"#, vec!["\"a\""; 17].join(","));
    let message = "Invalid 'stop': array too long. Expected at most 16 strings, but got 17.";
    invalid_field(&seventeen, message, "stop").await;
    let message = "Invalid 'prompt': empty array. Expected at least one prompt.";
    invalid(TEXT, r#"{"model":"tiny","prompt":[]}"#, message, "prompt").await;
    let message = "Invalid 'prompt': it has no tokens. Expected at least one.";
    invalid(TEXT, r#"{"model":"tiny","prompt":""}"#, message, "prompt").await;
    let message = "Invalid 'prompt': token id 258 is outside the vocabulary of 258.";
    invalid(TEXT, r#"{"model":"tiny","prompt":[1,258]}"#, message, "prompt").await;
    let message = "Invalid 'messages': empty array. Expected at least one message.";
    invalid(CHAT, r#"{"model":"tiny","messages":[]}"#, message, "messages").await;
}

#[tokio::test]
async fn parameters_that_are_unknown_or_not_supported() {
    let message = "Unrecognized request argument supplied: max_token";
    invalid_field(r#""max_token":3"#, message, "max_token").await;
    let message = "Unrecognized request argument supplied: messages[0].contents";
    let body = r#"{"model":"tiny","messages":[{"role":"user","content":"a","contents":"b"}]}"#;
    invalid(CHAT, body, message, "messages[0].contents").await;
}

#[tokio::test]
async fn penalties_choices_and_probabilities_out_of_bounds() {
    let message = "Invalid value for 'frequency_penalty': 2.5 is not between -2 and 2.";
    invalid_field(r#""frequency_penalty":2.5"#, message, "frequency_penalty").await;
    let message = "Invalid value for 'presence_penalty': -3 is not between -2 and 2.";
    invalid_field(r#""presence_penalty":-3"#, message, "presence_penalty").await;
    let message = "Invalid value for 'repetition_penalty': 0 is not greater than 0.";
    invalid_field(r#""repetition_penalty":0"#, message, "repetition_penalty").await;
    let message =
        "Invalid type for 'logit_bias': expected an object of token ids and numbers, but got an array instead.";
    invalid_field(r#""logit_bias":[1]"#, message, "logit_bias").await;
    let message = "Invalid 'logit_bias': the key 'cat' is not a token id.";
    invalid_field(r#""logit_bias":{"cat":1}"#, message, "logit_bias").await;
    let message = "Invalid value for 'logit_bias.5': 101 is not between -100 and 100.";
    invalid_field(r#""logit_bias":{"5":101}"#, message, "logit_bias").await;
    let message = "Invalid type for 'logit_bias.5': expected a number, but got a string instead.";
    invalid_field(r#""logit_bias":{"5":"much"}"#, message, "logit_bias.5").await;
    let message = "Invalid 'logit_bias': token id 5 stands there twice.";
    invalid_field(r#""logit_bias":{"5":1,"05":2}"#, message, "logit_bias").await;
    let message = "Invalid 'logit_bias': token id 258 is outside the vocabulary of 258.";
    invalid_field(r#""logit_bias":{"258":1}"#, message, "logit_bias").await;
    let message = "Invalid value for 'n': 17 is not an integer from 1 to 16.";
    invalid_field(r#""n":17"#, message, "n").await;
    let message = "Invalid 'n': 5 prompts with 13 choices each are 65 outputs. At most 64 are accepted.";
    invalid(TEXT, r#"{"model":"tiny","prompt":["a","b","c","d","e"],"n":13}"#, message, "n").await;
    let message = "'best_of' is 3, but only the value of 'n' (2) is supported. Ask for more choices by 'n' with 'logprobs', and choose among them.";
    invalid_field(r#""best_of":3,"n":2"#, message, "best_of").await;
    let message = "Invalid value for 'logprobs': 6 is not an integer from 0 to 5.";
    invalid_field(r#""logprobs":6"#, message, "logprobs").await;
    let message = "'response_format' is not supported together with 'echo' and 'logprobs'. Leave one of them out.";
    let fields = r#""logprobs":1,"echo":true,"response_format":{"type":"json_object"}"#;
    invalid_field(fields, message, "response_format").await;
    let message = "Invalid value for 'max_tokens': 0 is not an integer of at least 1.";
    invalid_field(r#""max_tokens":0,"logprobs":1"#, message, "max_tokens").await;
    let chat = |field: &str| format!(r#"{{"model":"tiny","messages":[{{"role":"user","content":"a"}}],{field}}}"#);
    let message = "Invalid type for 'logprobs': expected a boolean, but got a number (3) instead.";
    invalid(CHAT, &chat(r#""logprobs":3"#), message, "logprobs").await;
    let message = "Invalid value for 'top_logprobs': 21 is not an integer from 0 to 20.";
    invalid(CHAT, &chat(r#""logprobs":true,"top_logprobs":21"#), message, "top_logprobs").await;
    let message = "Invalid 'top_logprobs': it needs 'logprobs' to be true.";
    invalid(CHAT, &chat(r#""top_logprobs":1"#), message, "top_logprobs").await;
    let message = "Unrecognized request argument supplied: echo";
    invalid(CHAT, &chat(r#""echo":true"#), message, "echo").await;
}

#[tokio::test]
async fn texts_that_cannot_be_converted() {
    let message = "Missing required parameter: 'prompt'.";
    invalid("/tokenize", r#"{"model":"tiny"}"#, message, "prompt").await;
    let message = "Invalid 'messages': send either 'prompt' or 'messages', not both.";
    invalid("/tokenize", r#"{"model":"tiny","prompt":"a","messages":[]}"#, message, "messages").await;
    let message = "'add_generation_prompt' is not supported yet with this value. Leave it out.";
    let body = r#"{"model":"tiny","messages":[{"role":"user","content":"a"}],"add_generation_prompt":false}"#;
    invalid("/tokenize", body, message, "add_generation_prompt").await;
    let message = "Unrecognized request argument supplied: text";
    invalid("/tokenize", r#"{"model":"tiny","prompt":"a","text":"b"}"#, message, "text").await;
    let message = "Missing required parameter: 'tokens'.";
    invalid("/detokenize", r#"{"model":"tiny"}"#, message, "tokens").await;
    let message = "Invalid 'tokens': token id 258 is outside the vocabulary of 258.";
    invalid("/detokenize", r#"{"model":"tiny","tokens":[258]}"#, message, "tokens").await;
    let message = "Invalid 'tokens': an element is not a token id (an integer from 0 to 4294967295).";
    invalid("/detokenize", r#"{"model":"tiny","tokens":[-1]}"#, message, "tokens").await;
    let message =
        "The model `nobody` does not exist. GET /v1/models lists those that do; `foreshock models add` registers one.";
    let expected = error(message, "model", "model_not_found");
    check(post("/tokenize", "", br#"{"model":"nobody","prompt":"x"}"#), 404, &expected).await;
    let long = format!(r#"{{"model":"tiny","prompt":"{}"}}"#, "x".repeat(1200));
    let message = "This model's maximum context length is 64 tokens, but the prompt has 100 and max_tokens asks for 1. Shorten the prompt or lower max_tokens.";
    check(post("/tokenize", "", long.as_bytes()), 400, &error(message, "", "context_length_exceeded")).await;
    let expected = error("Method not allowed for this path", "", "method_not_allowed");
    assert_eq!(check(bare("GET", "/tokenize"), 405, &expected).await.header("allow"), Some("POST"));
}

#[tokio::test]
async fn models_paths_and_methods_that_are_not_there() {
    let message =
        "The model `nobody` does not exist. GET /v1/models lists those that do; `foreshock models add` registers one.";
    let expected = error(message, "model", "model_not_found");
    check(post(TEXT, "", br#"{"model":"nobody","prompt":"x"}"#), 404, &expected).await;
    check(bare("GET", "/v1/models/nobody"), 404, &expected).await;
    let expected = error("Method not allowed for this path", "", "method_not_allowed");
    assert_eq!(check(bare("GET", CHAT), 405, &expected).await.header("allow"), Some("POST"));
    assert_eq!(check(bare("DELETE", "/v1/models"), 405, &expected).await.header("allow"), Some("GET"));
    check(bare("GET", "/v1/nothing"), 404, &error("GET /v1/nothing not found", "", "not_found")).await;
    check(bare("POST", "/"), 404, &error("POST / not found", "", "not_found")).await;
    let expected = error("Content-Type must be application/json", "", "unsupported_media_type");
    check(post(TEXT, "content-type: text/plain\r\n", b"{}"), 415, &expected).await;
}

#[tokio::test]
async fn prompts_that_do_not_fit() {
    let message = |prompt: u32, max: u32| {
        let message = format!(
            "This model's maximum context length is 64 tokens, but the prompt has {prompt} and max_tokens asks for {max}. Shorten the prompt or lower max_tokens."
        );
        error(&message, "", "context_length_exceeded")
    };
    let body = |prompt: &str, rest: &str| format!(r#"{{"model":"tiny","prompt":"{prompt}"{rest}}}"#);
    let long = body(&"x".repeat(64), "");
    check(post(TEXT, "", long.as_bytes()), 400, &message(64, 1)).await;
    let greedy = body(&"x".repeat(60), r#","max_tokens":5"#);
    check(post(TEXT, "", greedy.as_bytes()), 400, &message(60, 5)).await;
    // Refused by its length alone: a token has at most 12 bytes here.
    let huge = body(&"x".repeat(1200), "");
    check(post(TEXT, "", huge.as_bytes()), 400, &message(100, 1)).await;
}

#[tokio::test]
async fn bodies_that_are_too_large_or_too_slow() {
    let too_large = error("The request body is larger than the limit of 2048 bytes", "", "body_too_large");
    // Announced, and far too large to be read at all.
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-request-id: t1\r\nconnection: close\r\n";
    check(format!("{head}content-length: 99999999\r\n\r\n").into_bytes(), 413, &too_large).await;
    // Sent whole before the answer is read.
    check(post(TEXT, "", &[b' '; 2049]), 413, &too_large).await;
    // Chunked, so nothing was announced.
    let chunks = format!("400\r\n{}\r\n", " ".repeat(1024)).repeat(3);
    check(format!("{head}transfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n").into_bytes(), 413, &too_large).await;
    // Announced and never sent.
    let too_slow = error("The request body did not arrive within 300 ms", "", "body_timeout");
    check(format!("{head}content-length: 100\r\n\r\n{{").into_bytes(), 408, &too_slow).await;
}

#[tokio::test]
async fn a_chunked_body_is_as_good_as_any() {
    let server = Setup { scripts: vec![crate::support::says("ok")], ..Setup::default() }.start().await;
    let request =
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n\
        10\r\n{\"model\":\"tiny\",\r\n10\r\n\"prompt\":  \"hi\"}\r\n0\r\n\r\n";
    let answer = server.exchange(request).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.header("x-request-id").is_some_and(|id| id.starts_with("req-")), "{answer:?}");
}

#[tokio::test]
async fn a_body_larger_than_the_buffers_is_read_whole() {
    let server = Setup { scripts: vec![crate::support::says("ok")], ..Setup::default() }.start().await;
    let body = format!(r#"{{"model":"tiny",{}"prompt":"hi"}}"#, " ".repeat(3 << 20));
    assert_eq!(server.post(TEXT, &body).await.status, 200);
}

#[tokio::test]
async fn refusals_of_the_backend_say_when_to_come_back() {
    let full = ApiError::QueueFull { model: "tiny".to_owned(), limit: 3, retry_after_s: 9 };
    let down = ApiError::Unavailable { message: "no instance".to_owned(), retry_after_s: None };
    for (refusal, status, retry_after, kind, outcome) in [
        (full, 429, "9", "rate_limit_error", AccessOutcome::Rejected),
        (down, 503, "1", "server_error", AccessOutcome::Failed),
        (ApiError::ShuttingDown, 503, "1", "server_error", AccessOutcome::Failed),
    ] {
        let mut server = Setup { refusal: Some(refusal), ..Setup::default() }.start().await;
        let answer = server.post(TEXT, r#"{"model":"tiny","prompt":"x","stream":true}"#).await;
        assert_eq!((answer.status, answer.header("retry-after")), (status, Some(retry_after)), "{answer:?}");
        assert!(answer.body().contains(kind), "{answer:?}");
        let record = server.record().await;
        assert_eq!((record.status, record.outcome, record.output_tokens), (status, outcome, 0));
    }
}

#[tokio::test]
async fn a_deadline_that_passes_is_an_error() {
    use crate::support::Step;
    let mut server = Setup { scripts: vec![vec![Step::Hang]], ..Setup::default() }.start().await;
    let request = post(TEXT, "x-foreshock-deadline-ms: 50\r\n", br#"{"model":"tiny","prompt":"x"}"#);
    let answer = tokio::time::timeout(PATIENCE, server.exchange(&request)).await.expect("an answer in time");
    assert_eq!(answer.status, 504);
    assert!(answer.body().contains("deadline of 50 ms passed before the answer was complete"), "{answer:?}");
    server.cancelled().await;
}
