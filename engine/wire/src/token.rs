//! Whether the payload of a `data:` line is a token.
//!
//! A chat stream opens with an event that names the role and has no content, and closes with ones that
//! carry a finish reason or a usage; a time to first token that counted those would flatter everybody.
//! The payload may be cut short, so keys are searched for instead of parsing JSON.

/// Whether a payload only ends a stream: `[DONE]`, and `finished` and `failed` of the hop.
pub fn is_end(payload: &[u8]) -> bool {
    payload.starts_with(b"[") || payload.starts_with(b"{\"f")
}

/// Judges one payload, without `data:` and surrounding blanks.
pub fn is_token(payload: &[u8]) -> bool {
    if payload.is_empty() || is_end(payload) {
        return false;
    }
    if let Some(tokens) = value_of(payload, b"\"tokens\"") {
        return tokens.strip_prefix(b"[").is_some_and(|rest| !rest.trim_ascii_start().starts_with(b"]"));
    }
    if let Some(delta) = value_of(payload, b"\"delta\"") {
        return delta_has_token(delta);
    }
    if let Some(text) = value_of(payload, b"\"text\"") {
        // An empty text that does not end the stream stands for a token that shows as nothing.
        return non_empty_string(text) || value_of(payload, b"\"finish_reason\"").is_none_or(is_null);
    }
    // OpenAI errors, and the event with the usage alone.
    const NOT_TOKENS: [&[u8]; 2] = [b"\"error\"", b"\"choices\""];
    !NOT_TOKENS.iter().any(|key| value_of(payload, key).is_some())
}

/// Content, reasoning or a tool call inside a chat delta.
fn delta_has_token(delta: &[u8]) -> bool {
    const TEXTS: [&[u8]; 4] = [b"\"content\"", b"\"reasoning_content\"", b"\"reasoning\"", b"\"refusal\""];
    if TEXTS.iter().any(|key| value_of(delta, key).is_some_and(non_empty_string)) {
        return true;
    }
    value_of(delta, b"\"tool_calls\"").is_some_and(|calls| calls.starts_with(b"["))
}

fn non_empty_string(value: &[u8]) -> bool {
    matches!(value, [b'"', next, ..] if *next != b'"')
}

fn is_null(value: &[u8]) -> bool {
    value.starts_with(b"null")
}

/// What follows the first `key :`.
fn value_of<'a>(json: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let mut rest = json;
    loop {
        let at = rest.windows(key.len()).position(|window| window == key)?;
        rest = &rest[at + key.len()..];
        if let Some(value) = rest.trim_ascii_start().strip_prefix(b":") {
            return Some(value.trim_ascii_start());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_token;

    #[test]
    fn tokens_are_told_from_what_surrounds_them() {
        let table = [
            (r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#, false),
            (r#"{"choices": [{"delta": {"content": "", "role": "assistant"}}]}"#, false),
            (r#"{"choices":[{"delta":{"role":"assistant","content":null}}]}"#, false),
            (r#"{"choices":[{"delta":{"role":"assistant"}}]}"#, false),
            (r#"{"choices":[{"delta":{"role":"assistant","content":"Hi"}}]}"#, true),
            (r#"{"choices": [{"delta": {"content": "\"content\""}}]}"#, true),
            (r#"{"choices":[{"delta":{"content":"","reasoning_content":"so"}}]}"#, true),
            (r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#, true),
            (r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#, false),
            (r#"{"choices":[],"usage":{"prompt_tokens":3}}"#, false),
            (r#"{"choices":[{"text":"a","finish_reason":null}]}"#, true),
            (r#"{"choices":[{"text":"","finish_reason":null}]}"#, true),
            (r#"{"choices":[{"text":"","finish_reason":"length"}]}"#, false),
            (r#"{"tokens":[17]}"#, true),
            (r#"{"tokens":[17],"logprobs":[{"logprob":-0.5,"top":[[17,-0.5]]}]}"#, true),
            (r#"{"tokens":[]}"#, false),
            (
                r#"{"choices":[{"text":"a","logprobs":{"tokens":["a"],"top_logprobs":[{"a":-0.5}]},"finish_reason":null}]}"#,
                true,
            ),
            (r#"{"choices":[{"delta":{"content":"a"},"logprobs":{"content":[{"token":"a","logprob":-0.5}]}}]}"#, true),
            (r#"{"finished":{"reason":"stop","cached_tokens":0}}"#, false),
            (r#"{"failed":{"status":500,"code":"x","message":"y"}}"#, false),
            (r#"{"error":{"message":"x"}}"#, false),
            ("[DONE]", false),
            ("", false),
            ("plain words", true),
        ];
        for (payload, expected) in table {
            assert_eq!(is_token(payload.as_bytes()), expected, "{payload}");
        }
    }
}
