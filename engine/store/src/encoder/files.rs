//! The JSON files of an encoder's folder: config.json, and what sentence-transformers adds.

use super::{EncoderConfig, EncoderError, Pooling, ShorterVectors};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::path::Path;

/// `model_type` of the encoders that can be run.
pub(super) const MODEL_TYPE: &str = "bert";

/// Largest file that is read: they are small, and a folder may hold anything.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Sizes are capped so that products of two stay far inside 64 bits.
const SIZE_MAX: usize = 1 << 24;

/// config.json, as far as it matters.
#[derive(Deserialize)]
pub(super) struct ModelFile {
    model_type: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "default_epsilon")]
    layer_norm_eps: f32,
    #[serde(default)]
    hidden_act: Option<String>,
    #[serde(default)]
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
    #[serde(default)]
    is_matryoshka: bool,
    #[serde(default)]
    matryoshka_dimensions: Option<Vec<usize>>,
}

fn default_epsilon() -> f32 {
    1e-12
}

#[derive(Deserialize)]
struct TypeFile {
    model_type: String,
}

/// sentence_bert_config.json.
#[derive(Deserialize)]
struct SentenceFile {
    #[serde(default)]
    max_seq_length: Option<usize>,
}

/// 1_Pooling/config.json.
#[derive(Default, Deserialize)]
#[serde(default)]
struct PoolingFile {
    pooling_mode_cls_token: bool,
    pooling_mode_mean_tokens: bool,
    pooling_mode_max_tokens: bool,
    pooling_mode_mean_sqrt_len_tokens: bool,
    pooling_mode_weightedmean_tokens: bool,
    pooling_mode_lasttoken: bool,
}

/// One row of modules.json.
#[derive(Deserialize)]
struct ModuleRow {
    #[serde(rename = "type")]
    kind: String,
}

/// Modules of sentence-transformers that are computed here.
const MODULES: [&str; 3] = ["Transformer", "Pooling", "Normalize"];

/// `model_type` of a folder's config.json.
pub(super) fn model_type(folder: &Path) -> Option<String> {
    read::<TypeFile>(&folder.join("config.json")).ok().flatten().map(|file| file.model_type)
}

impl ModelFile {
    pub fn read(folder: &Path) -> Result<Self, EncoderError> {
        let path = folder.join("config.json");
        read(&path)?.ok_or_else(|| EncoderError::File { path, message: "there is no such file".to_owned() })
    }

    /// The configuration, checked for what the arithmetic relies on.
    pub fn config(self, folder: &Path) -> Result<EncoderConfig, EncoderError> {
        self.check(folder)?;
        let limit = read::<SentenceFile>(&folder.join("sentence_bert_config.json"))?
            .and_then(|file| file.max_seq_length)
            .unwrap_or(self.max_position_embeddings);
        check_modules(folder)?;
        Ok(EncoderConfig {
            layers: self.num_hidden_layers,
            width: self.hidden_size,
            ffn_width: self.intermediate_size,
            heads: self.num_attention_heads,
            vocab: self.vocab_size,
            context_tokens: limit.clamp(1, self.max_position_embeddings),
            norm_epsilon: self.layer_norm_eps,
            pooling: pooling(folder)?,
            shorter: match (self.matryoshka_dimensions, self.is_matryoshka) {
                (Some(dimensions), _) => ShorterVectors::Of(dimensions),
                (None, true) => ShorterVectors::Any,
                (None, false) => ShorterVectors::None,
            },
        })
    }

    fn check(&self, folder: &Path) -> Result<(), EncoderError> {
        let wrong = |field, message| Err(EncoderError::Field { path: folder.join("config.json"), field, message });
        if self.model_type != MODEL_TYPE || self.is_decoder {
            return wrong(
                "model_type",
                format!("{:?} is no encoder that can be run: {MODEL_TYPE:?} is", self.model_type),
            );
        }
        for (field, size) in [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            if !(1..=SIZE_MAX).contains(&size) {
                return wrong(field, format!("{size} is outside 1..={SIZE_MAX}"));
            }
        }
        if !self.hidden_size.is_multiple_of(8 * self.num_attention_heads) {
            let message =
                format!("{} is no multiple of 8 for each of {} heads", self.hidden_size, self.num_attention_heads);
            return wrong("hidden_size", message);
        }
        if !self.intermediate_size.is_multiple_of(8) {
            return wrong("intermediate_size", format!("{} is no multiple of 8", self.intermediate_size));
        }
        if !(self.layer_norm_eps.is_finite() && self.layer_norm_eps > 0.0) {
            return wrong("layer_norm_eps", format!("{} is not positive", self.layer_norm_eps));
        }
        let activation = self.hidden_act.as_deref().unwrap_or("gelu");
        if activation != "gelu" {
            return wrong("hidden_act", format!("{activation:?} is not supported: \"gelu\" is"));
        }
        let positions = self.position_embedding_type.as_deref().unwrap_or("absolute");
        if positions != "absolute" {
            return wrong("position_embedding_type", format!("{positions:?} is not supported: \"absolute\" is"));
        }
        Ok(())
    }
}

/// Mean where nothing is said, as sentence-transformers does with a plain model.
fn pooling(folder: &Path) -> Result<Pooling, EncoderError> {
    let path = folder.join("1_Pooling").join("config.json");
    let Some(file) = read::<PoolingFile>(&path)? else { return Ok(Pooling::Mean) };
    let others = file.pooling_mode_max_tokens
        || file.pooling_mode_mean_sqrt_len_tokens
        || file.pooling_mode_weightedmean_tokens
        || file.pooling_mode_lasttoken;
    match (file.pooling_mode_mean_tokens, file.pooling_mode_cls_token, others) {
        (true, false, false) => Ok(Pooling::Mean),
        (false, true, false) => Ok(Pooling::FirstToken),
        _ => {
            let message = "exactly one of pooling_mode_mean_tokens and pooling_mode_cls_token can be used".to_owned();
            Err(EncoderError::Field { path, field: "pooling_mode", message })
        }
    }
}

/// A module that nothing would compute must be refused, or the model would answer wrongly.
fn check_modules(folder: &Path) -> Result<(), EncoderError> {
    let path = folder.join("modules.json");
    let rows: Vec<ModuleRow> = read(&path)?.unwrap_or_default();
    let unknown = rows.iter().find(|row| {
        let name = row.kind.rsplit('.').next().unwrap_or_default();
        !MODULES.contains(&name)
    });
    match unknown {
        None => Ok(()),
        Some(row) => {
            let message = format!("module {:?} is not supported: {MODULES:?} are", row.kind);
            Err(EncoderError::Field { path, field: "type", message })
        }
    }
}

/// A JSON file; none when there is no such file.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, EncoderError> {
    let failed = |message: String| EncoderError::File { path: path.to_owned(), message };
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error.to_string())),
    };
    if metadata.len() > FILE_BYTES_MAX {
        return Err(failed(format!("{} bytes are more than the {FILE_BYTES_MAX} that are read", metadata.len())));
    }
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    serde_json::from_str(&text).map(Some).map_err(|error| failed(error.to_string()))
}
