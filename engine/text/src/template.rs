//! Chat templates, rendered as Hugging Face transformers renders them (`apply_chat_template`): Jinja with
//! `trim_blocks` and `lstrip_blocks`, Python's string methods, `raise_exception`, `strftime_now` and its `tojson`.
//!
//! Templates come from checkpoints and are not trusted: instructions and recursion are bounded.

use crate::tool_format::ToolFormat;
use crate::{TextError, hermes, python};
use engine_wire::openai::{ChatMessage, Role, Tool, ToolCall};
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, context};
use serde_json::{Value as Json, json};
use std::time::{SystemTime, UNIX_EPOCH};

const NAME: &str = "chat_template";
/// Instructions that one rendering may take: an ordinary template needs some tens per message.
const FUEL: u64 = 2_000_000;

/// A compiled template with the file's texts for the beginning and end of a sequence.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_text: String,
    eos_text: String,
    knows: Knowledge,
    format: ToolFormat,
}

/// What a template can show. It is tried out, because sources say it in many ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Knowledge {
    system: bool,
    tools: bool,
    calls: bool,
    /// Whether it wants the arguments of calls as the text that they are in the API. Others want the object.
    text_arguments: bool,
}

impl ChatTemplate {
    /// Compiles a template; the error is the template engine's.
    pub fn new(source: String, bos_text: String, eos_text: String) -> Result<Self, String> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        let format = ToolFormat::of_template(&source);
        environment.add_template_owned(NAME, source).map_err(|error| error.to_string())?;
        let mut template = Self { environment, bos_text, eos_text, knows: Knowledge::default(), format };
        template.knows = template.try_out();
        // What it is told in another form, the model answers in that one.
        template.format = if template.knows.tools { format } else { ToolFormat::Hermes };
        Ok(template)
    }

    /// How the model writes its calls.
    pub fn tool_format(&self) -> ToolFormat {
        self.format
    }

    /// Renders a conversation up to where the assistant answers.
    pub fn render(&self, messages: &[ChatMessage], tools: &[Tool]) -> Result<String, TextError> {
        let calls = |message: &ChatMessage| message.role == Role::Tool || !message.tool_calls.is_empty();
        let write_out = !self.knows.calls && messages.iter().any(calls);
        let tell = !self.knows.tools && !tools.is_empty();
        if !write_out && !tell {
            return self.render_as(messages, tools, self.knows.text_arguments);
        }
        let mut messages = messages.to_vec();
        if write_out {
            messages = hermes::write_out(messages);
        }
        if tell {
            hermes::tell(&mut messages, tools, self.knows.system);
        }
        self.render_as(&messages, if tell { &[] } else { tools }, self.knows.text_arguments)
    }

    fn render_as(&self, messages: &[ChatMessage], tools: &[Tool], text_arguments: bool) -> Result<String, TextError> {
        let messages: Vec<_> = messages.iter().map(|message| message_value(message, text_arguments)).collect();
        let tools: Option<Vec<_>> = (!tools.is_empty()).then(|| tools.iter().map(|tool| &tool.definition).collect());
        let variables = context! {
            messages => messages,
            add_generation_prompt => true,
            bos_token => self.bos_text,
            eos_token => self.eos_text,
            tools => tools,
            documents => (),
        };
        let template = self.environment.get_template(NAME).map_err(refused)?;
        template.render(variables).map_err(refused)
    }
}

impl ChatTemplate {
    /// Renders small conversations and looks for what was in them.
    fn try_out(&self) -> Knowledge {
        const PROBE: &str = "probe_5b1f";
        let shows = |messages: &[ChatMessage], tools: &[Tool], text_arguments: bool| {
            self.render_as(messages, tools, text_arguments).is_ok_and(|text| text.contains(PROBE))
        };
        let user = || ChatMessage::text(Role::User, "a");
        let tool = Tool {
            name: PROBE.to_owned(),
            parameters: None,
            strict: false,
            definition: json!({ "type": "function", "function": {
                "name": PROBE, "description": "a", "parameters": { "type": "object", "properties": {} } } }),
        };
        // Mistral's templates want ids of nine letters.
        let id = "abcdefghi".to_owned();
        let arguments = json!({ PROBE: "a" }).to_string();
        let call = ToolCall { id: id.clone(), name: "a".to_owned(), arguments };
        let called = ChatMessage { content: None, tool_calls: vec![call], ..ChatMessage::text(Role::Assistant, "") };
        let answered = ChatMessage { tool_call_id: Some(id), ..ChatMessage::text(Role::Tool, "a") };
        let calls = [user(), called, answered];
        let with_objects = shows(&calls, &[], false);
        let with_texts = !with_objects && shows(&calls, &[], true);
        Knowledge {
            system: shows(&[ChatMessage::text(Role::System, PROBE), user()], &[], false),
            tools: shows(&[user()], &[tool], false),
            calls: with_objects || with_texts,
            text_arguments: with_texts,
        }
    }
}

/// A message as transformers gives it to templates: keys that a message does not have are absent, and arguments are the
/// object that they are the text of.
fn message_value(message: &ChatMessage, text_arguments: bool) -> Json {
    let mut value = json!({ "role": message.role, "content": message.content });
    if let Some(name) = &message.name {
        value["name"] = name.as_str().into();
    }
    let call = |call: &ToolCall| {
        let arguments = match text_arguments {
            true => Json::from(call.arguments.as_str()),
            false => serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({})),
        };
        json!({ "id": call.id, "type": "function", "function": { "name": call.name, "arguments": arguments } })
    };
    if !message.tool_calls.is_empty() {
        value["tool_calls"] = message.tool_calls.iter().map(call).collect();
    }
    if let Some(id) = &message.tool_call_id {
        value["tool_call_id"] = id.as_str().into();
    }
    value
}

fn refused(error: Error) -> TextError {
    let message = match (error.kind(), error.detail()) {
        // What the template's author wrote for its reader.
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        _ => error.to_string(),
    };
    TextError::Template { message }
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

fn strftime_now(format: &str) -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    python::strftime(format, since.as_secs())
}

/// As `json.dumps`, with keys in their order.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Accepted for compatibility: the output is not ASCII-escaped, which is transformers' default.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let json = serde_json::to_value(value)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, "tojson").with_source(error))?;
    Ok(Value::from_safe_string(python::json_dumps(&json, indent.map(|indent| indent.min(16)))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_wire::openai::Role;

    fn check(source: &str, expected: Result<&str, &str>) {
        let messages = [ChatMessage::text(Role::System, " Be brief. "), ChatMessage::text(Role::User, "<Hi> & 日")];
        let rendered = ChatTemplate::new(source.to_owned(), "<s>".into(), "</s>".into())
            .and_then(|template| template.render(&messages, &[]).map_err(|error| error.to_string()));
        match (rendered, expected) {
            (Ok(text), Ok(expected)) => assert_eq!(text, expected, "{source}"),
            (Err(message), Err(expected)) => assert!(message.contains(expected), "{source}: {message}"),
            (other, _) => panic!("{source}: {other:?}"),
        }
    }

    #[test]
    fn renders_as_transformers_does() {
        check("{{ bos_token }}{{ messages[1].content }}{{ eos_token }}", Ok("<s><Hi> & 日</s>"));
        check(
            "{% for m in messages %}\n  {% if true %}\n{{ m['role'] }}\n{% endif %}\n{% endfor %}",
            Ok("system\nuser\n"),
        );
        check("{{ messages[0]['content'].strip() | upper }}", Ok("BE BRIEF."));
        check("{{ messages[0]['content'].split()[1].startswith('b') }}", Ok("True"));
        check("{% if tools %}x{% endif %}{% if tools is none %}none{% endif %}", Ok("none"));
        check("{% if add_generation_prompt %}a{% endif %}{{ undefined_name }}", Ok("a"));
        check("{{ messages[1] | tojson }}", Ok(r#"{"role": "user", "content": "<Hi> & 日"}"#));
        check(
            "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
            Ok("user"),
        );
        check(
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            Ok("2"),
        );
        check("{{ strftime_now('%Y') | length }}", Ok("4"));
    }

    #[test]
    fn says_why_it_refuses() {
        check("{{ raise_exception('roles must alternate') }}", Err("refused the messages: roles must alternate"));
        check("{% for m in messages %}", Err("syntax error"));
        check("{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}", Err("fuel"));
        check("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", Err("recursion"));
        check("{{ messages[0].nothing.more }}", Err("undefined"));
    }

    /// What a template makes of a conversation with a tool, a call of it and an answer, and how it has calls written.
    fn with_tools(source: &str) -> String {
        let body = br#"{"model":"m","messages":[
            {"role":"user","content":"q"},
            {"role":"assistant","content":null,"tool_calls":[
                {"id":"abcdefghi","type":"function","function":{"name":"f","arguments":"{\"z\":1.0,\"a\":[\"\u00e9\"]}"}}]},
            {"role":"tool","tool_call_id":"abcdefghi","content":"3"}],
            "tools":[{"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object","properties":{"z":{"type":"number"},"a":{}}}}}]}"#;
        let request = engine_wire::openai::parse_chat(body).expect("a request");
        let template = ChatTemplate::new(source.to_owned(), String::new(), String::new()).expect("a template");
        let rendered = template.render(&request.messages, request.tools.offered()).expect("a prompt");
        format!("{:?} {rendered}", template.tool_format())
    }

    #[test]
    fn tools_are_shown_as_the_template_has_it() {
        // As Qwen's: objects, keys in the client's order, null content told from an empty one.
        insta::assert_snapshot!(with_tools(
            "{% if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}\
             {% for m in messages %}{{ m.role }}:{% if m.content is not none %}{{ m.content }}{% endif %}\
             {% if 'tool_calls' in m %}{% for c in m.tool_calls %}<tool_call>{{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}{% endif %}\
             {% if m.tool_call_id is defined %}[{{ m.tool_call_id }}]{% endif %};{% endfor %}"
        ), @r#"
        Hermes {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"z": {"type": "number"}, "a": {}}}}}
        user:q;assistant:<tool_call>f {"z": 1.0, "a": ["é"]};tool:3[abcdefghi];
        "#);
        // As Mistral's, which asks for ids of nine letters.
        insta::assert_snapshot!(with_tools(
            "{% if tools is not none %}[AVAILABLE_TOOLS]{% for t in tools %}{{ t.function.name }}{% endfor %}{% endif %}\
             {% for m in messages %}{% if m.tool_calls is defined %}[TOOL_CALLS]{% for c in m.tool_calls %}\
             {% if c.id | length != 9 %}{{ raise_exception('ids') }}{% endif %}{{ c.function | tojson }}{% endfor %}\
             {% else %}{{ m.role }} {{ m.content }}{% endif %};{% endfor %}"
        ), @r#"Mistral [AVAILABLE_TOOLS]fuser q;[TOOL_CALLS]{"name": "f", "arguments": {"z": 1.0, "a": ["é"]}};tool 3;"#);
        // As DeepSeek's: arguments are text, and of tools it says nothing, so they are told in the Hermes form.
        insta::assert_snapshot!(with_tools(
            "{% for m in messages %}{% if m.role == 'assistant' and m.content is none %}{% for c in m.tool_calls %}\
             {{ '<' + c.function.name + '>' + c.function.arguments }}{% endfor %}{% else %}{{ m.role + ':' + m.content }}{% endif %};{% endfor %}"
        ).lines().last().expect("a line"), @r#"</tool_call>;user:q;<f>{"z":1.0,"a":["é"]};tool:3;"#);
    }

    #[test]
    fn tools_are_told_of_where_there_is_a_place() {
        // No place for a system message: the first user's has the section.
        let told = with_tools(
            "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ m.role }}:{{ m.content }};{% endfor %}",
        );
        assert!(told.starts_with("Hermes user:# Tools\n"), "{told}");
        let tail = "</tool_call>\n\nq;assistant:<tool_call>\n{\"name\": \"f\", \"arguments\": {\"z\": 1.0, \"a\": [\"é\"]}}\n</tool_call>;\
                    user:<tool_response>\n3\n</tool_response>;";
        assert!(told.ends_with(tail), "{told}");
    }
}
