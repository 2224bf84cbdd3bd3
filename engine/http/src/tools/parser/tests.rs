//! Texts of models and what they come to, whole, streamed and in any pieces.

use super::*;
use crate::tools::put_together;
use proptest::prelude::*;

fn reading(format: ToolFormat, streamed: bool) -> Reading {
    let names = ["f", "get_weather"].map(str::to_owned).into();
    Reading { format, names, single: false, streamed, salt: 7 }
}

/// Content and calls of a text that comes in pieces.
fn run<'a>(reading: Reading, pieces: impl IntoIterator<Item = &'a str>) -> (String, Vec<CallDelta>, bool) {
    let mut parser = Parser::new(reading);
    let (mut content, mut calls) = (String::new(), Vec::new());
    for piece in pieces {
        parser.push(piece, &mut content, &mut calls);
    }
    parser.finish(&mut content, &mut calls);
    (content, calls, parser.has_called())
}

fn shown(content: &str, calls: Vec<CallDelta>, called: bool) -> String {
    let mut out = format!("{content:?}");
    for call in put_together(calls) {
        out.push_str(&format!(" {}({})", call.name, call.arguments));
    }
    out + if called { " called" } else { "" }
}

/// What a whole answer shows, and what a stream does where that is something else.
fn check(format: ToolFormat, text: &str) -> String {
    let (content, calls, called) = run(reading(format, false), [text]);
    let whole = shown(&content, calls, called);
    let (content, calls, called) = run(reading(format, true), [text]);
    let streamed = shown(&content, calls, called);
    if streamed == whole { whole } else { format!("{whole} | {streamed}") }
}

#[test]
fn hermes() {
    let check = |text| check(ToolFormat::Hermes, text);
    // As the models write it; with text around it; two; without line feeds.
    insta::assert_snapshot!(check("<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>"), @r#""" f({"a": 1}) called"#);
    insta::assert_snapshot!(check("Let me see.\n<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>\nDone."), @r#""Let me see.\n\nDone." f({}) called"#);
    insta::assert_snapshot!(check("\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"q\": \"é}\\\"\"}}\n</tool_call>\n"), @r#""" f({}) get_weather({"q": "é}\""}) called"#);
    // SmolLM2 writes an array; others several objects, or forget to close.
    insta::assert_snapshot!(check("<tool_call>[{\"name\": \"f\", \"arguments\": {}}, {\"name\": \"f\", \"arguments\": {\"b\": [2]}}]</tool_call>"), @r#""" f({}) f({"b": [2]}) called"#);
    insta::assert_snapshot!(check("<tool_call>{\"name\": \"f\", \"arguments\": {}}\n{\"name\": \"f\", \"arguments\": {}}"), @r#""" f({}) f({}) called"#);
    insta::assert_snapshot!(check("<tool_call>{\"name\": \"f\", \"arguments\": {}}<tool_call>{\"name\": \"f\", \"arguments\": {}}"), @r#""" f({}) f({}) called"#);
    insta::assert_snapshot!(check("<tool_call>{\"name\": \"f\", \"arguments\": {}\n</tool_call>"), @r#""" f({}) called"#);
    // Other orders, members and kinds of arguments.
    insta::assert_snapshot!(check("<tool_call>{\"arguments\": {\"a\": 1}, \"name\": \"f\"}</tool_call>"), @r#""" f({"a":1}) called"#);
    insta::assert_snapshot!(check("<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}</tool_call>"), @r#""" f({"a": 1}) called"#);
    insta::assert_snapshot!(check("<tool_call>{\"type\": \"function\", \"function\": {\"name\": \"f\"}}</tool_call>"), @r#""" f({}) called"#);
    insta::assert_snapshot!(check("<tool_call>{\"name\": \"f\", \"arguments\": {}, \"id\": \"1\"}</tool_call>"), @r#""" f({}) called"#);
}

#[test]
fn what_is_no_call_is_content_as_it_was() {
    let check = |text| check(ToolFormat::Hermes, text);
    insta::assert_snapshot!(check(" <b> <tool_cal"), @r#"" <b> <tool_cal""#);
    insta::assert_snapshot!(check("  "), @r#""  ""#);
    insta::assert_snapshot!(check("<tool_call>"), @r#""<tool_call>""#);
    insta::assert_snapshot!(check("\n<tool_call></tool_call>"), @r#""\n<tool_call></tool_call>""#);
    insta::assert_snapshot!(check("<tool_call>{\"name\": \"g\", \"arguments\": {}}</tool_call>"), @r#""<tool_call>{\"name\": \"g\", \"arguments\": {}}</tool_call>""#);
    insta::assert_snapshot!(check("<tool_call>{\"name\": \"f\", \"arguments\": {bad}}</tool_call>"), @r#""<tool_call>{\"name\": \"f\", \"arguments\": {bad}}</tool_call>""#);
    insta::assert_snapshot!(check("<tool_call>{\"name\": \"f\", \"arguments\": 3}</tool_call>"), @r#""<tool_call>{\"name\": \"f\", \"arguments\": 3}</tool_call>""#);
    insta::assert_snapshot!(check("{\"name\": \"f\", \"arguments\": {}}"), @r#""{\"name\": \"f\", \"arguments\": {}}""#);
    // A good one behind a bad one.
    insta::assert_snapshot!(check("<tool_call>f()<tool_call>{\"name\": \"f\", \"arguments\": {}}"), @r#""<tool_call>f()" f({}) called"#);
    // Broken in its arguments: a stream has what there was of them.
    insta::assert_snapshot!(check("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": x"), @r#""<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": x" | "x" f({"a": )"#);
    insta::assert_snapshot!(check("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"b"), @r#""<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"b" | "" f({"a": "b)"#);
    let long = format!("<tool_call>{{\"a\": \"{}\"}}", "x".repeat(UNUSUAL_MAX_BYTES));
    let (content, calls, called) = run(reading(ToolFormat::Hermes, true), [long.as_str()]);
    assert_eq!((content, calls, called), (long, Vec::new(), false));
}

#[test]
fn llama_and_mistral() {
    let llama = |text| check(ToolFormat::Llama, text);
    insta::assert_snapshot!(llama("{\"name\": \"f\", \"parameters\": {\"a\": \"b\"}}"), @r#""" f({"a": "b"}) called"#);
    insta::assert_snapshot!(llama("<|python_tag|>{\"name\": \"f\", \"parameters\": {}}; {\"name\": \"f\", \"parameters\": {}}"), @r#""" f({}) f({}) called"#);
    insta::assert_snapshot!(llama("{\"type\": \"function\", \"name\": \"f\", \"parameters\": {\"a\": 1}}"), @r#""" f({"a":1}) called"#);
    insta::assert_snapshot!(llama("{\"name\": \"Bob\", \"age\": 3}"), @r#""{\"name\": \"Bob\", \"age\": 3}""#);
    insta::assert_snapshot!(llama("It is {\"name\": \"f\", \"parameters\": {}}"), @r#""It is {\"name\": \"f\", \"parameters\": {}}""#);
    insta::assert_snapshot!(llama("<|python_tag|>print(1)"), @r#""<|python_tag|>print(1)""#);
    let mistral = |text| check(ToolFormat::Mistral, text);
    insta::assert_snapshot!(mistral("[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {}}, {\"name\": \"f\", \"arguments\": {\"a\": [1]}, \"id\": \"abcdefghi\"}]"), @r#""" f({}) f({"a": [1]}) called"#);
    insta::assert_snapshot!(mistral("Well. [TOOL_CALLS] [ {\"name\": \"f\", \"arguments\": {}} ] "), @r#""Well. " f({}) called"#);
    insta::assert_snapshot!(mistral("[TOOL_CALLS][1]"), @r#""[TOOL_CALLS][1]""#);
}

#[test]
fn a_stream_gives_what_is_certain_at_once() {
    let mut parser = Parser::new(reading(ToolFormat::Hermes, true));
    let mut seen = Vec::new();
    for piece in
        ["A <to", "ol_call>", "{\"name\": \"f\", \"arg", "uments\": {", "\"a\"", ": 1}", "}", "</tool", "_call>\n", "!"]
    {
        let (mut content, mut calls) = (String::new(), Vec::new());
        parser.push(piece, &mut content, &mut calls);
        let calls: Vec<String> = calls
            .into_iter()
            .map(|delta| match delta {
                CallDelta::Begin { index, name, .. } => format!("{index}:{name}"),
                CallDelta::Arguments { index, text } => format!("{index}+{text}"),
                CallDelta::Withdrawn { index } => format!("{index}-"),
            })
            .collect();
        seen.push(format!("{content}[{}]", calls.join(" ")));
    }
    insta::assert_snapshot!(seen.join(" | ").replace('\n', "/"), @r#"A [] | [] | [] | [] | [0:f 0+{"a"] | [0+: 1}] | [] | [] | [] | /![]"#);
}

#[test]
fn one_call_where_one_is_allowed() {
    let text =
        "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call><tool_call>{\"name\": \"f\", \"arguments\": {}}";
    let mut parser = Parser::new(Reading { single: true, ..reading(ToolFormat::Hermes, true) });
    let (mut content, mut calls) = (String::new(), Vec::new());
    parser.push(text, &mut content, &mut calls);
    assert!(parser.is_done());
    assert_eq!((content.as_str(), calls.len()), ("", 2));
}

#[test]
fn ids_differ_and_have_the_length_that_templates_want() {
    let id = |format, salt, index| call_id(format, salt, index);
    let mut ids: Vec<String> =
        (0..4).flat_map(|salt| (0..4).map(move |index| id(ToolFormat::Hermes, salt, index))).collect();
    assert!(ids.iter().all(|id| id.len() == 29 && id.starts_with("call_")), "{ids:?}");
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 16);
    let short = id(ToolFormat::Mistral, 1, 2);
    assert!(short.len() == 9 && short.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{short}");
}

/// Texts made of what matters to the parser.
fn texts() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "<|python_tag|>",
        "{\"name\": \"f\", \"arguments\": {",
        "{\"name\":\"f\",\"parameters\":{}}",
        "{\"name\": \"g\", ",
        "\"name\": \"f\"",
        "\"arguments\": {",
        "\"a\": ",
        "\"é\"",
        "1",
        "}",
        "{",
        "[",
        "]",
        ",",
        ";",
        " ",
        "\n",
        "\"",
        "\\",
        "x",
        "日",
        "<",
        "</tool",
        "null",
    ]);
    prop::collection::vec(part, 0..16).prop_map(|parts| parts.concat())
}

fn formats() -> impl Strategy<Value = ToolFormat> {
    prop::sample::select(vec![ToolFormat::Hermes, ToolFormat::Llama, ToolFormat::Mistral])
}

proptest! {
    /// Wherever a text is cut, its pieces come to what the whole comes to.
    #[test]
    fn cuts_do_not_matter(text in texts(), format in formats(), streamed: bool, single: bool, cuts in prop::collection::vec(any::<bool>(), 200)) {
        let reading = Reading { single, ..reading(format, streamed) };
        let together = |(content, calls, called): (String, Vec<CallDelta>, bool)| (content, put_together(calls), called);
        let whole = together(run(reading.clone(), [text.as_str()]));
        let letters: Vec<String> = text.chars().map(String::from).collect();
        prop_assert_eq!(&together(run(reading.clone(), letters.iter().map(String::as_str))), &whole);
        let mut pieces = vec![String::new()];
        // What is longer than the cuts drawn stays in one piece.
        for (letter, cut) in letters.iter().zip(cuts.into_iter().chain(std::iter::repeat(false))) {
            if cut {
                pieces.push(String::new());
            }
            pieces.last_mut().expect("a piece").push_str(letter);
        }
        prop_assert_eq!(&together(run(reading, pieces.iter().map(String::as_str))), &whole);
    }

    /// A whole answer's calls have arguments that are JSON; without calls, its content is the text.
    #[test]
    fn nothing_is_lost(text in texts(), format in formats()) {
        let (content, calls, called) = run(reading(format, false), [text.as_str()]);
        let calls = put_together(calls);
        prop_assert_eq!(called, !calls.is_empty());
        for call in &calls {
            prop_assert!(serde_json::from_str::<Map<String, Value>>(&call.arguments).is_ok(), "{:?}", call);
        }
        if calls.is_empty() {
            prop_assert_eq!(content, text);
        }
    }
}
