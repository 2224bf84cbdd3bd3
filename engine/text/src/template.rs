//! Chat templates, rendered as Hugging Face transformers renders them (`apply_chat_template`): Jinja with
//! `trim_blocks` and `lstrip_blocks`, Python's string methods, `raise_exception`, `strftime_now` and its `tojson`.
//!
//! Templates come from checkpoints and are not trusted: instructions and recursion are bounded.

use crate::{TextError, python};
use engine_wire::openai::ChatMessage;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, context};
use std::time::{SystemTime, UNIX_EPOCH};

const NAME: &str = "chat_template";
/// Instructions that one rendering may take: an ordinary template needs some tens per message.
const FUEL: u64 = 2_000_000;

/// A compiled template with the file's texts for the beginning and end of a sequence.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_text: String,
    eos_text: String,
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
        environment.add_template_owned(NAME, source).map_err(|error| error.to_string())?;
        Ok(Self { environment, bos_text, eos_text })
    }

    /// Renders a conversation up to where the assistant answers.
    pub fn render(&self, messages: &[ChatMessage]) -> Result<String, TextError> {
        let variables = context! {
            messages => messages,
            add_generation_prompt => true,
            bos_token => self.bos_text,
            eos_token => self.eos_text,
            tools => (),
            documents => (),
        };
        let template = self.environment.get_template(NAME).map_err(refused)?;
        template.render(variables).map_err(refused)
    }
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

/// As `json.dumps`, but with keys in alphabetical order.
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

    fn message(role: Role, content: &str) -> ChatMessage {
        ChatMessage { role, content: content.to_owned(), name: None }
    }

    fn check(source: &str, expected: Result<&str, &str>) {
        let messages = [message(Role::System, " Be brief. "), message(Role::User, "<Hi> & 日")];
        let rendered = ChatTemplate::new(source.to_owned(), "<s>".into(), "</s>".into())
            .and_then(|template| template.render(&messages).map_err(|error| error.to_string()));
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
        check("{{ messages[1] | tojson }}", Ok(r#"{"content": "<Hi> & 日", "role": "user"}"#));
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
}
