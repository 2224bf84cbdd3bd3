//! The hop's JSON: what travels, what is left out for peers that do not know it, and what is no event.

use engine_wire::hop::{Embedded, FinishReason, GenerateRequest, HopEvent, TokenLogprobs};
use engine_wire::sampling::{Sampling, StopRule, choice_seed};
use std::collections::BTreeSet;

fn check(event: HopEvent, json: &str) {
    assert_eq!(serde_json::to_string(&event).expect("JSON"), json);
    assert_eq!(serde_json::from_str::<HopEvent>(json).expect("an event"), event);
}

#[test]
fn events_as_json_begin_with_what_they_are() {
    check(HopEvent::Tokens(vec![1, 2]), r#"{"tokens":[1,2]}"#);
    let logprobs = vec![
        TokenLogprobs { logprob: -0.5, top: vec![(3, -0.25), (1, -0.5)] },
        TokenLogprobs { logprob: -9999.0, top: Vec::new() },
    ];
    check(
        HopEvent::Scored { tokens: vec![1, 2], logprobs },
        r#"{"tokens":[1,2],"logprobs":[{"logprob":-0.5,"top":[[3,-0.25],[1,-0.5]]},{"logprob":-9999.0,"top":[]}]}"#,
    );
    check(
        HopEvent::Finished { reason: FinishReason::Stop, cached_tokens: 4 },
        r#"{"finished":{"reason":"stop","cached_tokens":4}}"#,
    );
    check(
        HopEvent::Failed { status: 503, code: "x".to_owned(), message: "y".to_owned() },
        r#"{"failed":{"status":503,"code":"x","message":"y"}}"#,
    );
}

#[test]
fn what_is_no_event_is_an_error() {
    for (json, expected) in [
        ("{}", "exactly one of"),
        (r#"{"tokens":[1],"finished":{"reason":"stop","cached_tokens":0}}"#, "exactly one of"),
        (r#"{"logprobs":[]}"#, "exactly one of"),
        (r#"{"tokens":[1],"logprobs":[]}"#, "one entry of `logprobs` for each"),
        (r#"{"tokens":[1],"more":1}"#, "unknown field"),
        (r#"{"tokens":[-1]}"#, "invalid value"),
        (r#""tokens""#, "invalid type"),
    ] {
        let error = serde_json::from_str::<HopEvent>(json).expect_err(json).to_string();
        assert!(error.contains(expected), "{json}: {error}");
    }
}

#[test]
fn a_request_that_uses_nothing_new_is_written_as_it_always_was() {
    let request = GenerateRequest {
        model: "m".to_owned(),
        adapter_revision: None,
        prompt: vec![1],
        emitted: Vec::new(),
        given: Vec::new(),
        sampling: Sampling::default(),
        stop: StopRule::default(),
        top_logprobs: None,
        priority: 0,
        constraint: None,
    };
    let json = r#"{"model":"m","prompt":[1],"sampling":{"temperature":1.0,"top_p":1.0,"top_k":0,"min_p":0.0,"seed":0},"stop":{"max_tokens":16,"min_tokens":0,"ignore_eos":false,"stop_token_ids":[]}}"#;
    assert_eq!(serde_json::to_string(&request).expect("JSON"), json);
    assert_eq!(serde_json::from_str::<GenerateRequest>(json).expect("a request"), request);

    let sampling = Sampling {
        frequency_penalty: 0.1,
        presence_penalty: -0.5,
        repetition_penalty: 1.1,
        logit_bias: vec![(3, -100.0)],
        ..Sampling::default()
    };
    let adapter_revision = Some("r1".to_owned());
    let all = GenerateRequest { sampling, top_logprobs: Some(0), adapter_revision, ..request };
    let json = serde_json::to_string(&all).expect("JSON");
    assert!(json.starts_with(r#"{"model":"m","adapter_revision":"r1","#), "{json}");
    assert!(json.contains(r#""logit_bias":[[3,-100.0]]"#) && json.ends_with(r#""top_logprobs":0}"#), "{json}");
    assert_eq!(serde_json::from_str::<GenerateRequest>(&json).expect("a request"), all);
}

#[test]
fn choices_have_seeds_of_their_own() {
    let seeds: BTreeSet<u64> = (0..100).flat_map(|seed| (0..16).map(move |index| choice_seed(seed, index))).collect();
    assert_eq!(seeds.len(), 1600);
    assert_eq!((choice_seed(5, 0), choice_seed(5, 3)), (5, choice_seed(5, 3)));
}

#[test]
fn vectors_travel_bit_for_bit_and_only_whole() {
    let embedded = Embedded { dimensions: 3, numbers: vec![0.1, -0.0, f32::MIN_POSITIVE, 1.0, -7.5e-20, 0.3] };
    let bytes = embedded.to_bytes();
    assert_eq!(bytes.len(), 24);
    let back = Embedded::from_bytes(3, 2, &bytes).expect("two vectors");
    assert_eq!(
        back.numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
        embedded.numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
    );
    for (dimensions, texts, bytes) in
        [(3, 1, &bytes[..]), (2, 2, &bytes), (3, 2, &bytes[1..]), (0, 0, &[]), (usize::MAX, 2, &bytes)]
    {
        assert_eq!(Embedded::from_bytes(dimensions, texts, bytes), None);
    }
}
