//! Tools of a chat: what the model may call, whether it must, and the calls that earlier messages made.
//!
//! A tool's definition is kept as the client wrote it, keys in its order, because the chat template shows it to the
//! model: another order is another prompt.

use super::fields::{Fields, RequestError, elements, kind_of, shorten, wrong_type};
use serde_json::Value;
use serde_json::value::RawValue;

/// Tools of one request, as OpenAI bounds them; calls of one message too.
pub const MAX_TOOLS: usize = 128;
/// All tools of one request together, bytes of JSON.
pub const MAX_TOOLS_BYTES: usize = 256 << 10;
/// Longest name of a function, bytes.
pub const MAX_FUNCTION_NAME_BYTES: usize = 64;

/// The tools of a request and how they may be used.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ToolOptions {
    pub tools: Vec<Tool>,
    pub choice: ToolChoice,
    /// Whether one answer may call only once.
    pub single: bool,
}

/// One function.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Unique among a request's tools.
    pub name: String,
    /// JSON schema of the arguments, an object, as JSON text; none for a function without any.
    pub parameters: Option<String>,
    /// Whether the arguments must meet the schema.
    pub strict: bool,
    /// `{"type": "function", "function": {...}}`, as the client wrote it.
    pub definition: Value,
}

/// Whether the model calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// It does not, and is not told of tools.
    None,
    /// As it likes.
    #[default]
    Auto,
    /// At least once.
    Required,
    /// This function, by name.
    Function(String),
}

/// A call that an assistant's message made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    pub id: String,
    pub name: String,
    /// JSON text of an object.
    pub arguments: String,
}

impl ToolOptions {
    /// The tools that the model is told of.
    pub fn offered(&self) -> &[Tool] {
        if self.choice == ToolChoice::None { &[] } else { &self.tools }
    }
}

/// Takes `tools`, `tool_choice` and `parallel_tool_calls`, and refuses what came before them.
pub(super) fn parse_tool_options(fields: &mut Fields<'_>) -> Result<ToolOptions, RequestError> {
    for (old, new) in [("functions", "tools"), ("function_call", "tool_choice")] {
        if fields.take_raw(old).is_some_and(|raw| !matches!(raw.get(), "[]" | "\"none\"")) {
            let message = format!("'{old}' is deprecated and not supported: use '{new}'.");
            return Err(RequestError::at(old, message));
        }
    }
    let tools = parse_tools(fields)?;
    let parallel = fields.take("parallel_tool_calls", "a boolean")?.unwrap_or(true);
    let choice = match fields.take_raw("tool_choice") {
        None => ToolChoice::Auto,
        Some(raw) => parse_choice(raw, &tools)?,
    };
    if tools.is_empty() {
        return Ok(ToolOptions::default());
    }
    Ok(ToolOptions { tools, choice, single: !parallel })
}

/// Takes `tools`.
pub(super) fn parse_tools(fields: &mut Fields<'_>) -> Result<Vec<Tool>, RequestError> {
    let Some(raw) = fields.take_raw("tools") else { return Ok(Vec::new()) };
    let items = elements(raw, "tools", "an array of objects")?;
    if items.len() > MAX_TOOLS {
        let message =
            format!("Invalid 'tools': array too long. Expected at most {MAX_TOOLS} tools, but got {}.", items.len());
        return Err(RequestError::at("tools", message));
    }
    let bytes: usize = items.iter().map(|item| item.get().len()).sum();
    if bytes > MAX_TOOLS_BYTES {
        let message = format!("Invalid 'tools': {bytes} bytes together. Expected at most {MAX_TOOLS_BYTES} bytes.");
        return Err(RequestError::at("tools", message));
    }
    let mut tools: Vec<Tool> = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let tool = parse_tool(item, &format!("tools[{index}]"))?;
        if tools.iter().any(|known| known.name == tool.name) {
            let message = format!("Invalid 'tools': there is more than one function of the name '{}'.", tool.name);
            return Err(RequestError::at(format!("tools[{index}].function.name"), message));
        }
        tools.push(tool);
    }
    Ok(tools)
}

fn parse_tool(raw: &RawValue, path: &str) -> Result<Tool, RequestError> {
    let mut fields = Fields::of_object(raw, format!("{path}."))?;
    check_type(&mut fields, true)?;
    let function = fields.take_raw("function").ok_or_else(|| fields.missing("function"))?;
    fields.finish()?;
    let mut function = Fields::of_object(function, format!("{path}.function."))?;
    let name = function_name(&mut function)?;
    function.take::<String>("description", "a string")?;
    let strict = function.take("strict", "a boolean")?.unwrap_or(false);
    let parameters = match function.take_raw("parameters") {
        None => None,
        Some(schema) => Some(parse_schema(schema, &function.param("parameters"))?),
    };
    function.finish()?;
    let definition = serde_json::from_str(raw.get())
        .map_err(|error| RequestError::at(path, format!("Invalid '{path}': {error}.")))?;
    Ok(Tool { name, parameters, strict, definition })
}

/// Only the outside is looked at: what the schema says inside matters to whoever must meet it.
fn parse_schema(raw: &RawValue, param: &str) -> Result<String, RequestError> {
    if kind_of(raw) != "an object" {
        return Err(wrong_type(param, "a JSON schema (an object)", raw));
    }
    let schema: Value = serde_json::from_str(raw.get())
        .map_err(|error| RequestError::at(param, format!("Invalid '{param}': {error}.")))?;
    match schema.get("type") {
        None => Ok(raw.get().to_owned()),
        Some(kind) if kind == "object" => Ok(raw.get().to_owned()),
        Some(kind) => {
            let kind = kind.to_string();
            let message = format!(
                "Invalid schema for '{param}': its type must be 'object', because arguments have names, but it is {}.",
                shorten(&kind)
            );
            Err(RequestError::at(param, message))
        }
    }
}

fn parse_choice(raw: &RawValue, tools: &[Tool]) -> Result<ToolChoice, RequestError> {
    const PARAM: &str = "tool_choice";
    const EXPECTED: &str = "'none', 'auto', 'required' or {\"type\": \"function\", \"function\": {\"name\": ...}}";
    let choice = match (kind_of(raw), raw.get()) {
        (_, "\"none\"") => return Ok(ToolChoice::None),
        (_, "\"auto\"") => ToolChoice::Auto,
        (_, "\"required\"") => ToolChoice::Required,
        ("a string", other) => {
            let message = format!("Invalid value for '{PARAM}': {} is not {EXPECTED}.", shorten(other));
            return Err(RequestError::at(PARAM, message));
        }
        ("an object", _) => {
            let mut fields = Fields::of_object(raw, format!("{PARAM}."))?;
            check_type(&mut fields, true)?;
            let function = fields.take_raw("function").ok_or_else(|| fields.missing("function"))?;
            fields.finish()?;
            let mut function = Fields::of_object(function, format!("{PARAM}.function."))?;
            let name = function.require::<String>("name", "a string")?;
            function.finish()?;
            ToolChoice::Function(name)
        }
        _ => return Err(wrong_type(PARAM, EXPECTED, raw)),
    };
    if tools.is_empty() {
        return Err(RequestError::at(PARAM, "'tool_choice' is only allowed when 'tools' are specified."));
    }
    if let ToolChoice::Function(name) = &choice
        && tools.iter().all(|tool| tool.name != *name)
    {
        let message = format!("Invalid '{PARAM}': there is no tool of the name '{}'.", shorten(name));
        return Err(RequestError::at(format!("{PARAM}.function.name"), message));
    }
    Ok(choice)
}

/// Reads the `tool_calls` of an assistant's message, at `path`.
pub(super) fn parse_tool_calls(raw: &RawValue, path: &str) -> Result<Vec<ToolCall>, RequestError> {
    let items = elements(raw, path, "an array of objects")?;
    if items.len() > MAX_TOOLS {
        let message =
            format!("Invalid '{path}': array too long. Expected at most {MAX_TOOLS} calls, but got {}.", items.len());
        return Err(RequestError::at(path, message));
    }
    items.into_iter().enumerate().map(|(index, item)| parse_tool_call(item, &format!("{path}[{index}]"))).collect()
}

fn parse_tool_call(raw: &RawValue, path: &str) -> Result<ToolCall, RequestError> {
    let mut fields = Fields::of_object(raw, format!("{path}."))?;
    let id = fields.require("id", "a string")?;
    check_type(&mut fields, false)?;
    let function = fields.take_raw("function").ok_or_else(|| fields.missing("function"))?;
    // Streams number their calls, and clients send back what they put together.
    fields.ignore(&["index"]);
    fields.finish()?;
    let mut function = Fields::of_object(function, format!("{path}.function."))?;
    let name = function_name(&mut function)?;
    let arguments: String = function.require("arguments", "a string of JSON")?;
    let param = function.param("arguments");
    function.finish()?;
    if arguments.trim().is_empty() {
        return Ok(ToolCall { id, name, arguments: "{}".to_owned() });
    }
    match serde_json::from_str::<Value>(&arguments) {
        Ok(Value::Object(_)) => Ok(ToolCall { id, name, arguments }),
        Ok(_) => {
            Err(RequestError::at(&*param, format!("Invalid '{param}': expected a JSON object written as a string.")))
        }
        Err(error) => Err(RequestError::at(&*param, format!("Invalid '{param}': not JSON: {error}."))),
    }
}

/// Takes `type`, which is always `function`.
fn check_type(fields: &mut Fields<'_>, required: bool) -> Result<(), RequestError> {
    let param = fields.param("type");
    let kind: Option<String> = fields.take("type", "a string")?;
    match kind.as_deref() {
        Some("function") => Ok(()),
        None if !required => Ok(()),
        None => Err(fields.missing("type")),
        Some(other) => {
            let message =
                format!("Invalid value for '{param}': '{}'. Supported values are: 'function'.", shorten(other));
            Err(RequestError::at(param, message))
        }
    }
}

/// Takes a function's `name`, which OpenAI wants to match `^[a-zA-Z0-9_-]{1,64}$`.
fn function_name(fields: &mut Fields<'_>) -> Result<String, RequestError> {
    let name: String = fields.require("name", "a string")?;
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if (1..=MAX_FUNCTION_NAME_BYTES).contains(&name.len()) && name.bytes().all(valid) {
        return Ok(name);
    }
    let param = fields.param("name");
    let message = format!(
        "Invalid '{param}': '{}' does not match ^[a-zA-Z0-9_-]{{1,{MAX_FUNCTION_NAME_BYTES}}}$.",
        shorten(&name)
    );
    Err(RequestError::at(param, message))
}
