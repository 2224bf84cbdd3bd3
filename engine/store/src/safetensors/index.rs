//! `model.safetensors.index.json`: which shard holds which tensor. Its file names come from outside and must not
//! lead out of the folder.

use super::SafetensorsError;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

/// Longest index, bytes.
const BYTES_MAX: u64 = 64 << 20;
/// Most shards: the largest models have some hundreds.
const SHARDS_MAX: usize = 4096;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Reads an index: the shard's file name of each tensor.
pub(super) fn read(path: &Path) -> Result<BTreeMap<String, String>, SafetensorsError> {
    parse(path, &read_limited(path, BYTES_MAX)?)
}

/// The shards that an index file lists, in the order of their names. All of them exist.
pub(crate) fn shards(path: &Path) -> Result<Vec<PathBuf>, SafetensorsError> {
    files(path, &read(path)?)
}

/// Names of the shards that an index file lists, whether they are there or not. None leads out of the index's folder.
///
/// # Errors
/// When the index cannot be read, is none, or lists no plain name.
pub fn shard_names(path: &Path) -> Result<BTreeSet<String>, SafetensorsError> {
    Ok(read(path)?.into_values().collect())
}

/// The distinct shards of an index, which stand beside it.
pub(super) fn files(path: &Path, weight_map: &BTreeMap<String, String>) -> Result<Vec<PathBuf>, SafetensorsError> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let file = |shard: &String| match folder.join(shard) {
        file if file.exists() => Ok(file),
        _ => Err(SafetensorsError::MissingShard { index: path.to_owned(), shard: shard.clone() }),
    };
    weight_map.values().collect::<BTreeSet<_>>().into_iter().map(file).collect()
}

fn parse(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, String>, SafetensorsError> {
    let wrong = |message: String| SafetensorsError::Index { path: path.to_owned(), message };
    let index: Index = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
    if index.weight_map.is_empty() {
        return Err(wrong("weight_map lists no tensor".into()));
    }
    for (name, shard) in &index.weight_map {
        let bad = shard.contains(['/', '\\', '\0']) || !shard.ends_with(".safetensors") || shard.starts_with('.');
        if bad {
            let message = format!("tensor {name:?} is said to be in {shard:?}, which is no plain *.safetensors name");
            return Err(wrong(message));
        }
    }
    let shards: BTreeSet<&String> = index.weight_map.values().collect();
    if shards.len() > SHARDS_MAX {
        return Err(wrong(format!("it lists {} shards, more than the limit of {SHARDS_MAX}", shards.len())));
    }
    Ok(index.weight_map)
}

/// A whole file that must be no longer than `limit` bytes.
pub(crate) fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, SafetensorsError> {
    let io = |source| SafetensorsError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let meta = file.metadata().map_err(io)?;
    if !meta.is_file() {
        return Err(io(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")));
    }
    let mut bytes = Vec::new();
    // One byte more than allowed, so that a file which grows meanwhile is noticed.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limit {
        return Err(SafetensorsError::TooLarge { path: path.to_owned(), bytes: meta.len(), limit });
    }
    Ok(bytes)
}
