//! Tools through the routes: what a request may ask, what the prompt says, and calls in whole and streamed answers.

use crate::support::{Answer, Setup, Step, says};
use engine_wire::hop::FinishReason;

const CHAT: &str = "/v1/chat/completions";
const TOOLS: &str = r#"[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"a":{"type":"integer"}}}}}]"#;
const CALL: &str = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>";

/// A chat with tools and these fields; the context of the tiny model has no room for their text, so they are offered
/// where it is about the answer, and `none` where it is about the refusal.
fn body(fields: &str) -> String {
    format!(r#"{{"model":"tiny","messages":[{{"role":"user","content":"a"}}],{fields}}}"#)
}

/// A script that says a text, a character at a time, and ends by itself.
fn said(text: &str) -> Vec<Step> {
    let mut steps = says(text);
    steps.pop();
    steps.push(Step::Finish(FinishReason::Stop));
    steps
}

async fn ask(script: Vec<Step>, fields: &str) -> Answer {
    let setup = Setup { scripts: vec![script], context_tokens: Some(4096), ..Setup::default() };
    setup.start().await.post(CHAT, &body(fields)).await
}

/// Ids become `ID`: they are drawn.
fn without_ids(text: &str) -> String {
    let mut parts = text.split("\"call_");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        assert!(part.len() > 25 && part.as_bytes()[24] == b'"', "an id of 24 letters in {part}");
        out.push_str("\"ID");
        out.push_str(&part[24..]);
    }
    out
}

#[tokio::test]
async fn a_whole_answer_has_its_calls() {
    let choice = |answer: &Answer| {
        let body = without_ids(&answer.body());
        let (_, rest) = body.split_once(r#""message":"#).expect("a message");
        rest.split_once(r#"}],"usage""#).expect("a usage").0.to_owned()
    };
    let answer = ask(said(CALL), &format!(r#""tools":{TOOLS}"#)).await;
    insta::assert_snapshot!(choice(&answer), @r#"{"role":"assistant","content":null,"refusal":null,"tool_calls":[{"id":"ID","type":"function","function":{"name":"f","arguments":"{\"a\": 1}"}}]},"logprobs":null,"finish_reason":"tool_calls""#);
    let answer =
        ask(said(&format!("So: {CALL}\n{CALL}")), &format!(r#""tools":{TOOLS},"parallel_tool_calls":true"#)).await;
    insta::assert_snapshot!(choice(&answer), @r#"{"role":"assistant","content":"So: ","refusal":null,"tool_calls":[{"id":"ID","type":"function","function":{"name":"f","arguments":"{\"a\": 1}"}},{"id":"ID","type":"function","function":{"name":"f","arguments":"{\"a\": 1}"}}]},"logprobs":null,"finish_reason":"tool_calls""#);
    // One call, and the tokens after it are not counted.
    let answer = ask(said(&format!("{CALL}{CALL}")), &format!(r#""tools":{TOOLS},"parallel_tool_calls":false"#)).await;
    assert_eq!(answer.body().matches("\"type\":\"function\"").count(), 1, "{answer:?}");
    let tokens = CALL.find("}}").expect("arguments") + 1;
    assert!(answer.body().contains(&format!(r#""completion_tokens":{tokens},"#)), "{answer:?}");
    // Cut short, not called, and not offered: text.
    let answer = ask(says(&CALL[..40]), &format!(r#""tools":{TOOLS}"#)).await;
    insta::assert_snapshot!(choice(&answer), @r#"{"role":"assistant","content":"<tool_call>{\"name\": \"f\", \"arguments\": {\"","refusal":null},"logprobs":null,"finish_reason":"length""#);
    let answer = ask(said("No."), &format!(r#""tools":{TOOLS},"tool_choice":"auto""#)).await;
    insta::assert_snapshot!(choice(&answer), @r#"{"role":"assistant","content":"No.","refusal":null},"logprobs":null,"finish_reason":"stop""#);
    let answer = ask(said(CALL), &format!(r#""tools":{TOOLS},"tool_choice":"none""#)).await;
    insta::assert_snapshot!(choice(&answer), @r#"{"role":"assistant","content":"<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>","refusal":null},"logprobs":null,"finish_reason":"stop""#);
}

#[tokio::test]
async fn a_streamed_answer_has_them_in_pieces() {
    let script = ["Hm <tool", "_call>{\"name\": \"f\", \"arg", "uments\": {\"a\"", ": 1}}</tool_call>"];
    let tokens = script.map(|text| Step::Tokens(crate::checkpoint::ids(text)));
    let script = tokens.into_iter().chain([Step::Finish(FinishReason::Stop)]).collect();
    let answer = ask(script, &format!(r#""tools":{TOOLS},"stream":true"#)).await;
    let body = without_ids(&answer.body());
    let choices: Vec<&str> = body
        .split("\n\n")
        .filter_map(|event| event.split_once(r#""choices":[{"index":0,"#))
        .map(|(_, choice)| choice.trim_end_matches("}]}"))
        .collect();
    insta::assert_snapshot!(choices.join("\n"), @r#"
    "delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null
    "delta":{"content":"Hm "},"logprobs":null,"finish_reason":null
    "delta":{"tool_calls":[{"index":0,"id":"ID","type":"function","function":{"name":"f","arguments":""}}]},"logprobs":null,"finish_reason":null
    "delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"a\""}}]},"logprobs":null,"finish_reason":null
    "delta":{"tool_calls":[{"index":0,"function":{"arguments":": 1}"}}]},"logprobs":null,"finish_reason":null
    "delta":{},"logprobs":null,"finish_reason":"tool_calls"
    "#);
}

#[tokio::test]
async fn log_probabilities_cover_calls_too() {
    let script = vec![Step::Scored(crate::checkpoint::ids(CALL)), Step::Finish(FinishReason::Stop)];
    let answer = ask(script, &format!(r#""tools":{TOOLS},"logprobs":true"#)).await;
    assert_eq!(answer.body().matches(r#""top_logprobs":"#).count(), CALL.len(), "{answer:?}");
}

/// A refusal that names its parameter.
async fn refused(messages: &str, fields: &str) -> String {
    let server = Setup::default().start().await;
    let body = format!(r#"{{"model":"tiny","messages":{messages}{fields}}}"#);
    let answer = server.post(CHAT, &body).await;
    assert_eq!(answer.status, 400, "{body}: {answer:?}");
    let error: serde_json::Value = serde_json::from_str(&answer.body()).expect("JSON");
    let text = |key: &str| error["error"][key].as_str().unwrap_or("null").to_owned();
    format!("{} {}", text("param"), text("message"))
}

#[tokio::test]
async fn tools_that_cannot_be() {
    let tool = |function: &str| format!(r#"{{"type":"function","function":{function}}}"#);
    let field =
        |fields: String| async move { refused(r#"[{"role":"user","content":"a"}]"#, &format!(",{fields}")).await };
    let with = |function: &str| field(format!(r#""tools":[{}]"#, tool(function)));
    let f = tool(r#"{"name":"f"}"#);
    let choice = |choice: &str| field(format!(r#""tools":[{f}],"tool_choice":{choice}"#));
    insta::assert_snapshot!(with(r#"{"name":"a b"}"#).await, @"tools[0].function.name Invalid 'tools[0].function.name': 'a b' does not match ^[a-zA-Z0-9_-]{1,64}$.");
    assert!(with(&format!(r#"{{"name":"{}"}}"#, "x".repeat(65))).await.starts_with("tools[0].function.name "));
    insta::assert_snapshot!(with(r#"{"name":"f","parameters":[]}"#).await, @"tools[0].function.parameters Invalid type for 'tools[0].function.parameters': expected a JSON schema (an object), but got an array instead.");
    insta::assert_snapshot!(with(r#"{"name":"f","parameters":{"type":"string"}}"#).await, @r#"tools[0].function.parameters Invalid schema for 'tools[0].function.parameters': its type must be 'object', because arguments have names, but it is "string"."#);
    insta::assert_snapshot!(with(r#"{"name":"f","strict":1}"#).await, @"tools[0].function.strict Invalid type for 'tools[0].function.strict': expected a boolean, but got a number (1) instead.");
    insta::assert_snapshot!(with(r#"{"description":"d"}"#).await, @"tools[0].function.name Missing required parameter: 'tools[0].function.name'.");
    insta::assert_snapshot!(field(format!(r#""tools":[{f},{f}]"#)).await, @"tools[1].function.name Invalid 'tools': there is more than one function of the name 'f'.");
    insta::assert_snapshot!(field(r#""tools":[{"type":"custom"}]"#.to_owned()).await, @"tools[0].type Invalid value for 'tools[0].type': 'custom'. Supported values are: 'function'.");
    let many: Vec<String> = (0..129).map(|index| tool(&format!(r#"{{"name":"f{index}"}}"#))).collect();
    insta::assert_snapshot!(field(format!(r#""tools":[{}]"#, many.join(","))).await, @"tools Invalid 'tools': array too long. Expected at most 128 tools, but got 129.");
    let large = format!(r#"{{"name":"f","description":"{}"}}"#, "x".repeat(256 << 10));
    assert!(with(&large).await.ends_with("Expected at most 262144 bytes."));
    let deep = format!(r#"{{"name":"f","parameters":{}1{}}}"#, "{\"a\":".repeat(200), "}".repeat(200));
    assert!(with(&deep).await.contains("recursion limit exceeded"));

    insta::assert_snapshot!(choice(r#""any""#).await, @r#"tool_choice Invalid value for 'tool_choice': "any" is not 'none', 'auto', 'required' or {"type": "function", "function": {"name": ...}}."#);
    insta::assert_snapshot!(choice(r#"{"type":"function","function":{"name":"g"}}"#).await, @"tool_choice.function.name Invalid 'tool_choice': there is no tool of the name 'g'.");
    insta::assert_snapshot!(choice(r#"{"type":"function"}"#).await, @"tool_choice.function Missing required parameter: 'tool_choice.function'.");
    insta::assert_snapshot!(field(r#""tool_choice":"required""#.to_owned()).await, @"tool_choice 'tool_choice' is only allowed when 'tools' are specified.");
    insta::assert_snapshot!(field(r#""functions":[{"name":"f"}]"#.to_owned()).await, @"functions 'functions' is deprecated and not supported: use 'tools'.");
    insta::assert_snapshot!(field(r#""function_call":"auto""#.to_owned()).await, @"function_call 'function_call' is deprecated and not supported: use 'tool_choice'.");
}

#[tokio::test]
async fn messages_of_tools_that_cannot_be() {
    let call = |fields: &str| format!(r#"[{{"role":"assistant","tool_calls":[{{{fields}}}]}}]"#);
    insta::assert_snapshot!(refused(r#"[{"role":"tool","content":"a"}]"#, "").await, @"messages[0].tool_call_id Missing required parameter: 'messages[0].tool_call_id'.");
    insta::assert_snapshot!(refused(&call(r#""type":"function""#), "").await, @"messages[0].tool_calls[0].id Missing required parameter: 'messages[0].tool_calls[0].id'.");
    insta::assert_snapshot!(refused(&call(r#""id":"1","function":{"name":"f","arguments":{}}"#), "").await, @"messages[0].tool_calls[0].function.arguments Invalid type for 'messages[0].tool_calls[0].function.arguments': expected a string of JSON, but got an object instead.");
    insta::assert_snapshot!(refused(&call(r#""id":"1","function":{"name":"f","arguments":"[]"}"#), "").await, @"messages[0].tool_calls[0].function.arguments Invalid 'messages[0].tool_calls[0].function.arguments': expected a JSON object written as a string.");
    insta::assert_snapshot!(refused(&call(r#""id":"1","function":{"name":"f","arguments":"{"}"#), "").await, @"messages[0].tool_calls[0].function.arguments Invalid 'messages[0].tool_calls[0].function.arguments': not JSON: EOF while parsing an object at line 1 column 1.");
    let user = r#"[{"role":"user","content":"a","tool_calls":[{"id":"1","function":{"name":"f","arguments":""}}]}]"#;
    insta::assert_snapshot!(refused(user, "").await, @"messages[0].tool_calls Invalid 'messages[0].tool_calls': only messages of role 'assistant' have tool calls.");
}

#[tokio::test]
async fn the_prompt_tells_of_tools_and_of_earlier_calls() {
    let setup = Setup { context_tokens: Some(4096), ..Setup::default() };
    let server = setup.start().await;
    let messages = r#"[{"role":"user","content":"a"},{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{\"b\":1, \"a\": 2}"}}]},{"role":"tool","tool_call_id":"1","content":"3"}]"#;
    let asked = format!(r#"{{"model":"tiny","messages":{messages},"tools":{TOOLS}}}"#);
    let answer = server.post("/tokenize", &asked).await;
    let answer: serde_json::Value = serde_json::from_str(&answer.body()).expect("JSON");
    let tokens = answer["tokens"].to_string();
    let back = server.post("/detokenize", &format!(r#"{{"model":"tiny","tokens":{tokens}}}"#)).await;
    let prompt: serde_json::Value = serde_json::from_str(&back.body()).expect("JSON");
    insta::assert_snapshot!(prompt["prompt"].as_str().expect("a prompt"), @r#"
    system:# Tools

    You may call one or more functions to assist with the user query.

    You are provided with function signatures within <tools></tools> XML tags:
    <tools>
    {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}
    </tools>

    For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
    <tool_call>
    {"name": <function-name>, "arguments": <args-json-object>}
    </tool_call>;user:a;assistant:<tool_call>
    {"name": "f", "arguments": {"b": 1, "a": 2}}
    </tool_call>;user:<tool_response>
    3
    </tool_response>;
    "#);
}
