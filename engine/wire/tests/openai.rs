//! What requests are accepted, and as what. Refusals are tested where their status is known, in engine-http.

use engine_wire::openai::{
    ChatMessage, EmbeddingRequest, MAX_LOGIT_BIAS, Prompt, Role, Truncation, parse_chat, parse_completion,
    parse_embedding,
};

fn prompts(json: &str) -> Vec<Prompt> {
    let body = format!(r#"{{"model":"m","prompt":{json}}}"#);
    parse_completion(body.as_bytes()).expect("a request").prompts
}

#[test]
fn prompts_in_all_four_shapes() {
    let text = |text: &str| Prompt::Text(text.to_owned());
    assert_eq!(prompts(r#""a\n\u00e9""#), [text("a\né")]);
    assert_eq!(prompts(r#" [ "a" , "b" ] "#), [text("a"), text("b")]);
    assert_eq!(prompts("[1, 2]"), [Prompt::Tokens(vec![1, 2])]);
    assert_eq!(prompts("[[1],[2,4294967295]]"), [Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, u32::MAX])]);
}

#[test]
fn what_clients_send_by_default_is_accepted() {
    for field in [
        r#""user":"u""#,
        r#""metadata":{"a":"b"}"#,
        r#""store":false"#,
        r#""parallel_tool_calls":true"#,
        r#""service_tier":"auto""#,
        r#""cache_prompt":true"#,
        r#""frequency_penalty":0"#,
        r#""presence_penalty":0.0"#,
        r#""logit_bias":{ }"#,
        r#""logit_bias":null"#,
        r#""tools":[]"#,
        r#""tools":null"#,
        r#""tool_choice":"none""#,
        r#""response_format":{"type":"text"}"#,
        r#""logprobs":false"#,
        r#""top_logprobs":null"#,
        r#""n":1"#,
        r#""top_logprobs":0"#,
        r#""repetition_penalty":1.0"#,
        r#""include_stop_str_in_output":false"#,
        r#""modalities":["text"]"#,
        r#""stream_options":{"include_usage":false}"#,
        r#""max_tokens":null"#,
        r#""seed":null"#,
    ] {
        let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"a"}}],{field}}}"#);
        let plain = parse_chat(br#"{"model":"m","messages":[{"role":"user","content":"a"}]}"#);
        assert_eq!(parse_chat(body.as_bytes()), plain, "{field} changes nothing");
        assert!(plain.is_ok());
    }
}

#[test]
fn every_option_is_taken_over() {
    let body = br#"{"model":"m","messages":[{"role":"assistant","content":null,"tool_calls":[],"refusal":null},{"role":"user","content":"q","name":"n"}],
        "max_tokens":3,"max_completion_tokens":4,"min_tokens":2,"temperature":0,"top_p":0.5,"top_k":-1,"min_p":0.25,"seed":-5,"stop":["a","b"],
        "frequency_penalty":0.5,"presence_penalty":-2,"repetition_penalty":1.5,"logit_bias":{"7":1,"3":-100},"n":16,"logprobs":true,"top_logprobs":20,
        "include_stop_str_in_output":true,"stop_token_ids":[7],"ignore_eos":true,"skip_special_tokens":false,"stream":true,"stream_options":{"include_usage":true}}"#;
    let request = parse_chat(body).expect("a request");
    let message = |role, content: &str, name: Option<&str>| ChatMessage {
        name: name.map(str::to_owned),
        ..ChatMessage::text(role, content)
    };
    assert_eq!(request.messages, [message(Role::Assistant, "", None), message(Role::User, "q", Some("n"))]);
    let options = request.options;
    assert_eq!((options.max_tokens, options.min_tokens, options.seed), (Some(4), 2, Some(-5)));
    assert_eq!((options.temperature, options.top_p, options.top_k, options.min_p), (0.0, 0.5, 0, 0.25));
    let penalties = (options.frequency_penalty, options.presence_penalty, options.repetition_penalty);
    assert_eq!((penalties, options.logit_bias), ((0.5, -2.0, 1.5), vec![(3, -100.0), (7, 1.0)]));
    assert_eq!((options.n, options.top_logprobs, options.echo, options.include_stop), (16, Some(20), false, true));
    assert_eq!((options.stop, options.stop_token_ids), (vec!["a".to_owned(), "b".to_owned()], vec![7]));
    assert_eq!((options.ignore_eos, options.skip_special_tokens), (true, false));
    assert_eq!((options.stream, options.include_usage), (true, true));
}

#[test]
fn the_last_of_repeated_fields_counts_and_many_are_refused() {
    let request = parse_completion(br#"{"model":"a","prompt":"x","model":"b"}"#).expect("a request");
    assert_eq!(request.options.model, "b");
    let many: Vec<String> = (0..65).map(|index| format!("\"f{index}\":1")).collect();
    let error = parse_completion(format!("{{{}}}", many.join(",")).as_bytes()).expect_err("too many fields");
    assert!(error.message.contains("more than 64 fields"), "{error}");
}

#[test]
fn limits_beyond_any_context_are_kept_in_range() {
    let request = parse_completion(br#"{"model":"m","prompt":"x","max_tokens":9007199254740993,"top_p":1e-60}"#);
    let options = request.expect("a request").options;
    assert_eq!(options.max_tokens, Some(u32::MAX));
    assert!(options.top_p > 0.0);
}

#[test]
fn large_maps_are_refused_and_extreme_penalties_stay_usable() {
    let entries: Vec<String> = (0..=MAX_LOGIT_BIAS).map(|id| format!("\"{id}\":1")).collect();
    let body = |entries: &[String]| format!(r#"{{"model":"m","prompt":"x","logit_bias":{{{}}}}}"#, entries.join(","));
    let accepted = parse_completion(body(&entries[1..]).as_bytes()).expect("a request");
    assert_eq!(accepted.options.logit_bias.len(), MAX_LOGIT_BIAS);
    let error = parse_completion(body(&entries).as_bytes()).expect_err("too many");
    assert_eq!(
        (error.message.as_str(), error.param.as_deref()),
        ("Invalid 'logit_bias': more than 1024 entries.", Some("logit_bias"))
    );
    for penalty in ["1e-300", "1e300"] {
        let body = format!(r#"{{"model":"m","prompt":"x","repetition_penalty":{penalty}}}"#);
        let penalty = parse_completion(body.as_bytes()).expect("a request").options.repetition_penalty;
        assert!(penalty.is_finite() && penalty > 0.0, "{penalty}");
    }
}

#[test]
fn embedding_requests_in_all_their_shapes() {
    let check = |fields: &str, expected: EmbeddingRequest| {
        let body = format!(r#"{{"model":"m","user":"u",{fields}}}"#);
        assert_eq!(parse_embedding(body.as_bytes()).expect("a request"), expected, "{fields}");
    };
    let text = |text: &str| Prompt::Text(text.to_owned());
    let plain = |inputs: Vec<Prompt>| EmbeddingRequest {
        model: "m".to_owned(),
        inputs,
        base64: false,
        dimensions: None,
        truncation: Truncation::None,
    };
    check(r#""input":"""#, plain(vec![text("")]));
    check(r#""input":["a","b"],"encoding_format":"float""#, plain(vec![text("a"), text("b")]));
    check(r#""input":[1,2],"dimensions":null"#, plain(vec![Prompt::Tokens(vec![1, 2])]));
    check(r#""input":[[1],"b"]"#, plain(vec![Prompt::Tokens(vec![1]), text("b")]));
    let all = EmbeddingRequest {
        base64: true,
        dimensions: Some(64),
        truncation: Truncation::ToTokens(9),
        ..plain(vec![text("a")])
    };
    check(r#""input":"a","encoding_format":"base64","dimensions":64,"truncate_prompt_tokens":9"#, all);
    let cut = EmbeddingRequest { truncation: Truncation::ToModel, ..plain(vec![text("a")]) };
    check(r#""input":"a","truncate_prompt_tokens":-1"#, cut);
}
