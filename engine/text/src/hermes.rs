//! Tools for templates that know none, in the form that Hermes made common and Qwen, SmolLM2 and others were trained
//! on: signatures in the system message between `<tools>` tags, calls between `<tool_call>` tags, answers between
//! `<tool_response>` tags in a user's message. As other servers do, a model that was told of tools in no form at all
//! would be asked for what it cannot know.

use crate::python::json_dumps;
use engine_wire::openai::{ChatMessage, Role, Tool};
use serde_json::{Value, json};

/// The section that tells of the tools, for a system message.
fn section(tools: &[Tool]) -> String {
    let signatures: Vec<String> = tools.iter().map(|tool| json_dumps(&tool.definition, None)).collect();
    format!(
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n\
         You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{}\n</tools>\n\n\
         For each function call, return a json object with function name and arguments within \
         <tool_call></tool_call> XML tags:\n<tool_call>\n\
         {{\"name\": <function-name>, \"arguments\": <args-json-object>}}\n</tool_call>",
        signatures.join("\n")
    )
}

/// Puts the section behind the system message, or before all where there is none; in front of what the user says first
/// where the template has no place for a system message.
pub fn tell(messages: &mut Vec<ChatMessage>, tools: &[Tool], knows_system: bool) {
    let section = section(tools);
    let first_user = messages.iter_mut().find(|message| message.role == Role::User).filter(|_| !knows_system);
    if let Some(message) = first_user {
        let said = message.content.take().unwrap_or_default();
        message.content = Some(format!("{section}\n\n{said}"));
        return;
    }
    match messages.first_mut().filter(|message| message.role == Role::System) {
        Some(message) => {
            let said = message.content.take().unwrap_or_default();
            message.content = Some(if said.is_empty() { section } else { format!("{said}\n\n{section}") });
        }
        None => messages.insert(0, ChatMessage::text(Role::System, section)),
    }
}

/// Writes calls and their answers out as text. Answers that follow each other become one message, because many
/// templates want the roles to take turns.
pub fn write_out(messages: Vec<ChatMessage>) -> Vec<ChatMessage> {
    let mut out: Vec<ChatMessage> = Vec::with_capacity(messages.len());
    let mut answering = false;
    for mut message in messages {
        if message.role == Role::Tool {
            let answer = format!("<tool_response>\n{}\n</tool_response>", message.content.unwrap_or_default());
            match out.last_mut().filter(|_| answering) {
                Some(before) => {
                    let said = before.content.take().unwrap_or_default();
                    before.content = Some(format!("{said}\n{answer}"));
                }
                None => out.push(ChatMessage::text(Role::User, answer)),
            }
            answering = true;
            continue;
        }
        answering = false;
        let mut parts: Vec<String> = message.content.take().filter(|said| !said.is_empty()).into_iter().collect();
        for call in std::mem::take(&mut message.tool_calls) {
            let arguments: Value = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
            let call = json_dumps(&json!({ "name": call.name, "arguments": arguments }), None);
            parts.push(format!("<tool_call>\n{call}\n</tool_call>"));
        }
        message.content = Some(parts.join("\n"));
        out.push(message);
    }
    out
}
