//! Streams: the exact bytes of each write, stop strings, failures and cancellation.

use crate::checkpoint::{TURN_END, ids};
use crate::support::{Setup, Step, post, says, server};
use engine_http::{AccessOutcome, ApiError};
use engine_wire::hop::FinishReason;

const TEXT: &str = "/v1/completions";

fn chat_event(choices: &str, usage: &str) -> String {
    format!(
        "data: {{\"id\":\"chatcmpl-t1\",\"object\":\"chat.completion.chunk\",\"created\":0,\"model\":\"tiny\",\"choices\":[{choices}]{usage}}}\n\n"
    )
}

fn delta(delta: &str, finish: &str) -> String {
    format!("{{\"index\":0,\"delta\":{{{delta}}},\"logprobs\":null,\"finish_reason\":{finish}}}")
}

#[tokio::test]
async fn a_chat_stream_write_by_write() {
    let mut server = server(vec![
        Step::Waiting,
        Step::Tokens(ids("H")),
        Step::Tokens(ids("\u{e9}")[..1].to_vec()),
        Step::Tokens(ids("\u{e9}")[1..].to_vec()),
        Step::Tokens(vec![TURN_END]),
        Step::Finish(FinishReason::Stop),
    ])
    .await;
    let body = r#"{"model":"tiny","messages":[{"role":"user","content":"a"}],"stream":true,"stream_options":{"include_usage":true}}"#;
    let answer = server.post("/v1/chat/completions", body).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/event-stream; charset=utf-8")));
    assert_eq!(answer.header("x-request-id"), Some("t1"));
    let usage = r#","usage":{"prompt_tokens":7,"completion_tokens":4,"total_tokens":11,"prompt_tokens_details":{"cached_tokens":2}}"#;
    let null = r#","usage":null"#;
    let expected = [
        ": waiting for an instance\n\n".to_owned(),
        // The role comes with the first token, not before it.
        chat_event(&delta(r#""role":"assistant","content":"""#, "null"), null)
            + &chat_event(&delta(r#""content":"H""#, "null"), null),
        // Half of the character gives no event.
        chat_event(&delta("\"content\":\"\u{e9}\"", "null"), null),
        chat_event(&delta("", "\"stop\""), null) + &chat_event("", usage) + "data: [DONE]\n\n",
    ];
    assert_eq!(answer.chunks, expected);
    let record = server.record().await;
    assert_eq!((record.outcome, record.status, record.stream), (AccessOutcome::Finished, 200, true));
    assert_eq!((record.prompt_tokens, record.output_tokens), (7, 4));
    let times =
        [Some(record.arrived_at_ns), record.first_token_write_ns, record.last_token_write_ns, record.last_write_ns];
    assert!(times.iter().all(Option::is_some) && times.is_sorted(), "{times:?}");
    assert!(record.first_token_write_ns < record.last_token_write_ns, "{times:?}");
}

/// Texts of a completion stream's events, then its finish reason.
async fn streamed(script: Vec<Step>, field: &str) -> (Vec<String>, String) {
    let server = server(script).await;
    let answer = server.post(TEXT, &format!(r#"{{"model":"tiny","prompt":"x","stream":true{field}}}"#)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let mut texts = Vec::new();
    for event in answer.body().split_terminator("\n\n").filter_map(|event| event.strip_prefix("data: ")) {
        let Ok(event) = serde_json::from_str::<serde_json::Value>(event) else { continue };
        let choice = &event["choices"][0];
        if let Some(reason) = choice["finish_reason"].as_str() {
            return (texts, reason.to_owned());
        }
        texts.push(choice["text"].as_str().expect("a text").to_owned());
    }
    panic!("no finish in {answer:?}");
}

async fn check_stop(output: &str, field: &str, texts: &[&str], finish: &str) {
    let (streamed, reason) = streamed(says(output), field).await;
    assert_eq!((streamed, reason.as_str()), (texts.iter().map(|text| text.to_string()).collect(), finish), "{field}");
}

#[tokio::test]
async fn stop_strings_across_tokens() {
    check_stop("abc", "", &["a", "b", "c"], "length").await;
    check_stop("aENDb", r#","stop":"END""#, &["a"], "stop").await;
    check_stop("aENxEND", r##","stop":["END","#"]"##, &["a", "ENx"], "stop").await;
    check_stop("aEN", r#","stop":"END""#, &["a", "EN"], "length").await;
    check_stop("éé!", r#","stop":"é!""#, &["é"], "stop").await;
    // Before min_tokens nothing stops.
    check_stop("##a#", r##","stop":"#","min_tokens":2"##, &["#", "#", "a"], "stop").await;
}

#[tokio::test]
async fn ends_are_text_only_when_they_do_not_end() {
    let end = |reason| vec![Step::Tokens(vec![97]), Step::Tokens(vec![TURN_END]), Step::Finish(reason)];
    let shown = |text: &[&str], finish: &str| (text.iter().map(|text| text.to_string()).collect(), finish.to_owned());
    let raw = r#","skip_special_tokens":false"#;
    assert_eq!(streamed(end(FinishReason::Stop), raw).await, shown(&["a"], "stop"));
    assert_eq!(streamed(end(FinishReason::Length), raw).await, shown(&["a", "<|im_end|>"], "length"));
    let ignored = format!(r#"{raw},"ignore_eos":true"#);
    assert_eq!(streamed(end(FinishReason::Length), &ignored).await, shown(&["a", "<|im_end|>"], "length"));
    let stop_token = vec![Step::Tokens(ids("ab")), Step::Finish(FinishReason::Stop)];
    assert_eq!(streamed(stop_token, r#","stop_token_ids":[98]"#).await, shown(&["a"], "stop"));
}

#[tokio::test]
async fn a_stop_string_cancels_the_rest_and_counts_up_to_itself() {
    let script = vec![Step::Tokens(ids("ab#cd")), Step::Hang];
    let mut server = server(script).await;
    let answer = server.post(TEXT, r##"{"model":"tiny","prompt":"x","stream":true,"stop":"#"}"##).await;
    assert!(answer.body().contains(r#""text":"ab""#) && answer.body().ends_with("data: [DONE]\n\n"), "{answer:?}");
    server.cancelled().await;
    let record = server.record().await;
    assert_eq!((record.outcome, record.output_tokens), (AccessOutcome::Finished, 3));
}

#[tokio::test]
async fn a_late_failure_is_an_event() {
    let error = ApiError::Unavailable { message: "the last instance died".to_owned(), retry_after_s: None };
    let mut server = server(vec![Step::Tokens(ids("a")), Step::Fail(error)]).await;
    let answer = server.post(TEXT, r#"{"model":"tiny","prompt":"x","stream":true}"#).await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.chunks.last().map(String::as_str),
        Some(
            "data: {\"error\":{\"message\":\"the last instance died\",\"type\":\"server_error\",\"param\":null,\"code\":\"unavailable\"}}\n\ndata: [DONE]\n\n"
        )
    );
    let record = server.record().await;
    assert_eq!((record.outcome, record.status, record.output_tokens), (AccessOutcome::Failed, 200, 1));
}

#[tokio::test]
async fn a_deadline_that_passes_in_a_stream_is_an_event() {
    let mut server = server(vec![Step::Tokens(ids("a")), Step::Hang]).await;
    let body = br#"{"model":"tiny","prompt":"x","stream":true}"#;
    let answer = server.exchange(&post(TEXT, "x-foreshock-deadline-ms: 100\r\n", body)).await;
    let expected = "The request's deadline of 100 ms passed before the answer was complete";
    assert!(answer.body().contains(expected) && answer.body().ends_with("data: [DONE]\n\n"), "{answer:?}");
    server.cancelled().await;
    assert_eq!(server.record().await.outcome, AccessOutcome::Failed);
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_not_taken_for_complete() {
    let server = server(vec![Step::Tokens(ids("a"))]).await;
    let answer = server.post(TEXT, r#"{"model":"tiny","prompt":"x","stream":true}"#).await;
    assert!(answer.body().contains("The stream broke off before it was complete"), "{answer:?}");
}

#[tokio::test]
async fn several_prompts_stream_under_their_indices() {
    let scripts = vec![says("ab"), says("c")];
    let server = Setup { scripts, ..Setup::default() }.start().await;
    let answer = server.post(TEXT, r#"{"model":"tiny","prompt":["x","y"],"stream":true}"#).await;
    let body = answer.body();
    for expected in [
        r#"{"text":"a","index":0,"logprobs":null,"finish_reason":null}"#,
        r#"{"text":"b","index":0,"logprobs":null,"finish_reason":null}"#,
        r#"{"text":"c","index":1,"logprobs":null,"finish_reason":null}"#,
        r#"{"text":"","index":0,"logprobs":null,"finish_reason":"length"}"#,
        r#"{"text":"","index":1,"logprobs":null,"finish_reason":"length"}"#,
    ] {
        assert_eq!(body.matches(expected).count(), 1, "{expected} in {body}");
    }
    assert_eq!(body.matches("[DONE]").count(), 1);
}

#[tokio::test]
async fn head_and_comments_come_while_the_request_waits() {
    let mut server = server(vec![Step::Waiting, Step::Hang]).await;
    let mut client = server.connect().await;
    client.send(&post(TEXT, "", br#"{"model":"tiny","prompt":"x","stream":true}"#)).await;
    let seen = client.read_until(": waiting for an instance\n\n").await;
    assert!(seen.starts_with("HTTP/1.1 200 OK\r\n") && !seen.contains("data:"), "{seen}");
    drop(client);
    server.cancelled().await;
    assert_eq!(server.record().await.outcome, AccessOutcome::Cancelled);
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_the_work() {
    for (field, first) in [("", ""), (r#","stream":true"#, r#""text":"a""#)] {
        let mut server = server(vec![Step::Tokens(ids("a")), Step::Hang]).await;
        let mut client = server.connect().await;
        client.send(&post(TEXT, "", format!(r#"{{"model":"tiny","prompt":"x"{field}}}"#).as_bytes())).await;
        if first.is_empty() {
            // Nothing is sent before the end: wait until the backend has the request.
            while server.asked.lock().expect("no poison").is_empty() {
                tokio::task::yield_now().await;
            }
        } else {
            client.read_until(first).await;
        }
        drop(client);
        server.cancelled().await;
        assert_eq!(server.record().await.outcome, AccessOutcome::Cancelled, "{field}");
    }
}
