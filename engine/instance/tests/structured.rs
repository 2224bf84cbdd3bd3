//! Constrained outputs on real weights: whatever is drawn meets its constraint, and nothing but weights, prompt and
//! parameters decides it: not the batch, not a preemption, not a change of instance.

mod common;

use common::{TestEngine, reason, request};
use engine_instance::{Compute, EngineOptions};
use engine_wire::TokenId;
use engine_wire::constraint::{Constraint, JsonConstraint};
use engine_wire::hop::{FinishReason, GenerateRequest, HopEvent};
use engine_wire::sampling::Sampling;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

async fn engine(compute: Compute, kv_bytes: u64) -> TestEngine {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(path.exists(), "{} is missing: run `cargo xtask setup`", path.display());
    TestEngine::start_checkpoint(move |options: &mut EngineOptions| {
        options.model = path;
        options.compute = compute;
        options.kv_bytes = Some(kv_bytes);
    })
    .await
}

fn person() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 16},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["old", "young", "wise"]}, "minItems": 1, "maxItems": 2},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": false,
    })
}

fn is_person(text: &str) -> bool {
    let Ok(value) = serde_json::from_str::<Value>(text) else { return false };
    let tags = value["tags"].as_array().cloned().unwrap_or_default();
    value.as_object().is_some_and(|map| map.len() == 3)
        && value["name"].as_str().is_some_and(|name| name.chars().count() <= 16)
        && value["age"].as_u64().is_some_and(|age| age <= 150)
        && (1..=2).contains(&tags.len())
        && tags.iter().all(|tag| ["old", "young", "wise"].contains(&tag.as_str().unwrap_or("")))
}

fn strict(schema: &Value) -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "test", "strict": true, "schema": schema}})
}

/// Texts and reasons of all choices.
fn choices(answer: &Value) -> Vec<(String, String)> {
    let text = |choice: &Value| {
        let text = choice["message"]["content"].as_str().or(choice["text"].as_str());
        let reason = choice["finish_reason"].as_str();
        (text.unwrap_or_else(|| panic!("{answer}")).to_owned(), reason.unwrap_or_default().to_owned())
    };
    answer["choices"].as_array().unwrap_or_else(|| panic!("{answer}")).iter().map(text).collect()
}

#[tokio::test]
async fn whatever_is_drawn_meets_its_constraint() {
    let engine = engine(Compute::Fast, 96 << 20).await;
    let ask = async |path: &str, fields: Value, valid: &dyn Fn(&str) -> bool| {
        let mut body = json!({
            "model": common::MODEL, "temperature": 1.5, "n": 6, "seed": 5, "max_tokens": 200, "logprobs": true,
        });
        match path {
            CHAT => body["messages"] = json!([{"role": "user", "content": "Tell me about somebody."}]),
            _ => {
                body["prompt"] = "Once upon a time".into();
                body["logprobs"] = 1.into();
            }
        }
        let fields = fields.as_object().expect("fields").clone();
        body.as_object_mut().expect("a body").extend(fields);
        let answer = engine.post(path, &body).await;
        let mut stopped = 0;
        for (text, reason) in choices(&answer) {
            if reason == "stop" {
                assert!(valid(&text), "{body} gave {text:?}");
                stopped += 1;
            }
        }
        assert!(stopped > 2, "only {stopped} outputs came to an end: {answer}");
    };
    ask(CHAT, json!({"response_format": strict(&person())}), &is_person).await;
    ask(COMPLETIONS, json!({"guided_json": person()}), &is_person).await;
    ask(COMPLETIONS, json!({"guided_json": person().to_string()}), &is_person).await;
    let date = r"(19|20)\d\d-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])";
    let is_date =
        |text: &str| text.len() == 10 && text.split('-').all(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
    ask(COMPLETIONS, json!({"guided_regex": date}), &is_date).await;
    ask(CHAT, json!({"structured_outputs": {"regex": date}}), &is_date).await;
    ask(CHAT, json!({"structured_outputs": {"choice": ["grün", "blue sky"]}}), &|text| {
        ["grün", "blue sky"].contains(&text)
    })
    .await;
    let sum = "start: N (\"+\" N){1,3}\nN: /[1-9][0-9]?/";
    let is_sum = |text: &str| (2..=4).contains(&text.split('+').filter(|n| n.parse::<u8>().is_ok()).count());
    ask(COMPLETIONS, json!({"guided_grammar": sum}), &is_sum).await;
    // Asked for more than the grammar has, an output ends with its grammar.
    for more in [json!({"ignore_eos": true}), json!({"min_tokens": 150})] {
        let mut fields = more;
        fields["guided_choice"] = json!(["yes", "no, never"]);
        ask(COMPLETIONS, fields, &|text| ["yes", "no, never"].contains(&text)).await;
    }
}

#[tokio::test]
async fn json_mode_streams_what_it_answers_and_says_when_it_was_cut() {
    let engine = engine(Compute::Fast, 64 << 20).await;
    let mut body = json!({
        "model": common::MODEL, "temperature": 0, "max_tokens": 300, "response_format": strict(&person()),
        "messages": [{"role": "user", "content": "Describe Alice, 30 years old, as JSON."}],
    });
    let whole = choices(&engine.post(CHAT, &body).await).remove(0);
    assert!(whole.1 == "stop" && is_person(&whole.0), "{whole:?}");
    body["stream"] = true.into();
    let stream = common::HopStream::open_at(engine.port, CHAT, body.to_string().into_bytes(), &[]).await;
    let events = String::from_utf8(stream.bytes().await).expect("text");
    let events = events.split("\n\n").filter_map(|event| event.strip_prefix("data: {"));
    let pieces: Vec<Value> = events.map(|json| serde_json::from_str(&format!("{{{json}")).expect("JSON")).collect();
    let text: String = pieces.iter().filter_map(|piece| piece["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, whole.0);
    body["stream"] = false.into();
    body["max_tokens"] = 4.into();
    let cut = choices(&engine.post(CHAT, &body).await).remove(0);
    assert!(cut.1 == "length" && whole.0.starts_with(&cut.0), "{cut:?}");
    // A stop string ends an output wherever it comes.
    body["max_tokens"] = 300.into();
    body["stop"] = "\"age\"".into();
    let stopped = choices(&engine.post(CHAT, &body).await).remove(0);
    assert!(stopped.1 == "stop" && whole.0.starts_with(&stopped.0) && !stopped.0.contains("age"), "{stopped:?}");
}

fn constrained(prompt: &[TokenId], constraint: Constraint, sampling: Sampling) -> GenerateRequest {
    let mut request = request(prompt, 60);
    request.sampling = sampling;
    request.stop.ignore_eos = false;
    GenerateRequest { constraint: Some(Arc::new(constraint)), ..request }
}

fn requests() -> Vec<GenerateRequest> {
    let schema = JsonConstraint { schema: person().to_string(), strict: true, whitespace: true };
    let seeded = Sampling { temperature: 1.3, seed: 42, repetition_penalty: 1.2, ..Sampling::default() };
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let prompt: Vec<TokenId> = vec![504, 3575, 282, 4649, 314];
    let words = Constraint::Regex("([A-Z][a-z]+ ){20}".to_owned());
    vec![
        constrained(&prompt, Constraint::Json(schema.clone()), greedy.clone()),
        constrained(&prompt, Constraint::Json(schema), seeded.clone()),
        constrained(&prompt, words.clone(), seeded),
        constrained(&prompt[1..], words, greedy),
    ]
}

#[tokio::test]
async fn a_constrained_output_is_the_same_in_any_company_and_wherever_it_goes_on() {
    // Room for about 200 tokens in f32: some of the company is preempted and computed again.
    for (compute, kv_bytes) in [(Compute::Fast, 64 << 20), (Compute::F32, 18 << 20)] {
        let engine = engine(compute, kv_bytes).await;
        let mut alone = Vec::new();
        for request in requests() {
            let (tokens, end) = engine.generate(&request).await.collect().await;
            assert!(!tokens.is_empty() && reason(&end).is_some(), "{end:?}");
            alone.push((tokens, reason(&end)));
        }
        let mut streams = Vec::new();
        for request in requests() {
            streams.push(engine.generate(&request).await);
            streams.push(engine.generate(&GenerateRequest { constraint: None, ..request }).await);
        }
        for (index, stream) in streams.into_iter().enumerate() {
            let (tokens, end) = stream.collect().await;
            if index.is_multiple_of(2) {
                assert_eq!((tokens, reason(&end)), alone[index / 2], "request {} in company", index / 2);
            }
        }
        for (request, (tokens, reason_alone)) in requests().iter().zip(&alone) {
            for cut in [0, 1, 5, tokens.len() - 1, tokens.len()] {
                let resumed = GenerateRequest { emitted: tokens[..cut].to_vec(), ..request.clone() };
                let (rest, end) = engine.generate(&resumed).await.collect().await;
                assert_eq!((&rest[..], reason(&end)), (&tokens[cut..], *reason_alone), "cut after {cut}");
            }
        }
    }
}

#[tokio::test]
async fn what_cannot_go_on_ends_alone_and_says_why() {
    let engine = engine(Compute::Fast, 64 << 20).await;
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let failing = [
        // Emitted tokens that no output under this constraint begins with.
        (
            GenerateRequest { emitted: vec![504], ..constrained(&[504], Constraint::json_object(), greedy.clone()) },
            "does not follow the grammar",
        ),
        (constrained(&[504], Constraint::Regex("(".to_owned()), greedy.clone()), "regex"),
        // SmolLM2 has no token for the byte 0x04.
        (constrained(&[504], Constraint::Choice(vec!["\u{4}".to_owned()]), greedy.clone()), "vocabulary"),
        (constrained(&[504], Constraint::Choice(vec!["a\u{4}".to_owned()]), greedy.clone()), "vocabulary"),
    ];
    let other = requests().remove(0);
    let (expected, _) = engine.generate(&other).await.collect().await;
    for (request, message) in failing {
        let company = engine.generate(&other).await;
        let stream = engine.generate(&request).await;
        let said = if stream.status == 200 {
            match stream.collect().await.1 {
                Some(HopEvent::Failed { status, message, .. }) => format!("{status} {message}"),
                other => panic!("{other:?}"),
            }
        } else {
            let status = stream.status;
            format!("{status} {}", stream.error_message().await)
        };
        assert!(said.starts_with("400") && said.contains(message), "{said}");
        assert_eq!(company.collect().await.0, expected, "the others are unharmed");
    }
    // The grammar of the empty text is complete before it begins.
    let empty = constrained(&[504], Constraint::Choice(vec![String::new()]), greedy);
    let (tokens, end) = engine.generate(&empty).await.collect().await;
    assert_eq!((tokens, reason(&end)), (Vec::new(), Some(FinishReason::Stop)));
}
