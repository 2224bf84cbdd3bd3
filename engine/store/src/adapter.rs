//! Low-rank adapters (Hu et al. 2021) in PEFT's format: a folder with `adapter_config.json` and
//! `adapter_model.safetensors`. An adapter changes W into W + scale B A for some linear layers of a base model.
//!
//! `open` checks everything against the base, and every number for being finite; afterwards the matrices are read
//! out one pair at a time.

mod config;
mod error;
mod targets;

pub use config::RANK_MAX;
pub use error::AdapterError;
pub use targets::Linear;

use crate::safetensors::{Safetensors, StoredTensor};
use crate::{GgmlType, ModelConfig, Rotation};
use config::LoraConfig;
use half::{bf16, f16};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

/// Name of an adapter's configuration.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Name of an adapter's weights.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// Longest configuration, bytes.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// What stands before a block's number in tensor names: PEFT's wrapper, and the ways in which models hold blocks.
const PREFIXES: [&str; 4] = [
    "base_model.model.model.layers.",
    "base_model.model.layers.",
    "base_model.model.model.language_model.layers.",
    "base_model.model.language_model.model.layers.",
];

/// An opened adapter, checked against its base.
#[derive(Clone)]
pub struct Adapter {
    weights: Safetensors,
    base: ModelConfig,
    rank: usize,
    scale: f32,
    /// Names of A and B.
    pairs: BTreeMap<(usize, Linear), (String, String)>,
    parameters: u64,
}

/// What an adapter adds to one matrix: `scale * B A`.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    /// `rank` rows of as many columns as the matrix has.
    pub a: Vec<f32>,
    /// As many rows as the matrix has, in the order of the base's file, of `rank` columns.
    pub b: Vec<f32>,
    pub rank: usize,
    pub scale: f32,
}

impl Adapter {
    /// Opens the adapter in a folder and checks it against its base model.
    pub fn open(folder: impl AsRef<Path>, base: &ModelConfig) -> Result<Self, AdapterError> {
        let folder = folder.as_ref();
        if !folder.is_dir() {
            return Err(AdapterError::NoFolder { path: folder.to_owned() });
        }
        let path = folder.join(CONFIG_FILE);
        let json = read_config(folder)?;
        let fields: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&json).map_err(|error| AdapterError::Json { path, message: error.to_string() })?;
        let config = LoraConfig::read(&fields)?;
        Self::check(Safetensors::open(folder.join(WEIGHTS_FILE))?, base.clone(), &config)
    }

    fn check(weights: Safetensors, base: ModelConfig, config: &LoraConfig) -> Result<Self, AdapterError> {
        config.layers.check(base.layers)?;
        let mut found = by_place(&weights, base.layers)?;
        let mut pairs = BTreeMap::new();
        let mut parameters = 0;
        let places = (0..base.layers).flat_map(|layer| Linear::ALL.map(|linear| (layer, linear)));
        for (layer, linear) in places {
            let module = format!("model.layers.{layer}.{}", linear.path());
            if !config.layers.contains(layer) || !config.targets.matches(&module) {
                continue;
            }
            let (cols, rows) = linear.shape(&base);
            let mut half = |half: Half, shape: [usize; 2]| -> Result<String, AdapterError> {
                let name = found.remove(&(layer, linear, half)).ok_or_else(|| AdapterError::MissingTensor {
                    name: format!("{}{layer}.{}.{}", PREFIXES[0], linear.path(), half.suffix()),
                })?;
                parameters += check_tensor(&weights.tensor(&name)?, shape)?;
                Ok(name)
            };
            let pair = (half(Half::A, [config.rank, cols])?, half(Half::B, [rows, config.rank])?);
            pairs.insert((layer, linear), pair);
        }
        if let Some(name) = found.into_values().next() {
            let message = "changes a layer that target_modules and layers_to_transform leave out".to_owned();
            return Err(AdapterError::Tensor { name, message });
        }
        if pairs.is_empty() {
            return Err(AdapterError::field("target_modules", "matches no linear layer of the base model"));
        }
        Ok(Self { weights, rank: config.rank, scale: config.scale, base, pairs, parameters })
    }

    /// Numbers in it.
    pub fn parameters(&self) -> u64 {
        self.parameters
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    /// What it adds to one matrix of the base; none where it changes nothing.
    pub fn low_rank(&self, layer: usize, linear: Linear) -> Option<LowRank> {
        let (a, b) = self.pairs.get(&(layer, linear))?;
        let a = numbers(&self.weights.get(a)?);
        let b = numbers(&self.weights.get(b)?);
        let b = match (self.base.rotation, linear) {
            (Rotation::Neighbours, Linear::Q | Linear::K) => interleave_heads(&b, self.base.head_dim, self.rank),
            _ => b,
        };
        Some(LowRank { a, b, rank: self.rank, scale: self.scale })
    }
}

/// Digest of an adapter's files, 64 lower-case hex digits: the same bytes are the same adapter wherever they lie.
pub fn adapter_digest(folder: impl AsRef<Path>) -> Result<String, AdapterError> {
    let folder = folder.as_ref();
    let config = read_config(folder)?;
    let mut digest = Sha256::new();
    // The length first, so that no two pairs of files make the same bytes.
    digest.update((config.len() as u64).to_le_bytes());
    digest.update(&config);
    let path = folder.join(WEIGHTS_FILE);
    let weights = crate::mapping::Mapping::open(&path).map_err(|source| AdapterError::Io { path, source })?;
    digest.update(weights.bytes());
    let mut hex = String::with_capacity(64);
    for byte in digest.finalize() {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    Ok(hex)
}

fn read_config(folder: &Path) -> Result<Vec<u8>, AdapterError> {
    let path = folder.join(CONFIG_FILE);
    let io = |source| AdapterError::Io { path: path.clone(), source };
    let bytes = std::fs::metadata(&path).map_err(io)?.len();
    if bytes > CONFIG_BYTES_MAX {
        let message = format!("{bytes} bytes, more than the limit of {CONFIG_BYTES_MAX}");
        return Err(AdapterError::Json { path, message });
    }
    std::fs::read(&path).map_err(io)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Half {
    A,
    B,
}

impl Half {
    fn suffix(self) -> &'static str {
        match self {
            Self::A => "lora_A.weight",
            Self::B => "lora_B.weight",
        }
    }
}

/// Names of all tensors by what they belong to. A tensor that belongs to nothing is refused: it would be trained
/// weights that nobody reads.
fn by_place(weights: &Safetensors, layers: usize) -> Result<BTreeMap<(usize, Linear, Half), String>, AdapterError> {
    let mut found = BTreeMap::new();
    let mut prefixes: BTreeSet<&str> = BTreeSet::new();
    for tensor in weights.tensors() {
        let unknown =
            |message: &str| AdapterError::Tensor { name: tensor.name.to_owned(), message: message.to_owned() };
        let prefix = PREFIXES.iter().find(|prefix| tensor.name.starts_with(**prefix));
        let rest = prefix.and_then(|prefix| tensor.name.strip_prefix(prefix));
        let (layer, rest) = rest.and_then(|rest| rest.split_once('.')).ok_or_else(|| {
            unknown("is no low-rank matrix of a decoder's block, which begin with base_model.model.model.layers.")
        })?;
        prefixes.extend(prefix);
        let layer: usize = layer
            .parse()
            .ok()
            .filter(|layer| *layer < layers)
            .ok_or_else(|| unknown(&format!("names layer {layer}, but the base has layers 0 to {}", layers - 1)))?;
        let place = Linear::ALL.iter().find_map(|linear| {
            let rest = rest.strip_prefix(linear.path())?.strip_prefix('.')?;
            let half = [Half::A, Half::B].into_iter().find(|half| half.suffix() == rest)?;
            Some((layer, *linear, half))
        });
        let place = place.ok_or_else(|| unknown("is no lora_A.weight or lora_B.weight of a linear layer"))?;
        found.insert(place, tensor.name.to_owned());
    }
    if prefixes.len() > 1 {
        let name = found.into_values().next().unwrap_or_default();
        return Err(AdapterError::Tensor { name, message: format!("is one of several models': {prefixes:?}") });
    }
    Ok(found)
}

/// Checks shape, type and every number; answers how many there are.
fn check_tensor(tensor: &StoredTensor<'_>, wanted: [usize; 2]) -> Result<u64, AdapterError> {
    let wrong = |message: String| Err(AdapterError::Tensor { name: tensor.name.to_owned(), message });
    if !tensor.shape.iter().copied().eq(wanted.map(|dim| dim as u64)) {
        return wrong(format!("has shape {:?}, expected {wanted:?} by the base model and r", tensor.shape));
    }
    let finite = match tensor.kind() {
        Some(GgmlType::F32) => each(tensor.bytes, f32::from_le_bytes).all(f32::is_finite),
        Some(GgmlType::F16) => each(tensor.bytes, f16::from_le_bytes).all(f16::is_finite),
        Some(GgmlType::BF16) => each(tensor.bytes, bf16::from_le_bytes).all(bf16::is_finite),
        _ => return wrong(format!("has type {}; supported: F32, F16, BF16", tensor.dtype)),
    };
    if !finite {
        return wrong("has numbers that are not finite".to_owned());
    }
    Ok(tensor.shape.iter().product())
}

fn each<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> impl Iterator<Item = T> {
    bytes.as_chunks::<N>().0.iter().map(move |bytes| read(*bytes))
}

/// A tensor whose type was checked, as f32.
fn numbers(tensor: &StoredTensor<'_>) -> Vec<f32> {
    match tensor.kind() {
        Some(GgmlType::F32) => each(tensor.bytes, f32::from_le_bytes).collect(),
        Some(GgmlType::F16) => each(tensor.bytes, |bytes| f16::from_le_bytes(bytes).to_f32()).collect(),
        _ => each(tensor.bytes, |bytes| bf16::from_le_bytes(bytes).to_f32()).collect(),
    }
}

/// Rows of queries or keys in the order in which this runtime turns them for llama: within a head, GGUF puts the two
/// rows of a rotary pair side by side, where transformers has all first ones before all second ones.
fn interleave_heads(rows: &[f32], head_dim: usize, width: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows.len());
    for head in rows.chunks_exact(head_dim * width) {
        for pair in 0..head_dim / 2 {
            for row in [pair, head_dim / 2 + pair] {
                out.extend_from_slice(&head[row * width..(row + 1) * width]);
            }
        }
    }
    out
}
