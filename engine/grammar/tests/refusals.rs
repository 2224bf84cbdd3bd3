//! Constraints as clients send them, good and bad: one row each, and what anything at all may not do.

use engine_grammar::{GrammarError, Part, Template, Vocabulary, check};
use engine_wire::constraint::{Constraint, JsonConstraint};
use proptest::prelude::*;
use std::fmt::Write;

fn json(schema: &str, strict: bool) -> Constraint {
    Constraint::Json(JsonConstraint { schema: schema.to_owned(), strict, whitespace: true })
}

fn row(out: &mut String, name: &str, constraint: &Constraint) {
    let verdict = match check(constraint) {
        Ok(()) => "accepted".to_owned(),
        Err(GrammarError::Failed { message }) => format!("FAILED: {message}"),
        Err(error) => error.to_string(),
    };
    writeln!(out, "{name}: {verdict}").expect("a string");
}

#[test]
fn schemas() {
    let mut out = String::new();
    for schema in [
        r#"{}"#,
        "true",
        "false",
        "[1]",
        r#""string""#,
        r#"{"type":"object""#,
        r#"{"type":"objct"}"#,
        r#"{"type":3}"#,
        r#"{"properties":[]}"#,
        r#"{"type":"string","pattern":"("}"#,
        r#"{"type":"string","pattern":"a(?=b)"}"#,
        r#"{"type":"integer","minimum":5,"maximum":3}"#,
        r#"{"type":"string","minLength":5,"maxLength":3}"#,
        r#"{"type":"array","minItems":5,"maxItems":3}"#,
        r#"{"type":"array","items":false,"minItems":1}"#,
        r#"{"enum":[]}"#,
        r#"{"type":"string","enum":[1,2]}"#,
        r#"{"allOf":[{"type":"string"},{"type":"integer"}]}"#,
        r##"{"$ref":"#/$defs/none"}"##,
        r##"{"$ref":"http://example.com/schema.json"}"##,
        r##"{"$defs":{"a":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}"##,
        r#"{"type":"object","properties":{"a":false},"required":["a"]}"#,
        r#"{"type":"object","x-guidance":{"nonsense":1}}"#,
        r#"{"type":"string","format":"no-such-format"}"#,
        r#"{"not":{"type":"string"}}"#,
        r#"{"type":"array","uniqueItems":true}"#,
    ] {
        row(&mut out, schema, &json(schema, true));
    }
    for schema in [r#"{"not":{"type":"string"}}"#, r#"{"type":"string","format":"no-such-format"}"#] {
        row(&mut out, &format!("not strict {schema}"), &json(schema, false));
    }
    insta::assert_snapshot!(out, @r###"
    {}: accepted
    true: accepted
    false: no value meets the schema `false`
    [1]: a JSON schema is an object or a boolean
    "string": a JSON schema is an object or a boolean
    {"type":"object": no JSON: EOF while parsing an object at line 1 column 16
    {"type":"objct"}: Invalid type: objct
    {"type":3}: type must be a string or array of strings
    {"properties":[]}: properties must be an object
    {"type":"string","pattern":"("}: regex parse error: ( ^ error: unclosed group
    {"type":"string","pattern":"a(?=b)"}: regex parse error: a(?=b) ^^^ error: look-around, including look-ahead and look-behind, is not supported
    {"type":"integer","minimum":5,"maximum":3}: Unsatisfiable schema: minimum (5) is greater than maximum (3)
    {"type":"string","minLength":5,"maxLength":3}: Unsatisfiable schema: minLength (5) is greater than maxLength (3)
    {"type":"array","minItems":5,"maxItems":3}: Unsatisfiable schema: minItems (5) is greater than maxItems (3)
    {"type":"array","items":false,"minItems":1}: Unsatisfiable schema: required item is unsatisfiable
    {"enum":[]}: Unsatisfiable schema: anyOf is empty
    {"type":"string","enum":[1,2]}: Unsatisfiable schema: incompatible types
    {"allOf":[{"type":"string"},{"type":"integer"}]}: Unsatisfiable schema: incompatible types
    {"$ref":"#/$defs/none"}: Reference segment '$defs' not found in '#/$defs/none'.
    {"$ref":"http://example.com/schema.json"}: Only absolute $ref's (#/...) are supported without 'referencing' feature; ref 'http://example.com/schema.json'
    {"$defs":{"a":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}: no text meets it
    {"type":"object","properties":{"a":false},"required":["a"]}: Unsatisfiable schema: required property 'a' is unsatisfiable
    {"type":"object","x-guidance":{"nonsense":1}}: accepted
    {"type":"string","format":"no-such-format"}: Unknown format: no-such-format
    {"not":{"type":"string"}}: Unimplemented keys: ["not"]
    {"type":"array","uniqueItems":true}: Unimplemented keys: ["uniqueItems"]
    not strict {"not":{"type":"string"}}: accepted
    not strict {"type":"string","format":"no-such-format"}: accepted
    "###);
}

#[test]
fn other_sources() {
    let mut out = String::new();
    for regex in ["[a-z]+", "", "(", "a(?=b)", r"(a)\1", "a{2,1}", "a{100000}", r"\p{Greek}+", "[^\\s\\S]"] {
        row(&mut out, &format!("regex {regex:?}"), &Constraint::Regex(regex.to_owned()));
    }
    for grammar in [
        "start: \"a\" | \"b\"",
        "start: /[a-z]+/ NUMBER\nNUMBER: /[0-9]+/",
        "",
        "begin: \"a\"",
        "start: other",
        "start: start",
        "start: \"a",
        "start: <|endoftext|>",
        "start: <[5]>",
        "start: @other",
        "start: %json {\"type\":\"integer\"}",
        "start: %json {\"type\":",
        "%import common.NUMBER\nstart: NUMBER",
    ] {
        row(&mut out, &format!("lark {grammar:?}"), &Constraint::Lark(grammar.to_owned()));
    }
    for choices in [&[][..], &["yes", "no"], &["", "a"], &["a\"\n\u{0}é"]] {
        let texts = choices.iter().map(|text| (*text).to_owned()).collect();
        row(&mut out, &format!("choice {choices:?}"), &Constraint::Choice(texts));
    }
    insta::assert_snapshot!(out, @r###"
    regex "[a-z]+": accepted
    regex "": accepted
    regex "(": regex parse error: ( ^ error: unclosed group
    regex "a(?=b)": regex parse error: a(?=b) ^^^ error: look-around, including look-ahead and look-behind, is not supported
    regex "(a)\\1": regex parse error: (a)\1 ^^ error: backreferences are not supported
    regex "a{2,1}": regex parse error: a{2,1} ^^^^^ error: invalid repetition count range, the start must be <= the end
    regex "a{100000}": accepted
    regex "\\p{Greek}+": accepted
    regex "[^\\s\\S]": no text meets it
    lark "start: \"a\" | \"b\"": accepted
    lark "start: /[a-z]+/ NUMBER\nNUMBER: /[0-9]+/": accepted
    lark "": no start rule found
    lark "begin: \"a\"": no start rule found
    lark "start: other": at 1(8): unknown name: "other"
    lark "start: start": no text meets it
    lark "start: \"a": 1(10): lexer error
    lark "start: <|endoftext|>": tokens cannot be named (<...>): a grammar is about text
    lark "start: <[5]>": tokens cannot be named (<...>): a grammar is about text
    lark "start: @other": unknown grammar @other
    lark "start: %json {\"type\":\"integer\"}": accepted
    lark "start: %json {\"type\":": failed to parse "%json": EOF while parsing a value at line 2 column 0
    lark "%import common.NUMBER\nstart: NUMBER": accepted
    choice []: there is no choice
    choice ["yes", "no"]: accepted
    choice ["", "a"]: accepted
    choice ["a\"\n\0é"]: accepted
    "###);
}

#[test]
fn what_is_too_large_or_too_deep_names_its_limit() {
    let mut out = String::new();
    let deep = |levels: usize| format!("{}{{}}{}", r#"{"items":"#.repeat(levels), "}".repeat(levels));
    row(&mut out, "60 deep", &json(&deep(60), true));
    row(&mut out, "100 deep", &json(&deep(100), true));
    row(&mut out, "large schema", &json(&format!(r#"{{"title":"{}"}}"#, "x".repeat(140_000)), true));
    row(&mut out, "large regex", &Constraint::Regex("a".repeat(20_000)));
    row(&mut out, "deep regex", &Constraint::Regex("(".repeat(100)));
    row(&mut out, "large grammar", &Constraint::Lark(format!("start: \"a\" // {}", "x".repeat(140_000))));
    row(&mut out, "many choices", &Constraint::Choice(vec!["a".to_owned(); 2000]));
    row(&mut out, "large choice", &Constraint::Choice(vec!["a".repeat(140_000)]));
    row(&mut out, "explosive regex", &Constraint::Regex("(.{1000}){1000}".to_owned()));
    insta::assert_snapshot!(out, @r###"
    60 deep: accepted
    100 deep: the JSON schema has 101 levels of nesting, but at most 64 are accepted
    large schema: the JSON schema has 140012 bytes, but at most 131072 are accepted
    large regex: the regular expression has 20000 bytes, but at most 16384 are accepted
    deep regex: the regular expression has 100 levels of nesting, but at most 64 are accepted
    large grammar: the grammar has 140014 bytes, but at most 131072 are accepted
    many choices: the choice has 2000 texts, but at most 1024 are accepted
    large choice: the choice has 140000 bytes, but at most 131072 are accepted
    explosive regex: accepted
    "###);
}

/// What multiplies when it is compiled: each comes to a verdict, in time and memory that the limits bound.
#[test]
fn explosions_have_a_verdict() {
    let object = |n: usize, m: usize| {
        format!(r#"{{"type":"object","properties":{{"p{n}_{m}":{{"type":"integer"}}}},"required":["p{n}_{m}"]}}"#)
    };
    let any_of = |n: usize| format!(r#"{{"anyOf":[{}]}}"#, (0..5).map(|m| object(n, m)).collect::<Vec<_>>().join(","));
    let products = format!(r#"{{"allOf":[{}]}}"#, (0..12).map(any_of).collect::<Vec<_>>().join(","));
    let many = (0..3000).map(|n| format!(r#""property number {n}":{{"type":"number"}}"#)).collect::<Vec<_>>().join(",");
    let texts = (0..9000).map(|n| format!(r#""value {n}""#)).collect::<Vec<_>>().join(",");
    for (name, constraint) in [
        ("products of anyOf", json(&products, true)),
        ("many properties", json(&format!(r#"{{"type":"object","properties":{{{many}}}}}"#), true)),
        ("a large enum", json(&format!(r#"{{"enum":[{texts}]}}"#), true)),
        (
            "large arrays",
            json(
                r#"{"type":"array","items":{"type":"array","minItems":5000},"minItems":100000,"maxItems":1000000}"#,
                true,
            ),
        ),
        ("a long string", json(r#"{"type":"string","minLength":100000,"maxLength":1000000}"#, true)),
        ("a fine number", json(r#"{"type":"number","multipleOf":0.000000001,"minimum":-1e300,"maximum":1e300}"#, true)),
        ("nested repetition", Constraint::Regex("((a{1000}){1000}){1000}".to_owned())),
        ("alternatives", Constraint::Regex("(a|aa|aaa)*b(.{0,5000}x){0,5000}".to_owned())),
        (
            "intersections",
            json(r#"{"type":"string","allOf":[{"pattern":"a.{12}"},{"pattern":"b.{11}"},{"pattern":"c.{10}"}]}"#, true),
        ),
        ("ambiguity", Constraint::Lark("start: a\na: a a a | \"x\" | \"xx\" | ".to_owned())),
        ("repeated rules", Constraint::Lark("start: a{0,100000}\na: \"x\"{0,100000} \"y\"".to_owned())),
    ] {
        let began = std::time::Instant::now();
        let verdict = check(&constraint);
        println!("{name}: {verdict:?} in {:?}", began.elapsed());
        assert!(!matches!(verdict, Err(GrammarError::Failed { .. } | GrammarError::Vocabulary { .. })), "{name}");
    }
}

/// Chains of references are followed by recursion: as long as a source may be, they must not overflow a stack.
#[test]
fn long_chains_of_references_are_answered() {
    let mut defs = String::new();
    for n in 0..4000 {
        write!(defs, r##""a{n}":{{"$ref":"#/$defs/a{}"}},"##, n + 1).expect("a string");
    }
    let schema = format!(r##"{{"$defs":{{{defs}"a4000":{{"type":"null"}}}},"$ref":"#/$defs/a0"}}"##);
    assert_eq!(check(&json(&schema, true)), Ok(()));
    for (name, end) in [("r", "\"a\""), ("R", "\"a\"")] {
        let rules: String = (0..4000).map(|n| format!("{name}{n}: {name}{}\n", n + 1)).collect();
        let grammar = format!("start: {name}0\n{rules}{name}4000: {end}\n");
        assert_eq!(check(&Constraint::Lark(grammar)), Ok(()), "{name}");
    }
}

#[test]
fn calls_of_tools_are_made_of_text_and_schemas() {
    let schema = r#"{"type":"object","properties":{"b":{"type":"integer"},"a":{"enum":["x"]}},"required":["b","a"],"additionalProperties":false}"#;
    let arguments = JsonConstraint { schema: schema.to_owned(), strict: true, whitespace: false };
    let call = |name: &str| {
        vec![
            Part::Text(format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": ")),
            Part::Json(arguments.clone()),
            Part::Text("}\n</tool_call>".to_owned()),
        ]
    };
    let one = Template::one_of(vec![call("f"), call("g")]);
    let several = Template { most: 3, separator: "\n".to_owned(), ..one.clone() };
    let f = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"b\":-12,\"a\":\"x\"}}\n</tool_call>";
    let g = f.replace("\"f\"", "\"g\"");
    for (template, text, complete) in [
        (&one, f.to_owned(), true),
        (&one, g.clone(), true),
        (&several, format!("{f}\n{g}\n{f}"), true),
        (&several, format!("{f}\n{g}"), false),
    ] {
        let constraint = template.constraint().expect("a constraint");
        assert_eq!(check(&constraint), Ok(()));
        let mut guide = bytes().guide(&constraint).expect("it compiles");
        for (index, byte) in text.bytes().enumerate() {
            guide.take(u32::from(byte)).unwrap_or_else(|error| panic!("{index} of {text}: {error}"));
        }
        assert!(guide.mask().expect("a mask").allows(256), "it may end after {text}");
        assert_eq!(guide.is_complete(), complete, "{text}");
    }
    let mut guide = bytes().guide(&one.constraint().expect("a constraint")).expect("it compiles");
    let refused = f.replace("-12", "1.5").bytes().find_map(|byte| guide.take(u32::from(byte)).err());
    assert!(matches!(refused, Some(GrammarError::NotAllowed { .. })), "{refused:?}");
}

fn bytes() -> Vocabulary {
    let mut tokens: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
    tokens.push(Vec::new());
    Vocabulary::new(tokens, &[256]).expect("a vocabulary")
}

/// Schemas that are nearly right, where the corners are.
fn schemas_at_random() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "type",
        "properties",
        "items",
        "enum",
        "const",
        "anyOf",
        "oneOf",
        "allOf",
        "$ref",
        "$defs",
        "required",
        "pattern",
        "format",
        "minLength",
        "maxItems",
        "minItems",
        "minimum",
        "maximum",
        "multipleOf",
        "additionalProperties",
        "patternProperties",
        "prefixItems",
        "minProperties",
        "x-guidance",
        "$id",
        "$schema",
        "a",
    ]);
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("false".to_owned()),
        prop_oneof![Just(0.0), Just(-1.0), Just(1e300), Just(0.1), -100.0..100.0f64].prop_map(|n| n.to_string()),
        prop::sample::select(vec![
            "object",
            "string",
            "integer",
            "array",
            "date-time",
            "#",
            "#/$defs/a",
            "(",
            "^a*$",
            "ﬀ\u{7f}"
        ])
        .prop_map(|text| format!("{text:?}")),
        ".{0,120}".prop_map(|text| serde_json::Value::from(text).to_string()),
    ];
    leaf.prop_recursive(5, 40, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(","))),
            prop::collection::vec((word.clone(), inner), 0..5).prop_map(|entries| {
                let entries: Vec<String> = entries.iter().map(|(key, value)| format!("{key:?}:{value}")).collect();
                format!("{{{}}}", entries.join(","))
            }),
        ]
    })
}

proptest! {
    /// Whatever comes, the answer is a verdict about the constraint, never a failure of the checker.
    #[test]
    fn any_schema_has_a_verdict(schema in schemas_at_random(), strict: bool) {
        let verdict = check(&json(&schema, strict));
        prop_assert!(!matches!(verdict, Err(GrammarError::Failed { .. } | GrammarError::Vocabulary { .. })), "{:?}", verdict);
    }

    #[test]
    fn any_text_has_a_verdict(text in "[a-zA-Z0-9:|()\\[\\]{}<>.*+?/\"\\\\,^$&~%@ \n-]{0,60}") {
        for constraint in [Constraint::Regex(text.clone()), Constraint::Lark(format!("start: {text}")), Constraint::Lark(text)] {
            let verdict = check(&constraint);
            prop_assert!(!matches!(verdict, Err(GrammarError::Failed { .. } | GrammarError::Vocabulary { .. })), "{:?}", verdict);
        }
    }
}
