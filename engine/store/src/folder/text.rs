//! The small files of a folder: its configuration, and what says how text becomes tokens. Read without the weights,
//! by whoever needs only text.

use super::config::{context_tokens, text_part};
use super::fields::Fields;
use crate::CheckpointError;
use crate::safetensors::read_limited;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

pub const TOKENIZER_FILE: &str = "tokenizer.json";
pub(super) const CONFIG_FILE: &str = "config.json";
pub(super) const GENERATION_FILE: &str = "generation_config.json";
pub(super) const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
pub(super) const SPECIAL_TOKENS_FILE: &str = "special_tokens_map.json";
pub(super) const TEMPLATE_FILE: &str = "chat_template.jinja";

/// Longest tokenizer.json: the largest known has some 35 MB.
const TOKENIZER_BYTES_MAX: u64 = 256 << 20;
/// Longest of the other files.
const SMALL_BYTES_MAX: u64 = 16 << 20;

/// What a folder says beside its weights, as it says it: JSON objects, empty where there is no such file.
#[derive(Clone, Debug)]
pub struct TextFiles {
    folder: PathBuf,
    config_path: PathBuf,
    pub config: Map<String, Value>,
    pub generation: Map<String, Value>,
    pub tokenizer_config: Map<String, Value>,
    pub special_tokens: Map<String, Value>,
}

impl TextFiles {
    /// Reads the files. config.json and tokenizer.json must be there; the latter is not read yet.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        let config_path = folder.join(CONFIG_FILE);
        let config = object(&config_path)?;
        if !folder.join(TOKENIZER_FILE).is_file() {
            return Err(CheckpointError::NoTokenizer { folder: folder.to_owned() });
        }
        let optional = |name: &str| match folder.join(name) {
            path if path.exists() => object(&path),
            _ => Ok(Map::new()),
        };
        Ok(Self {
            config,
            generation: optional(GENERATION_FILE)?,
            tokenizer_config: optional(TOKENIZER_CONFIG_FILE)?,
            special_tokens: optional(SPECIAL_TOKENS_FILE)?,
            config_path,
            folder: folder.to_owned(),
        })
    }

    pub(super) fn fields(&self) -> Fields<'_> {
        Fields::new(&self.config_path, &self.config)
    }

    /// The text of tokenizer.json.
    pub fn tokenizer(&self) -> Result<Vec<u8>, CheckpointError> {
        Ok(read_limited(&self.folder.join(TOKENIZER_FILE), TOKENIZER_BYTES_MAX)?)
    }

    /// Longest sequence, tokens.
    pub fn context_tokens(&self) -> Result<usize, CheckpointError> {
        let fields = self.fields();
        let gemma = fields.text("model_type")?.is_some_and(|name| name.starts_with("gemma3"));
        context_tokens(&text_part(&fields)?, gemma)
    }

    /// A field of the text part of config.json, or of the whole; null is nothing.
    pub fn config_value(&self, field: &str) -> Option<&Value> {
        let inner = self.config.get("text_config").and_then(|text| text.get(field));
        inner.into_iter().chain(self.config.get(field)).find(|value| !value.is_null())
    }

    /// The chat template: a file of its own, or in tokenizer_config.json, there perhaps one of several by name.
    pub fn chat_template(&self) -> Result<Option<String>, CheckpointError> {
        let path = self.folder.join(TEMPLATE_FILE);
        if path.exists() {
            let bytes = read_limited(&path, SMALL_BYTES_MAX)?;
            let text = String::from_utf8(bytes);
            return text
                .map(Some)
                .map_err(|error| CheckpointError::Json { path: path.clone(), message: error.to_string() });
        }
        Ok(match self.tokenizer_config.get("chat_template") {
            Some(Value::String(template)) => Some(template.clone()),
            Some(Value::Array(named)) => {
                let named_default = |entry: &&Value| entry.get("name").and_then(Value::as_str) == Some("default");
                let entry = named.iter().find(named_default).or(named.first());
                entry.and_then(|entry| entry.get("template")).and_then(Value::as_str).map(str::to_owned)
            }
            _ => None,
        })
    }
}

fn object(path: &Path) -> Result<Map<String, Value>, CheckpointError> {
    let bytes = read_limited(path, SMALL_BYTES_MAX)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| CheckpointError::Json { path: path.to_owned(), message: error.to_string() })
}
