//! What an output must be so that it calls: the form of the model's calls as a grammar, with the schemas inside.
//!
//! An answer that must call is nothing but calls. One that may call is free until a call opens, and is held to the schema
//! from there on, if a tool is strict.

use engine_grammar::{GrammarError, Part, Template};
use engine_text::ToolFormat;
use engine_wire::constraint::{Constraint, JsonConstraint};
use engine_wire::openai::{Tool, ToolChoice, ToolOptions};
use serde_json::Value;

/// Calls of one answer that must call; the model may end before.
const CALLS_MAX: u32 = 16;
const ANY_ARGUMENTS: &str = r#"{"type":"object"}"#;
const NO_ARGUMENTS: &str = r#"{"type":"object","properties":{},"additionalProperties":false}"#;

/// The constraint of an answer with these tools, if it has one.
pub(crate) fn constraint(tools: &ToolOptions, format: ToolFormat) -> Result<Option<Constraint>, GrammarError> {
    let calls = |wanted: &dyn Fn(&Tool) -> bool, most| {
        let alternatives = tools.tools.iter().filter(|tool| wanted(tool)).map(|tool| call(tool, format)).collect();
        let separator = format.separator().unwrap_or_default().to_owned();
        Template { alternatives, most, separator }.constraint().map(Some)
    };
    match &tools.choice {
        ToolChoice::Required if tools.single || format.separator().is_none() => calls(&|_| true, 1),
        ToolChoice::Required => calls(&|_| true, CALLS_MAX),
        ToolChoice::Function(name) => calls(&|tool| tool.name == *name, 1),
        ToolChoice::Auto if tools.tools.iter().any(|tool| tool.strict) => Ok(strict_calls(&tools.tools, format)),
        ToolChoice::Auto | ToolChoice::None => Ok(None),
    }
}

fn call(tool: &Tool, format: ToolFormat) -> Vec<Part> {
    let (before, after) = format.written(&tool.name);
    let schema = tool.parameters.as_deref().unwrap_or(NO_ARGUMENTS);
    let arguments = JsonConstraint { schema: schema.to_owned(), strict: tool.strict, whitespace: false };
    vec![Part::Text(before), Part::Json(arguments), Part::Text(after.to_owned())]
}

/// Text without calls, or with some, each behind the opening. None for forms without an opening that is text: there a
/// call is not told from text before it is over.
fn strict_calls(tools: &[Tool], format: ToolFormat) -> Option<Constraint> {
    if format != ToolFormat::Hermes {
        return None;
    }
    let text = |text: &str| Value::from(text).to_string();
    let opening = format.opening();
    let call = |tool: &Tool| {
        let (before, after) = format.written(&tool.name);
        let schema = match &tool.parameters {
            Some(schema) if tool.strict => schema,
            _ => ANY_ARGUMENTS,
        };
        format!("{} %json {schema} {}", text(before.strip_prefix(opening).unwrap_or(&before)), text(after))
    };
    let calls: Vec<String> = tools.iter().map(call).collect();
    // The head ends with the first opening; what follows the last call has none.
    Some(Constraint::Lark(format!(
        "start: REST | (head call)+ REST?\nhead[lazy]: /(?s:.*){opening}/\n\
         REST: /(?s:.+)/ & ~/(?s:.*){opening}(?s:.*)/\ncall: {}\n",
        calls.join(" | ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_grammar::{Vocabulary, check};
    use engine_wire::openai::parse_chat;

    fn options(choice: &str, strict: bool) -> ToolOptions {
        let body = format!(
            r#"{{"model":"m","messages":[{{"role":"user","content":"a"}}],"tools":[
                {{"type":"function","function":{{"name":"f","strict":{strict},"parameters":{{"type":"object","properties":{{"a":{{"type":"integer"}}}},"required":["a"],"additionalProperties":false}}}}}},
                {{"type":"function","function":{{"name":"g"}}}}],"tool_choice":{choice}}}"#
        );
        parse_chat(body.as_bytes()).expect("a request").tools
    }

    /// How many bytes of a text may follow each other.
    fn follows(constraint: &Constraint, text: &str) -> usize {
        check(constraint).expect("a grammar that can be met");
        let tokens = (0..=255).map(|byte| vec![byte]).chain([b"<end>".to_vec()]).collect();
        let mut guide = Vocabulary::new(tokens, &[256]).expect("bytes").guide(constraint).expect("a guide");
        let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
        guide.allowed_prefix(&tokens).expect("a length")
    }

    #[test]
    fn an_answer_that_must_call_is_nothing_but_calls() {
        let all = constraint(&options("\"required\"", false), ToolFormat::Hermes).expect("schemas").expect("one");
        let one = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\":1}}\n</tool_call>";
        let other = "<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>";
        assert_eq!(follows(&all, &format!("{one}\n{other}")), one.len() + other.len() + 1);
        assert_eq!(follows(&all, "I"), 0);
        let bad = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\":\"1";
        assert_eq!(follows(&all, bad), bad.len() - 2);
        let named = r#"{"type":"function","function":{"name":"g"}}"#;
        let named = constraint(&options(named, false), ToolFormat::Llama).expect("schemas").expect("one");
        let only = "{\"name\": \"g\", \"parameters\": {}}";
        assert_eq!(follows(&named, only), only.len());
        assert_eq!(follows(&named, "{\"name\": \"f"), 10);
        let listed = constraint(&options("\"required\"", false), ToolFormat::Mistral).expect("schemas").expect("one");
        let listed_call = "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"a\":7}}]";
        assert_eq!(follows(&listed, listed_call), listed_call.len());
    }

    #[test]
    fn a_strict_tool_holds_to_its_schema_once_it_is_called() {
        let strict = constraint(&options("\"auto\"", true), ToolFormat::Hermes).expect("schemas").expect("one");
        for (text, beyond) in [
            ("Well <tool, then.", 0),
            ("See: <tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\":1}}\n</tool_call> and", 0),
            ("<tool_call>\n{\"name\": \"f\", \"arguments\": {\"b", 1),
            ("<tool_call>x", 1),
            ("<tool_call>\n{\"name\": \"g\", \"arguments\": {\"b\":[]}}\n</tool_call>", 0),
        ] {
            assert_eq!(follows(&strict, text), text.len() - beyond, "{text}");
        }
        assert_eq!(constraint(&options("\"auto\"", false), ToolFormat::Hermes), Ok(None));
        assert_eq!(constraint(&options("\"none\"", true), ToolFormat::Hermes), Ok(None));
    }
}
