//! A sentence embedder in Hugging Face's layout: a folder with config.json, model.safetensors and tokenizer.json, and
//! what sentence-transformers puts beside them (pooling, longest text). Opening checks every tensor that is used.

mod error;
mod files;

pub use error::EncoderError;

use crate::{GgmlType, Safetensors, Summary, TensorData};
use files::ModelFile;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How the rows of a text become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first one, of the token that begins every text.
    FirstToken,
}

/// Shorter vectors that the model was trained for (Matryoshka representation learning, Kusupati et al. 2022).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ShorterVectors {
    /// None: the beginning of a vector is no vector.
    None,
    /// Of any length.
    Any,
    /// Of these lengths.
    Of(Vec<usize>),
}

/// What defines an encoder apart from its weights.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EncoderConfig {
    pub layers: usize,
    /// Width of the residual stream, and of the vectors.
    pub width: usize,
    /// Width inside the feed-forward network.
    pub ffn_width: usize,
    pub heads: usize,
    pub vocab: usize,
    /// Longest text, tokens, its first and last ones included.
    pub context_tokens: usize,
    pub norm_epsilon: f32,
    pub pooling: Pooling,
    pub shorter: ShorterVectors,
}

/// An opened encoder. Cloning shares the mappings.
#[derive(Clone, Debug)]
pub struct EncoderCheckpoint {
    folder: PathBuf,
    config: EncoderConfig,
    weights: Safetensors,
    /// What stands before each tensor's name: nothing, or `bert.` where the encoder is part of another model.
    prefix: &'static str,
}

/// Names under which whole models keep their encoder.
const PREFIXES: [&str; 2] = ["", "bert."];

impl EncoderCheckpoint {
    /// Whether this is a folder whose config.json names an encoder: a quick look that reads no weight. Folders
    /// that cannot be read are none; opening them says why.
    pub fn is_one(folder: &Path) -> bool {
        files::model_type(folder).is_some_and(|name| name == files::MODEL_TYPE)
    }

    /// Opens and checks a folder. Costs its headers; no weight is read.
    ///
    /// # Errors
    /// Names the file and the field or tensor at fault.
    pub fn open(folder: &Path) -> Result<Self, EncoderError> {
        let file = ModelFile::read(folder)?;
        let config = file.config(folder)?;
        let weights = Safetensors::open_folder(folder)?;
        let has = |prefix: &&&str| weights.get(&format!("{prefix}{WORDS}")).is_some();
        let prefix = PREFIXES.iter().find(has).copied().unwrap_or_default();
        let checkpoint = Self { folder: folder.to_owned(), config, weights, prefix };
        checkpoint.check()?;
        Ok(checkpoint)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Numbers in all tensors that are used.
    pub fn parameters(&self) -> u64 {
        self.shapes().iter().map(|(_, dims)| dims.iter().product::<usize>() as u64).sum()
    }

    /// Bytes of those tensors.
    pub fn weight_bytes(&self) -> u64 {
        let bytes = |(name, _): &(String, _)| self.tensor(name).map_or(0, |data| data.len() as u64);
        self.shapes().iter().map(bytes).sum()
    }

    /// Bytes of the weight files.
    pub fn file_bytes(&self) -> u64 {
        self.weights.file_bytes()
    }

    /// Starts reading the weights in the background.
    pub fn will_need(&self) {
        self.weights.will_need();
    }

    /// Tensor type -> (number of tensors, bytes), of those that are used.
    pub fn types(&self) -> BTreeMap<String, (u64, u64)> {
        let mut types: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for data in self.shapes().iter().filter_map(|(name, _)| self.tensor(name).ok()) {
            let entry = types.entry(data.kind().to_string()).or_default();
            *entry = (entry.0 + 1, entry.1 + data.len() as u64);
        }
        types
    }

    /// What it is, in a few numbers.
    pub fn inspect(&self) -> Summary {
        Summary {
            architecture: files::MODEL_TYPE.to_owned(),
            name: None,
            parameters: self.parameters(),
            quantisation: self.types(),
            context_tokens: Some(self.config.context_tokens as u64),
            layers: Some(self.config.layers as u64),
            vocab: Some(self.config.vocab as u64),
            file_bytes: self.file_bytes(),
            weight_bytes: self.weight_bytes(),
            chat_template: false,
            unsupported: None,
        }
    }

    /// A tensor by its name in a BERT model. A type that kernels do not compute with is an error.
    ///
    /// # Errors
    /// When there is none of that name, or of another type.
    pub fn tensor(&self, name: &str) -> Result<TensorData, EncoderError> {
        let name = format!("{}{name}", self.prefix);
        let data = self.weights.tensor_data(&name)?;
        match data.kind() {
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => Ok(data),
            kind => Err(EncoderError::Tensor { name, message: format!("type {kind}, expected F32, F16 or BF16") }),
        }
    }

    fn check(&self) -> Result<(), EncoderError> {
        for (name, dims) in self.shapes() {
            let data = self.tensor(&name)?;
            if !data.dims().iter().rev().copied().eq(dims.iter().map(|dim| *dim as u64)) {
                let found: Vec<u64> = data.dims().iter().rev().copied().collect();
                let message = format!("shape {found:?}, expected {dims:?} by config.json");
                return Err(EncoderError::Tensor { name: format!("{}{name}", self.prefix), message });
            }
        }
        Ok(())
    }

    /// Every tensor that is used, with its shape.
    fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let EncoderConfig { width, ffn_width, vocab, layers, .. } = self.config;
        let rows = |name: &str, otherwise: usize| {
            let found = self.weights.get(&format!("{}{name}", self.prefix));
            found.and_then(|tensor| tensor.shape.first().copied()).map_or(otherwise, |rows| rows as usize)
        };
        // Positions may be more than texts use, and types more than the one of single texts.
        let positions = rows(POSITIONS, 0).max(self.config.context_tokens);
        let types = rows(TYPES, 0).max(1);
        let mut shapes = vec![
            (WORDS.to_owned(), vec![vocab, width]),
            (POSITIONS.to_owned(), vec![positions, width]),
            (TYPES.to_owned(), vec![types, width]),
        ];
        let mut norm = |name: String| {
            shapes.extend(["weight", "bias"].map(|part| (format!("{name}.{part}"), vec![width])));
        };
        norm("embeddings.LayerNorm".to_owned());
        for layer in 0..layers {
            norm(format!("encoder.layer.{layer}.attention.output.LayerNorm"));
            norm(format!("encoder.layer.{layer}.output.LayerNorm"));
        }
        for layer in 0..layers {
            for (name, out, input) in [
                ("attention.self.query", width, width),
                ("attention.self.key", width, width),
                ("attention.self.value", width, width),
                ("attention.output.dense", width, width),
                ("intermediate.dense", ffn_width, width),
                ("output.dense", width, ffn_width),
            ] {
                shapes.push((format!("encoder.layer.{layer}.{name}.weight"), vec![out, input]));
                shapes.push((format!("encoder.layer.{layer}.{name}.bias"), vec![out]));
            }
        }
        shapes
    }
}

const WORDS: &str = "embeddings.word_embeddings.weight";
const POSITIONS: &str = "embeddings.position_embeddings.weight";
const TYPES: &str = "embeddings.token_type_embeddings.weight";
