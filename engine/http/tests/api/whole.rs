//! Answers in one piece, and what the backend is asked for them.

use crate::checkpoint::{TURN_END, ids};
use crate::support::{Setup, Step, bare, says, server};
use engine_http::AccessOutcome;
use engine_wire::hop::FinishReason;

#[tokio::test]
async fn a_chat_completion() {
    let mut server = server(vec![
        Step::Waiting,
        Step::Tokens(ids("Hel")),
        Step::Tokens(ids("lo")),
        Step::Tokens(vec![TURN_END]),
        Step::Finish(FinishReason::Stop),
    ])
    .await;
    let body = r#"{"model":"tiny","messages":[{"role":"developer","content":"be"},{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}],"seed":-1,"temperature":0.5}"#;
    let answer = server.post("/v1/chat/completions", body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(
        answer.body(),
        r#"{"id":"chatcmpl-t1","object":"chat.completion","created":0,"model":"tiny","choices":[{"index":0,"message":{"role":"assistant","content":"Hello","refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":19,"completion_tokens":6,"total_tokens":25,"prompt_tokens_details":{"cached_tokens":2}}}"#
    );
    let asked = server.asked.lock().expect("no poison").remove(0);
    assert_eq!(asked.prompt, ids("system:be;user:a\nb;"));
    assert_eq!((asked.sampling.seed, asked.sampling.temperature), (u64::MAX, 0.5));
    assert_eq!(asked.stop.max_tokens, 64 - 19, "the rest of the context");
    let record = server.record().await;
    assert_eq!((record.outcome, record.finish), (AccessOutcome::Finished, Some(FinishReason::Stop)));
    assert_eq!((record.prompt_tokens, record.cached_tokens, record.output_tokens), (19, 2, 6));
    assert!(record.arrived_at_ns <= record.first_token_write_ns.expect("a first write"));
    assert!(record.peer.is_some_and(|peer| peer.ip().is_loopback()));
}

#[tokio::test]
async fn several_prompts_keep_their_order() {
    let scripts = vec![says("one"), says("two"), says("three")];
    let server = Setup { scripts, ..Setup::default() }.start().await;
    let body = r#"{"model":"tiny","prompt":["a",[98,99],"d"],"max_tokens":5,"temperature":0}"#;
    let answer = server.post("/v1/completions", body).await;
    assert_eq!(
        answer.body(),
        r#"{"id":"cmpl-t1","object":"text_completion","created":0,"model":"tiny","choices":[{"text":"one","index":0,"logprobs":null,"finish_reason":"length"},{"text":"two","index":1,"logprobs":null,"finish_reason":"length"},{"text":"three","index":2,"logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":4,"completion_tokens":11,"total_tokens":15,"prompt_tokens_details":{"cached_tokens":6}}}"#
    );
    let asked = server.asked.lock().expect("no poison");
    let prompts: Vec<_> = asked.iter().map(|request| request.prompt.clone()).collect();
    assert_eq!(prompts, [ids("a"), ids("bc"), ids("d")]);
    assert_eq!((asked[0].stop.max_tokens, asked[0].sampling.seed), (5, 0));
}

#[tokio::test]
async fn defaults_are_openais_and_a_seed_is_drawn() {
    let server = Setup { scripts: vec![says("a"), says("a")], ..Setup::default() }.start().await;
    for _ in 0..2 {
        let body = r#"{"model":"tiny","prompt":"a","user":"me","stream_options":null,"logit_bias":{},"frequency_penalty":0.0,"n":1,"echo":false,"stop":null}"#;
        assert_eq!(server.post("/v1/completions", body).await.status, 200);
    }
    let asked = server.asked.lock().expect("no poison");
    assert_eq!((asked[0].sampling.temperature, asked[0].sampling.top_p, asked[0].stop.max_tokens), (1.0, 1.0, 16));
    assert_ne!(asked[0].sampling.seed, asked[1].sampling.seed);
}

#[tokio::test]
async fn special_tokens_show_only_on_request() {
    for (skip, expected) in [("true", "ab"), ("false", "a<|im_end|>b")] {
        let script = vec![Step::Tokens(vec![97, TURN_END, 98, TURN_END]), Step::Finish(FinishReason::Stop)];
        let server = server(script).await;
        let body = format!(r#"{{"model":"tiny","prompt":"x","skip_special_tokens":{skip},"min_tokens":3}}"#);
        let answer = server.post("/v1/completions", &body).await;
        // The end that ends is never text; one in the middle is an ordinary special token.
        assert!(answer.body().contains(&format!(r#""text":"{expected}","index""#)), "{answer:?}");
    }
}

#[tokio::test]
async fn models_and_probes() {
    let server = server(Vec::new()).await;
    let card = |name: &str| {
        format!(
            r#"{{"id":"{name}","object":"model","created":0,"owned_by":"foreshock","revision":"r1","max_model_len":64,"root":"{name}","parent":null}}"#
        )
    };
    for (path, content_type, expected) in [
        (
            "/v1/models",
            "application/json",
            format!(r#"{{"object":"list","data":[{},{}]}}"#, card("tiny"), card("org/tiny")),
        ),
        ("/v1/models/tiny", "application/json", card("tiny")),
        ("/v1/models/org/tiny", "application/json", card("org/tiny")),
        ("/healthz", "text/plain; charset=utf-8", "ok\n".to_owned()),
        ("/readyz", "text/plain; charset=utf-8", "ready\n".to_owned()),
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8", "up 1\n".to_owned()),
    ] {
        let answer = server.exchange(&bare("GET", path)).await;
        assert_eq!((answer.status, answer.body()), (200, expected), "{path}");
        assert_eq!(answer.header("content-type"), Some(content_type), "{path}");
        assert_eq!(answer.header("x-request-id"), Some("t1"), "{path}");
    }
}
