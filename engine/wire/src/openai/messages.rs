//! Chat messages. Content is plain text: parts of an array are joined with line feeds, as vLLM does for
//! templates that want a string.

use super::fields::{Fields, RequestError, elements, kind_of, parse, wrong_type};
use super::tools::{ToolCall, parse_tool_calls};
use serde::Serialize;
use serde_json::value::RawValue;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    System,
    User,
    Assistant,
    Tool,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatMessage {
    pub role: Role,
    /// None only beside tool calls: templates tell that from an empty text.
    pub content: Option<String>,
    pub name: Option<String>,
    /// An assistant's calls.
    pub tool_calls: Vec<ToolCall>,
    /// Of a tool's message: the call that it answers.
    pub tool_call_id: Option<String>,
}

impl ChatMessage {
    /// A message that is only text.
    pub fn text(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: Some(content.into()), name: None, tool_calls: Vec::new(), tool_call_id: None }
    }

    /// Bytes of what it brings into a prompt.
    pub fn text_bytes(&self) -> usize {
        let calls = self.tool_calls.iter().map(|call| call.name.len() + call.arguments.len());
        self.content.as_ref().map_or(0, String::len) + calls.sum::<usize>()
    }
}

/// Reads `messages`.
pub(super) fn parse_messages(raw: &RawValue) -> Result<Vec<ChatMessage>, RequestError> {
    let items = elements(raw, "messages", "an array of objects")?;
    if items.is_empty() {
        return Err(RequestError::at("messages", "Invalid 'messages': empty array. Expected at least one message."));
    }
    items.into_iter().enumerate().map(|(index, item)| parse_message(item, index)).collect()
}

fn parse_message(raw: &RawValue, index: usize) -> Result<ChatMessage, RequestError> {
    let mut fields = Fields::of_object(raw, format!("messages[{index}]."))?;
    let role = parse_role(&fields.require::<String>("role", "a string")?, &fields.param("role"))?;
    let name = fields.take("name", "a string")?;
    let tool_calls = match fields.take_raw("tool_calls") {
        None => Vec::new(),
        Some(raw) => parse_tool_calls(raw, &fields.param("tool_calls"))?,
    };
    if role != Role::Assistant && !tool_calls.is_empty() {
        let param = fields.param("tool_calls");
        let message = format!("Invalid '{param}': only messages of role 'assistant' have tool calls.");
        return Err(RequestError::at(param, message));
    }
    let content = match fields.take_raw("content") {
        Some(content) => Some(parse_content(content, &fields.param("content"))?),
        None if !tool_calls.is_empty() => None,
        // An assistant's message may be a refusal without content.
        None if role == Role::Assistant => Some(String::new()),
        None => return Err(fields.missing("content")),
    };
    let tool_call_id = match fields.take::<String>("tool_call_id", "a string")? {
        None if role == Role::Tool => return Err(fields.missing("tool_call_id")),
        id => id.filter(|_| role == Role::Tool),
    };
    let empty = |value: &str| matches!(value, "[]" | "{}" | "\"\"");
    for neutral in ["function_call", "audio", "refusal"] {
        fields.unsupported(neutral, empty)?;
    }
    fields.ignore(&["annotations"]);
    fields.finish()?;
    Ok(ChatMessage { role, content, name, tool_calls, tool_call_id })
}

fn parse_role(role: &str, param: &str) -> Result<Role, RequestError> {
    match role {
        // Templates know no developer role: it is OpenAI's newer name for the system's.
        "system" | "developer" => Ok(Role::System),
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        "tool" => Ok(Role::Tool),
        other => {
            let other: String = other.chars().take(64).collect();
            let message = format!(
                "Invalid value for '{param}': '{other}'. Supported values are: 'system', 'developer', 'user', 'assistant' and 'tool'."
            );
            Err(RequestError::at(param, message))
        }
    }
}

fn parse_content(raw: &RawValue, param: &str) -> Result<String, RequestError> {
    const EXPECTED: &str = "a string or an array of text parts";
    match kind_of(raw) {
        "a string" => parse(raw, param, EXPECTED),
        "an array" => {
            let parts = elements(raw, param, EXPECTED)?;
            let texts: Result<Vec<_>, _> = parts
                .into_iter()
                .enumerate()
                .map(|(index, part)| parse_part(part, &format!("{param}[{index}]")))
                .collect();
            Ok(texts?.join("\n"))
        }
        _ => Err(wrong_type(param, EXPECTED, raw)),
    }
}

fn parse_part(raw: &RawValue, path: &str) -> Result<String, RequestError> {
    let mut fields = Fields::of_object(raw, format!("{path}."))?;
    let kind: String = fields.require("type", "a string")?;
    if kind != "text" {
        let kind: String = kind.chars().take(64).collect();
        let message = format!("'{path}' is of type '{kind}': only parts of type 'text' are supported yet.");
        return Err(RequestError::at(fields.param("type"), message));
    }
    let text = fields.require("text", "a string")?;
    fields.ignore(&["cache_control"]);
    fields.finish()?;
    Ok(text)
}
