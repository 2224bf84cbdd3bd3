//! What the text of an output must be: the one constraint that a request may have, as it travels and as an engine
//! compiles it. It holds sources, not compiled grammars, so that a stream goes on at any instance.

use serde::{Deserialize, Serialize};

/// Longest source, bytes: of a schema, a grammar, or all choices together.
pub const MAX_CONSTRAINT_BYTES: usize = 128 << 10;
/// Longest regular expression, bytes.
pub const MAX_REGEX_BYTES: usize = 16 << 10;
/// Choices of one constraint.
pub const MAX_CHOICE_STRINGS: usize = 1024;

/// What an output must be. It may end exactly where it meets its constraint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Constraint {
    /// A JSON value that a schema allows.
    Json(JsonConstraint),
    /// A text that a regular expression matches as a whole (Rust's syntax, without look-around).
    Regex(String),
    /// A text of a grammar in llguidance's variant of Lark, whose first rule is `start`.
    Lark(String),
    /// One of these texts.
    Choice(Vec<String>),
}

/// A JSON schema and how it is read.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JsonConstraint {
    /// The schema as JSON text. Properties come in the order in which it names them.
    pub schema: String,
    /// Whether a keyword that cannot be enforced is an error; otherwise it is left to the model.
    pub strict: bool,
    /// Whether blanks and line feeds may stand between the parts of the value.
    pub whitespace: bool,
}

impl Constraint {
    /// Any JSON object.
    pub fn json_object() -> Self {
        let schema = r#"{"type":"object"}"#.to_owned();
        Self::Json(JsonConstraint { schema, strict: true, whitespace: true })
    }
}
