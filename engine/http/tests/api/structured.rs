//! Constraints at the door: what is refused, with which parameter named, and what of them goes to the backend.

use crate::errors::invalid_field;
use crate::support::{Setup, says};
use engine_wire::constraint::{Constraint, JsonConstraint};

const TEXT: &str = "/v1/completions";

#[tokio::test]
async fn formats_that_are_none() {
    let message = "Missing required parameter: 'response_format.type'.";
    invalid_field(r#""response_format":{}"#, message, "response_format.type").await;
    let message = "Invalid value for 'response_format.type': 'xml'. Supported values are: 'text', 'json_object' and 'json_schema'.";
    invalid_field(r#""response_format":{"type":"xml"}"#, message, "response_format.type").await;
    let message = "Missing required parameter: 'response_format.json_schema'.";
    invalid_field(r#""response_format":{"type":"json_schema"}"#, message, "response_format.json_schema").await;
    let message = "Missing required parameter: 'response_format.json_schema.schema'.";
    let field = r#""response_format":{"type":"json_schema","json_schema":{"name":"a"}}"#;
    invalid_field(field, message, "response_format.json_schema.schema").await;
    let message = "Missing required parameter: 'response_format.json_schema.name'.";
    let field = r#""response_format":{"type":"json_schema","json_schema":{"schema":{}}}"#;
    invalid_field(field, message, "response_format.json_schema.name").await;
    let message =
        "Invalid 'response_format.json_schema.name': expected 1 to 64 letters, digits, underscores and dashes.";
    let field = r#""response_format":{"type":"json_schema","json_schema":{"name":"a b","schema":{}}}"#;
    invalid_field(field, message, "response_format.json_schema.name").await;
    let message = "Unrecognized request argument supplied: response_format.schema";
    invalid_field(r#""response_format":{"type":"json_object","schema":{}}"#, message, "response_format.schema").await;
    let message = "Invalid type for 'guided_json': expected a JSON schema, but got a number (3) instead.";
    invalid_field(r#""guided_json":3"#, message, "guided_json").await;
    let message = "Invalid 'guided_choice': it has 0 strings. Expected 1 to 1024.";
    invalid_field(r#""guided_choice":[]"#, message, "guided_choice").await;
    let message = "Invalid 'structured_outputs': expected one of json, regex, grammar, choice and json_object.";
    invalid_field(r#""structured_outputs":{}"#, message, "structured_outputs").await;
    let message = "'structured_outputs.structural_tag' is not supported yet with this value. Leave it out.";
    let field = r#""structured_outputs":{"json_object":true,"structural_tag":"x"}"#;
    invalid_field(field, message, "structured_outputs.structural_tag").await;
}

#[tokio::test]
async fn constraints_that_contradict_or_cannot_be_met() {
    let message =
        "'guided_regex' together with 'guided_json': an output follows one constraint. Leave one of them out.";
    invalid_field(r#""guided_json":{},"guided_regex":"a""#, message, "guided_regex").await;
    let message = "'structured_outputs.choice' together with 'response_format': an output follows one constraint. Leave one of them out.";
    let field = r#""response_format":{"type":"json_object"},"structured_outputs":{"choice":["a"]}"#;
    invalid_field(field, message, "structured_outputs.choice").await;
    let message = "Invalid 'response_format': Unsatisfiable schema: minLength (5) is greater than maxLength (3).";
    let field = r#""response_format":{"type":"json_schema","json_schema":{"name":"a","schema":{"type":"string","minLength":5,"maxLength":3}}}"#;
    invalid_field(field, message, "response_format").await;
    let message = "Invalid 'guided_json': no JSON: EOF while parsing an object at line 1 column 1.";
    invalid_field(r#""guided_json":"{""#, message, "guided_json").await;
    let message = "Invalid 'guided_grammar': tokens cannot be named (<...>): a grammar is about text.";
    invalid_field(r#""guided_grammar":"start: <[5]>""#, message, "guided_grammar").await;
}

#[tokio::test]
async fn what_is_asked_goes_to_every_output_of_the_backend() {
    let json = |schema: &str, strict, whitespace| {
        Constraint::Json(JsonConstraint { schema: schema.to_owned(), strict, whitespace })
    };
    for (field, expected) in [
        (r#""response_format":{"type":"text"}"#, None),
        (r#""response_format":{"type":"json_object"}"#, Some(Constraint::json_object())),
        (
            r#""response_format":{"type":"json_schema","json_schema":{"name":"a","strict":true,"description":"d","schema":{"b":1, "a":2}}}"#,
            Some(json(r#"{"b":1, "a":2}"#, true, true)),
        ),
        (r#""guided_json":"{}","guided_decoding_backend":"any""#, Some(json("{}", false, true))),
        (r#""structured_outputs":{"json":{},"disable_any_whitespace":true}"#, Some(json("{}", false, false))),
        (r#""structured_outputs":{"regex":"a+"}"#, Some(Constraint::Regex("a+".to_owned()))),
        (r#""guided_grammar":"start: \"a\"""#, Some(Constraint::Lark("start: \"a\"".to_owned()))),
        (r#""guided_choice":["a","b"]"#, Some(Constraint::Choice(vec!["a".to_owned(), "b".to_owned()]))),
    ] {
        let server = Setup { scripts: vec![says("a"), says("b")], ..Setup::default() }.start().await;
        let answer = server.post(TEXT, &format!(r#"{{"model":"tiny","prompt":"x","n":2,{field}}}"#)).await;
        assert_eq!(answer.status, 200, "{field}: {answer:?}");
        let asked = server.asked.lock().expect("no poison");
        assert_eq!(asked.len(), 2);
        for request in asked.iter() {
            assert_eq!(request.constraint.as_deref(), expected.as_ref(), "{field}");
        }
    }
}
