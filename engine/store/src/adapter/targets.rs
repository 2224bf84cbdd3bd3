//! Which linear layers an adapter changes, by PEFT's rules (`check_target_module_exists`): a list matches the end of
//! a module's path at a dot, a string must match the whole path as a regular expression, and "all-linear" is every
//! linear layer of the blocks.

use super::error::AdapterError;
use crate::ModelConfig;
use regex::Regex;
use serde_json::Value;

/// A linear layer of a decoder's block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Linear {
    Q,
    K,
    V,
    Output,
    Gate,
    Up,
    Down,
}

impl Linear {
    /// All of them, in the order in which a block uses them.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::Output, Self::Gate, Self::Up, Self::Down];

    /// As transformers names it inside a block.
    pub fn path(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::Output => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// Columns and rows of its matrix.
    pub fn shape(self, config: &ModelConfig) -> (usize, usize) {
        match self {
            Self::Q => (config.width, config.q_width()),
            Self::K | Self::V => (config.width, config.kv_width()),
            Self::Output => (config.q_width(), config.width),
            Self::Gate | Self::Up => (config.width, config.ffn_width),
            Self::Down => (config.ffn_width, config.width),
        }
    }
}

/// `target_modules`.
#[derive(Debug)]
pub(super) enum Targets {
    All,
    Names(Vec<String>),
    Pattern(Regex),
}

const FIELD: &str = "target_modules";

impl Targets {
    pub fn read(value: &Value) -> Result<Self, AdapterError> {
        match value {
            Value::String(text) if text.eq_ignore_ascii_case("all-linear") => Ok(Self::All),
            // PEFT asks for a match of the whole path.
            Value::String(pattern) => match Regex::new(&format!("^(?:{pattern})$")) {
                Ok(pattern) => Ok(Self::Pattern(pattern)),
                Err(error) => {
                    let error = error.to_string().replace('\n', " ");
                    Err(AdapterError::field(FIELD, format!("is no regular expression that can be used here: {error}")))
                }
            },
            Value::Array(items) => {
                let names: Option<Vec<String>> = items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
                let names = names.ok_or_else(|| AdapterError::field(FIELD, "has items that are no strings"))?;
                match names.iter().find(|name| !Linear::ALL.iter().any(|linear| may_match(name, *linear))) {
                    None if names.is_empty() => Err(AdapterError::field(FIELD, "is empty")),
                    None => Ok(Self::Names(names)),
                    Some(name) => {
                        let known = Linear::ALL.map(|linear| linear.path().rsplit('.').next().unwrap_or_default());
                        let message =
                            format!("names {name:?}, which cannot be adapted; supported: {}", known.join(", "));
                        Err(AdapterError::field(FIELD, message))
                    }
                }
            }
            Value::Null => Err(AdapterError::field(FIELD, "is missing")),
            _ => Err(AdapterError::field(FIELD, "is neither a list of names nor a regular expression")),
        }
    }

    /// Whether the module at a path is changed.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::All => true,
            Self::Names(names) => names.iter().any(|name| ends_at_dot(path, name)),
            Self::Pattern(pattern) => pattern.is_match(path),
        }
    }
}

fn ends_at_dot(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// Whether a name can mean this layer of any block: one may end with the other.
fn may_match(name: &str, linear: Linear) -> bool {
    !name.is_empty() && (ends_at_dot(linear.path(), name) || ends_at_dot(name, linear.path()))
}

/// `layers_to_transform`: none for all.
#[derive(Debug)]
pub(super) struct Layers(Option<Vec<usize>>);

impl Layers {
    pub fn read(value: &Value) -> Result<Self, AdapterError> {
        let index = |value: &Value| value.as_u64().and_then(|index| usize::try_from(index).ok());
        let found = match value {
            Value::Null => return Ok(Self(None)),
            Value::Array(items) if items.is_empty() => return Ok(Self(None)),
            Value::Array(items) => items.iter().map(index).collect(),
            one => index(one).map(|index| vec![index]),
        };
        match found {
            Some(layers) => Ok(Self(Some(layers))),
            None => Err(AdapterError::field("layers_to_transform", "is neither a layer's number nor a list of them")),
        }
    }

    /// Refuses numbers of layers that the base does not have.
    pub fn check(&self, layers: usize) -> Result<(), AdapterError> {
        match self.0.iter().flatten().find(|layer| **layer >= layers) {
            None => Ok(()),
            Some(layer) => {
                let message = format!("names layer {layer}, but the base has layers 0 to {}", layers - 1);
                Err(AdapterError::field("layers_to_transform", message))
            }
        }
    }

    pub fn contains(&self, layer: usize) -> bool {
        self.0.as_ref().is_none_or(|layers| layers.contains(&layer))
    }
}
