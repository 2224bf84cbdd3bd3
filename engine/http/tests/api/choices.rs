//! Several choices, prompts at the head of answers, log-probabilities, and text to tokens and back.

use crate::checkpoint::{TURN_END, ids};
use crate::support::{Setup, Step, bare, says, server};
use engine_http::AccessOutcome;
use engine_wire::hop::{FinishReason, GenerateRequest};
use engine_wire::sampling::choice_seed;

const TEXT: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// The choices of the answer to a completion, as JSON.
async fn choices(scripts: Vec<Vec<Step>>, fields: &str) -> String {
    let server = Setup { scripts, ..Setup::default() }.start().await;
    let body = server.post(TEXT, &format!(r#"{{"model":"tiny",{fields}}}"#)).await.body();
    let (_, rest) = body.split_once(r#""choices":"#).unwrap_or_else(|| panic!("no choices in {body}"));
    rest.split_once(r#","usage""#).expect("a usage").0.to_owned()
}

/// Payloads of a stream's events that contain `needle`.
fn events(body: &str, needle: &str) -> Vec<String> {
    let events = body.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    events.filter(|event| event.contains(needle)).map(str::to_owned).collect()
}

#[tokio::test]
async fn every_choice_is_asked_for_with_its_own_seed_and_the_prompt_counts_once() {
    let scripts = vec![says("one"), says("two"), says("three"), says("four")];
    let mut server = Setup { scripts, ..Setup::default() }.start().await;
    let answer = server.post(TEXT, r#"{"model":"tiny","prompt":["a",[98,99]],"n":2,"best_of":2,"seed":7}"#).await;
    let choice = |text: &str, index: u32| {
        format!(r#"{{"text":"{text}","index":{index},"logprobs":null,"finish_reason":"length"}}"#)
    };
    let expected = [choice("one", 0), choice("two", 1), choice("three", 2), choice("four", 3)].join(",");
    assert!(answer.body().contains(&format!("[{expected}]")), "{answer:?}");
    // Of the cached tokens (2 for each output) those of one choice of each prompt.
    let usage = r#""usage":{"prompt_tokens":3,"completion_tokens":15,"total_tokens":18,"prompt_tokens_details":{"cached_tokens":4}}"#;
    assert!(answer.body().contains(usage), "{answer:?}");
    let record = server.record().await;
    assert_eq!((record.outcome, record.prompt_tokens, record.output_tokens), (AccessOutcome::Finished, 3, 15));
    let asked = server.asked.lock().expect("no poison");
    let key = |request: &GenerateRequest| (request.prompt.clone(), request.sampling.seed);
    let other = choice_seed(7, 1);
    assert_ne!(other, 7);
    let expected = [(ids("a"), 7), (ids("a"), other), (ids("bc"), 7), (ids("bc"), other)];
    assert_eq!(asked.iter().map(key).collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn chat_choices_stream_under_their_indices_each_with_its_role() {
    let mut server = Setup { scripts: vec![says("ab"), says("c")], ..Setup::default() }.start().await;
    let body = r#"{"model":"tiny","messages":[{"role":"user","content":"a"}],"n":2,"stream":true,"stream_options":{"include_usage":true}}"#;
    let body = server.post(CHAT, body).await.body();
    for expected in [
        r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}"#,
        r#"{"index":1,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}"#,
        r#"{"index":0,"delta":{"content":"a"},"logprobs":null,"finish_reason":null}"#,
        r#"{"index":0,"delta":{"content":"b"},"logprobs":null,"finish_reason":null}"#,
        r#"{"index":1,"delta":{"content":"c"},"logprobs":null,"finish_reason":null}"#,
        r#"{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}"#,
        r#"{"index":1,"delta":{},"logprobs":null,"finish_reason":"length"}"#,
        r#""usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10,"prompt_tokens_details":{"cached_tokens":2}}"#,
        "[DONE]",
    ] {
        assert_eq!(body.matches(expected).count(), 1, "{expected} in {body}");
    }
    let record = server.record().await;
    assert_eq!((record.prompt_tokens, record.output_tokens), (7, 3));
}

#[tokio::test]
async fn the_prompt_comes_first_where_it_is_wanted() {
    let whole = choices(vec![says("b"), says("d")], r#""prompt":["a","c"],"echo":true"#).await;
    assert_eq!(
        whole,
        r#"[{"text":"ab","index":0,"logprobs":null,"finish_reason":"length"},{"text":"cd","index":1,"logprobs":null,"finish_reason":"length"}]"#
    );
    // Tokens have their own text, special ones only on request; stop strings in the prompt stop nothing.
    let prompt = format!(r#""prompt":[97,{TURN_END}],"echo":true,"stop":"a""#);
    assert!(choices(vec![says("b")], &prompt).await.contains(r#""text":"ab""#));
    let raw = format!(r#"{prompt},"skip_special_tokens":false"#);
    assert!(choices(vec![says("b")], &raw).await.contains(r#""text":"a<|im_end|>b""#));

    let server = server(says("bc")).await;
    let body = server.post(TEXT, r#"{"model":"tiny","prompt":"a","echo":true,"stream":true}"#).await.body();
    let texts = [r#""text":"ab","#, r#""text":"c","#];
    assert!(texts.iter().all(|text| body.matches(text).count() == 1), "{body}");
}

#[tokio::test]
async fn a_prompt_is_scored_where_it_is_echoed() {
    // All but its first token is given as output; an end in it ends nothing, and it is not counted as output.
    let script = vec![Step::Scored(vec![TURN_END]), Step::Scored(ids("bc")), Step::Finish(FinishReason::Length)];
    let setup = Setup { scripts: vec![script.clone(), script], ..Setup::default() };
    let mut server = setup.start().await;
    let body = |rest: &str| {
        format!(
            r#"{{"model":"tiny","prompt":[97,{TURN_END},98],"echo":true,"logprobs":1,"max_tokens":1,"stop":"b"{rest}}}"#
        )
    };
    let answer = server.post(TEXT, &body("")).await.body();
    let expected = r#""text":"abc","index":0,"logprobs":{"text_offset":[0,1,1,2],"token_logprobs":[null,-0.5,-0.5,-0.5],"tokens":["a","<|im_end|>","b","c"],"top_logprobs":[null,{"!":-1.5,"<|im_end|>":-0.5},{"!":-1.5,"b":-0.5},{"!":-1.5,"c":-0.5}]},"finish_reason":"length""#;
    assert!(answer.contains(expected), "{answer}");
    assert!(answer.contains(r#""usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4,"#), "{answer}");
    let record = server.record().await;
    assert_eq!((record.prompt_tokens, record.output_tokens), (3, 1));
    let asked = server.asked.lock().expect("no poison").remove(0);
    assert_eq!((asked.prompt, asked.given, asked.stop.max_tokens), (ids("a"), vec![TURN_END, 98], 3));
    let streamed = server.post(TEXT, &body(r#","stream":true"#)).await.body();
    let offsets: Vec<String> = events(&streamed, r#""text_offset":["#);
    assert!(offsets.first().is_some_and(|event| event.contains(r#""token_logprobs":[null"#)), "{streamed}");

    // How likely a text is, and nothing more.
    let script = vec![Step::Scored(ids("b")), Step::Finish(FinishReason::Length)];
    let only = choices(vec![script], r#""prompt":"ab","echo":true,"logprobs":0,"max_tokens":0"#).await;
    assert!(only.contains(r#""text":"ab""#) && only.contains(r#""token_logprobs":[null,-0.5]"#), "{only}");
}

#[tokio::test]
async fn what_stops_is_shown_on_request() {
    let shown = r#""prompt":"x","include_stop_str_in_output":true"#;
    let stopped = choices(vec![says("aENDb")], &format!(r#"{shown},"stop":"END""#)).await;
    assert!(stopped.contains(r#""text":"aEND","#) && stopped.contains(r#""stop""#), "{stopped}");
    let end = vec![Step::Tokens(vec![97, 98]), Step::Finish(FinishReason::Stop)];
    let stopped = choices(vec![end], &format!(r#"{shown},"stop_token_ids":[98]"#)).await;
    assert!(stopped.contains(r#""text":"ab","#), "{stopped}");
}

/// The log-probabilities of a completion that the backend ends.
async fn completion_logprobs(tokens: &[u32], field: &str, expected: &str) {
    let script = vec![Step::Scored(tokens.to_vec()), Step::Finish(FinishReason::Stop)];
    let answer = choices(vec![script], &format!(r#""prompt":"x","logprobs":1{field}"#)).await;
    let (_, rest) = answer.split_once(r#""logprobs":"#).expect("log-probabilities");
    assert_eq!(rest.split_once(r#","finish_reason""#).expect("an end").0, expected, "{field}");
}

#[tokio::test]
async fn completion_logprobs_are_those_of_the_text() {
    // Offsets count characters; half a character is written out as bytes.
    let e_acute = ids("\u{e9}");
    completion_logprobs(
        &[e_acute[0], e_acute[1], 97, 33, TURN_END],
        "",
        r#"{"text_offset":[0,0,1,2],"token_logprobs":[-0.5,-0.5,-0.5,-0.5],"tokens":["bytes:\\xc3","bytes:\\xa9","a","!"],"top_logprobs":[{"!":-1.5,"bytes:\\xc3":-0.5},{"!":-1.5,"bytes:\\xa9":-0.5},{"!":-1.5,"a":-0.5},{"!":-1.5}]}"#,
    )
    .await;
    // What the stop string cuts off has no entry.
    completion_logprobs(
        &ids("aEND"),
        r#","stop":"END""#,
        r#"{"text_offset":[0],"token_logprobs":[-0.5],"tokens":["a"],"top_logprobs":[{"!":-1.5,"a":-0.5}]}"#,
    )
    .await;
    completion_logprobs(&[TURN_END], "", "null").await;
}

#[tokio::test]
async fn chat_logprobs_come_with_their_text() {
    let entry = |token: &str, byte: u32| {
        format!(
            r#"{{"token":"{token}","logprob":-0.5,"bytes":[{byte}],"top_logprobs":[{{"token":"!","logprob":-1.5,"bytes":[33]}}]}}"#
        )
    };
    let script = || {
        let tokens = ids("aEb").into_iter().map(|token| Step::Scored(vec![token]));
        tokens.chain([Step::Finish(FinishReason::Length)]).collect::<Vec<_>>()
    };
    let scripts = vec![script(), script()];
    let server = Setup { scripts, ..Setup::default() }.start().await;
    let body = |rest: &str| {
        format!(
            r#"{{"model":"tiny","messages":[{{"role":"user","content":"a"}}],"logprobs":true,"top_logprobs":1,"stop":"END"{rest}}}"#
        )
    };
    let whole = server.post(CHAT, &body("")).await.body();
    let all = format!(
        r#""message":{{"role":"assistant","content":"aEb","refusal":null}},"logprobs":{{"content":[{},{},{}],"refusal":null}}"#,
        entry("a", 97),
        entry("E", 69),
        entry("b", 98)
    );
    assert!(whole.contains(&all), "{whole}");
    assert_eq!(server.asked.lock().expect("no poison")[0].top_logprobs, Some(1));

    // The E waits until it is no stop string, and its entry with it.
    let streamed = server.post(CHAT, &body(r#","stream":true"#)).await.body();
    let choice = |content: &str, entries: &[String]| {
        format!(
            r#"{{"index":0,"delta":{{"content":"{content}"}},"logprobs":{{"content":[{}],"refusal":null}},"finish_reason":null}}"#,
            entries.join(",")
        )
    };
    let events = events(&streamed, r#""logprobs":{"#);
    assert_eq!(events.len(), 2, "{streamed}");
    assert!(events[0].contains(&choice("a", &[entry("a", 97)])), "{streamed}");
    assert!(events[1].contains(&choice("Eb", &[entry("E", 69), entry("b", 98)])), "{streamed}");
}

#[tokio::test]
async fn parameters_reach_the_backend() {
    let server = server(says("a")).await;
    let body = r#"{"model":"tiny","prompt":"x","frequency_penalty":0.5,"presence_penalty":-1,"repetition_penalty":1.25,"logit_bias":{"9":-100,"3":2.5},"logprobs":0}"#;
    assert_eq!(server.post(TEXT, body).await.status, 200);
    let asked = server.asked.lock().expect("no poison").remove(0);
    let sampling = asked.sampling;
    assert_eq!((sampling.frequency_penalty, sampling.presence_penalty), (0.5, -1.0));
    assert_eq!((sampling.repetition_penalty, sampling.logit_bias), (1.25, vec![(3, 2.5), (9, -100.0)]));
    assert_eq!(asked.top_logprobs, Some(0));
}

#[tokio::test]
async fn text_to_tokens_and_back() {
    let server = server(Vec::new()).await;
    for (path, body, expected) in [
        ("/tokenize", r#"{"model":"tiny","prompt":"ab"}"#, r#"{"count":2,"max_model_len":64,"tokens":[97,98]}"#),
        (
            "/tokenize",
            r#"{"model":"tiny","prompt":"a<|im_end|>","add_special_tokens":false,"return_token_strs":true}"#,
            r#"{"count":2,"max_model_len":64,"tokens":[97,257],"token_strs":["a","<|im_end|>"]}"#,
        ),
        ("/tokenize", r#"{"model":"tiny","prompt":""}"#, r#"{"count":0,"max_model_len":64,"tokens":[]}"#),
        (
            "/tokenize",
            r#"{"model":"tiny","messages":[{"role":"user","content":"a"}],"add_generation_prompt":true}"#,
            r#"{"count":7,"max_model_len":64,"tokens":[117,115,101,114,58,97,59]}"#,
        ),
        ("/detokenize", r#"{"model":"tiny","tokens":[97,257,98]}"#, r#"{"prompt":"a<|im_end|>b"}"#),
        ("/detokenize", r#"{"model":"tiny","tokens":[]}"#, r#"{"prompt":""}"#),
    ] {
        let answer = server.post(path, body).await;
        assert_eq!((answer.status, answer.body().as_str()), (200, expected), "{path} {body}");
    }
}

#[tokio::test]
async fn every_documented_path_is_served_and_only_with_its_methods() {
    let server = server(Vec::new()).await;
    for operation in engine_wire::openapi::OPERATIONS {
        let path = operation.path.replace("{model}", "tiny");
        let method = operation.method.to_uppercase();
        // A POST without a body is refused for that, not for its path.
        let expected = if method == "POST" { 400 } else { 200 };
        assert_eq!(server.exchange(&bare(&method, &path)).await.status, expected, "{method} {path}");
        let answer = server.exchange(&bare("DELETE", &path)).await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some(method.as_str())), "{path}");
    }
}
