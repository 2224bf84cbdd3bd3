//! A decoder in a Hugging Face folder: config.json, tokenizer.json and safetensors. Opening reads the configuration
//! and the headers, and plans each tensor that the model will ask for: where it lies and what is to be done to it.
//! Matrices are views of the files, unless quantisation at load was asked for.

mod config;
mod fields;
mod files;
mod names;
mod rope;
mod text;

pub(crate) use files::files;
pub use files::{FOLDER_FILES, Stamp, revision, stamp};
pub use text::{TOKENIZER_FILE, TextFiles};

use crate::validate::{ROPE_FACTORS, expected};
use crate::{
    CheckpointError, GgmlType, ModelConfig, Quantisation, Safetensors, Summary, TensorData, TensorShape, quantise,
};
use names::Names;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

/// An opened folder. Cloning shares the mappings.
#[derive(Clone)]
pub struct Folder {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    /// The folder's own name for its architecture.
    model_type: String,
    config: ModelConfig,
    weights: Safetensors,
    /// By GGUF's name.
    tensors: BTreeMap<String, Planned>,
    chat_template: bool,
}

/// A tensor to be.
struct Planned {
    source: Source,
    dims: Vec<u64>,
    kind: GgmlType,
}

enum Source {
    /// As it is stored under this name.
    Stored(String),
    /// To f32, with this added.
    Vector(String, f32),
    /// Rounded to the planned type.
    Quantised(String),
    /// Worked out from the configuration.
    Made(TensorData),
}

impl Folder {
    /// Opens and checks a folder: configuration, the tokenizer's being there, every tensor. No weight is read.
    pub fn open(path: &Path, quantisation: Option<Quantisation>) -> Result<Self, CheckpointError> {
        let text = TextFiles::open(path)?;
        let (model_type, config, rope_factors) = config::read(&text.fields())?;
        let weights = Safetensors::open_folder(path)?;
        let names = Names::new(&weights, config.architecture);
        let mut tensors = BTreeMap::new();
        for tensor in expected(&config) {
            let stored = names.stored(&tensor.name);
            let planned = plan(path, &weights, stored, &tensor.dims, config.architecture, quantisation)?;
            tensors.insert(tensor.name, planned);
        }
        if let Some(factors) = rope_factors {
            let dims = vec![factors.len() as u64];
            let bytes = factors.iter().flat_map(|x| x.to_le_bytes()).collect();
            let made = TensorData::from_bytes(GgmlType::F32, dims.clone(), bytes).map(Source::Made);
            tensors.extend(made.map(|source| (ROPE_FACTORS.to_owned(), Planned { source, dims, kind: GgmlType::F32 })));
        }
        refuse_unread(path, &weights, &names, &tensors)?;
        let chat_template = text.chat_template()?.is_some();
        let inner = Inner { path: path.to_owned(), model_type, config, weights, tensors, chat_template };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub fn config(&self) -> &ModelConfig {
        &self.inner.config
    }

    pub(crate) fn tensors(&self) -> impl Iterator<Item = TensorShape<'_>> {
        self.inner.tensors.iter().map(|(name, planned)| TensorShape { name, dims: &planned.dims, kind: planned.kind })
    }

    pub(crate) fn has_tensor(&self, name: &str) -> bool {
        self.inner.tensors.contains_key(name)
    }

    pub(crate) fn tensor_data(&self, name: &str) -> Result<TensorData, CheckpointError> {
        let wrong = |name: &str, message: String| CheckpointError::Tensor {
            folder: self.inner.path.clone(),
            name: name.to_owned(),
            message,
        };
        let planned = self.inner.tensors.get(name).ok_or_else(|| wrong(name, "is missing".into()))?;
        let (stored, bytes) = match &planned.source {
            Source::Made(data) => return Ok(data.clone()),
            Source::Stored(stored) => return Ok(self.inner.weights.tensor_data(stored)?),
            Source::Vector(stored, add) => {
                let data = self.inner.weights.tensor_data(stored)?;
                let mut numbers = vec![0.0; planned.dims[0] as usize];
                quantise::widen(data.kind(), &data, &mut numbers);
                (stored, numbers.iter().flat_map(|x| (x + add).to_le_bytes()).collect())
            }
            Source::Quantised(stored) => {
                let data = self.inner.weights.tensor_data(stored)?;
                let bytes = quantise::rows(&data, planned.kind).map_err(|error| wrong(stored, error.to_string()))?;
                (stored, bytes)
            }
        };
        TensorData::from_bytes(planned.kind, planned.dims.clone(), bytes)
            .ok_or_else(|| wrong(stored, format!("cannot become {} of shape {:?}", planned.kind, planned.dims)))
    }

    pub(crate) fn will_need(&self) {
        self.inner.weights.will_need();
    }

    pub(crate) fn inspect(&self) -> Summary {
        let config = &self.inner.config;
        let mut summary = Summary {
            architecture: self.inner.model_type.clone(),
            name: None,
            parameters: 0,
            quantisation: BTreeMap::new(),
            context_tokens: Some(config.context_tokens as u64),
            layers: Some(config.layers as u64),
            vocab: Some(config.vocab as u64),
            file_bytes: self.inner.weights.file_bytes(),
            weight_bytes: 0,
            chat_template: self.inner.chat_template,
            unsupported: None,
        };
        self.tensors().for_each(|tensor| summary.count(tensor));
        summary
    }
}

impl std::fmt::Debug for Folder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Folder({}, {} tensors)", self.inner.path.display(), self.inner.tensors.len())
    }
}

/// Checks a stored tensor against what the model expects.
fn plan(
    folder: &Path,
    weights: &Safetensors,
    stored: String,
    dims: &[u64],
    architecture: crate::Architecture,
    quantisation: Option<Quantisation>,
) -> Result<Planned, CheckpointError> {
    let wrong =
        |message: String| Err(CheckpointError::Tensor { folder: folder.to_owned(), name: stored.clone(), message });
    let Some(tensor) = weights.get(&stored) else { return wrong("is missing".into()) };
    let shape: Vec<u64> = dims.iter().rev().copied().collect();
    if tensor.shape != shape {
        return wrong(format!("has shape {:?}, expected {shape:?} by config.json", tensor.shape));
    }
    let kind = match tensor.kind() {
        Some(kind @ (GgmlType::F32 | GgmlType::F16 | GgmlType::BF16)) => kind,
        _ => return wrong(format!("has type {}; F32, F16 and BF16 are supported", tensor.dtype)),
    };
    if let [_] = dims {
        let add = names::norm_offset(architecture, &stored);
        return Ok(Planned { source: Source::Vector(stored, add), dims: dims.to_vec(), kind: GgmlType::F32 });
    }
    let rounded = quantisation.map(|to| to.of(names::is_vocabulary(&stored)));
    Ok(match rounded.filter(|to| dims[0].is_multiple_of(to.block_len())) {
        None => Planned { source: Source::Stored(stored), dims: dims.to_vec(), kind },
        Some(kind) => Planned { source: Source::Quantised(stored), dims: dims.to_vec(), kind },
    })
}

/// Tensors of the decoder that would change the result but that nothing would read.
fn refuse_unread(
    folder: &Path,
    weights: &Safetensors,
    names: &Names,
    tensors: &BTreeMap<String, Planned>,
) -> Result<(), CheckpointError> {
    let stored = |planned: &Planned| match &planned.source {
        Source::Stored(name) | Source::Vector(name, _) | Source::Quantised(name) => Some(name.clone()),
        Source::Made(_) => None,
    };
    let read: BTreeSet<String> = tensors.values().filter_map(stored).collect();
    for tensor in weights.tensors() {
        if !read.contains(tensor.name) && names.matters(tensor.name) {
            let message = "is not supported by this runtime in this architecture".to_owned();
            return Err(CheckpointError::Tensor { folder: folder.to_owned(), name: tensor.name.to_owned(), message });
        }
    }
    Ok(())
}
