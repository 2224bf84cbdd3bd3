//! How a model writes its calls: the form that its template was made for.

/// A form of calls in text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes, Qwen, SmolLM2 (which writes an array).
    Hermes,
    /// `{"name": ..., "parameters": {...}}` as the whole answer, perhaps after `<|python_tag|>`: Llama 3.
    Llama,
    /// `[TOOL_CALLS][{"name": ..., "arguments": {...}}]`: Mistral.
    Mistral,
}

impl ToolFormat {
    /// The form that a template's source speaks of.
    pub fn of_template(source: &str) -> Self {
        let found = [Self::Mistral, Self::Hermes, Self::Llama].into_iter().find(|form| source.contains(form.opening()));
        match found {
            Some(form) => form,
            // Llama's smaller models have calls without the tag, told by their word for arguments.
            None if source.contains("\"parameters\"") => Self::Llama,
            None => Self::Hermes,
        }
    }

    /// The text before calls. In some vocabularies it is a special token, which text leaves out otherwise.
    pub fn opening(self) -> &'static str {
        match self {
            Self::Hermes => "<tool_call>",
            Self::Llama => "<|python_tag|>",
            Self::Mistral => "[TOOL_CALLS]",
        }
    }

    /// The text after calls, which models forget at times.
    pub fn closing(self) -> Option<&'static str> {
        match self {
            Self::Hermes => Some("</tool_call>"),
            Self::Llama | Self::Mistral => None,
        }
    }

    /// Whether an answer that begins with a call needs no opening.
    pub fn may_be_bare(self) -> bool {
        self == Self::Llama
    }

    /// What a call with these arguments looks like: before them and after them.
    pub fn written(self, name: &str) -> (String, &'static str) {
        match self {
            Self::Hermes => (format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": "), "}\n</tool_call>"),
            Self::Llama => (format!("{{\"name\": \"{name}\", \"parameters\": "), "}"),
            Self::Mistral => (format!("[TOOL_CALLS][{{\"name\": \"{name}\", \"arguments\": "), "}]"),
        }
    }

    /// What stands between two calls so written; none where there is one call to an answer.
    pub fn separator(self) -> Option<&'static str> {
        match self {
            Self::Hermes => Some("\n"),
            Self::Llama | Self::Mistral => None,
        }
    }
}
