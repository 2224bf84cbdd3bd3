//! adapter_config.json (PEFT's `LoraConfig`), read as a closed world: what changes the arithmetic and is not
//! computed here is refused by its name, also when it is younger than this code. Fields at their neutral value
//! (null, false, empty) change nothing and are passed over.

use super::error::AdapterError;
use super::targets::{Layers, Targets};
use serde_json::{Map, Value};

/// Ranks that are taken; PEFT's own default is 8.
pub const RANK_MAX: usize = 256;

/// What an adapter's configuration comes to.
#[derive(Debug)]
pub(super) struct LoraConfig {
    pub rank: usize,
    /// Factor of the product B A.
    pub scale: f32,
    pub targets: Targets,
    pub layers: Layers,
}

/// Fields that say where an adapter comes from or how it was trained, not what it computes.
const IGNORED: [&str; 22] = [
    "arrow_config",
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "r",
    "lora_alpha",
    "use_rslora",
    "target_modules",
    "layers_to_transform",
    "layers_pattern",
];

/// Ways to begin training that leave the base's weights as they are. The others (PiSSA, OLoRA, LoftQ, CorDA)
/// change them, so that the adapter fits only a base that this one is not.
const HARMLESS_INIT: [&str; 3] = ["gaussian", "eva", "orthogonal"];

impl LoraConfig {
    pub fn read(fields: &Map<String, Value>) -> Result<Self, AdapterError> {
        for (field, value) in fields {
            check_field(field, value)?;
        }
        if !fields.contains_key("peft_type") {
            return Err(AdapterError::field("peft_type", "is missing; only \"LORA\" is supported"));
        }
        let rank = rank(fields)?;
        let alpha = match fields.get("lora_alpha") {
            None | Some(Value::Null) => return Err(AdapterError::field("lora_alpha", "is missing")),
            Some(value) => value.as_f64().filter(|alpha| alpha.is_finite() && alpha.abs() <= 1e6).ok_or_else(|| {
                AdapterError::field("lora_alpha", format!("is {value}, expected a number of at most a million"))
            })?,
        };
        let stabilised = match fields.get("use_rslora") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(flag)) => *flag,
            Some(other) => return Err(AdapterError::field("use_rslora", format!("is {other}, expected a boolean"))),
        };
        let divisor = if stabilised { (rank as f64).sqrt() } else { rank as f64 };
        Ok(Self {
            rank,
            scale: (alpha / divisor) as f32,
            targets: Targets::read(fields.get("target_modules").unwrap_or(&Value::Null))?,
            layers: Layers::read(fields.get("layers_to_transform").unwrap_or(&Value::Null))?,
        })
    }
}

fn rank(fields: &Map<String, Value>) -> Result<usize, AdapterError> {
    let value = fields.get("r").ok_or_else(|| AdapterError::field("r", "is missing"))?;
    let rank = value.as_u64().and_then(|rank| usize::try_from(rank).ok());
    rank.filter(|rank| (1..=RANK_MAX).contains(rank))
        .ok_or_else(|| AdapterError::field("r", format!("is {value}; ranks from 1 to {RANK_MAX} are supported")))
}

fn check_field(field: &str, value: &Value) -> Result<(), AdapterError> {
    let only = |supported: &str| {
        let shown: String = value.to_string().chars().take(80).collect();
        Err(AdapterError::field(field, format!("is {shown}; only {supported} is supported")))
    };
    let text = value.as_str();
    match field {
        "peft_type" if text != Some("LORA") => only("\"LORA\""),
        "bias" if !value.is_null() && text != Some("none") => only("\"none\""),
        "task_type" if !value.is_null() && text != Some("CAUSAL_LM") => only("\"CAUSAL_LM\""),
        "layers_pattern" if !is_neutral(value) && !names_layers(value) => only("\"layers\""),
        "init_lora_weights" if !(value.is_boolean() || text.is_some_and(|init| HARMLESS_INIT.contains(&init))) => {
            only("a boolean, \"gaussian\", \"eva\" or \"orthogonal\" (others change the base's own weights)")
        }
        "peft_type" | "bias" | "task_type" | "init_lora_weights" => Ok(()),
        known if IGNORED.contains(&known) => Ok(()),
        _ if is_neutral(value) => Ok(()),
        "fan_in_fan_out" | "use_dora" | "lora_bias" | "use_qalora" | "use_bdlora" => only("false"),
        "modules_to_save"
        | "exclude_modules"
        | "target_parameters"
        | "trainable_token_indices"
        | "layer_replication"
        | "alora_invocation_tokens" => only("null"),
        "rank_pattern" | "alpha_pattern" => only("{}"),
        _ => {
            let shown: String = value.to_string().chars().take(80).collect();
            Err(AdapterError::field(field, format!("is {shown}, and this runtime does not know what it means")))
        }
    }
}

fn is_neutral(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

fn names_layers(value: &Value) -> bool {
    let is_layers = |value: &Value| value.as_str() == Some("layers");
    is_layers(value) || value.as_array().is_some_and(|items| items.iter().all(is_layers))
}
