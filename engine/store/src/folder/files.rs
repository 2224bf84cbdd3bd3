//! Which files make a checkpoint, in a fixed order: what its revision is a digest of, and what is looked at to see
//! whether it has changed.

use super::text::{
    CONFIG_FILE, GENERATION_FILE, SPECIAL_TOKENS_FILE, TEMPLATE_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE,
};
use crate::mapping::Mapping;
use crate::safetensors::{INDEX_FILE, SafetensorsError, WHOLE_FILE, shards};
use crate::{CheckpointError, Quantisation, digest};
use sha2::{Digest, Sha256};
use std::{
    io,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

/// Begins what is digested of a folder, so that no folder and no file are the same revision.
const DOMAIN: &[u8] = b"foreshock folder 1\n";

/// A cheap sign of whether a checkpoint is still what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Bytes of all its files.
    pub bytes: u64,
    /// Modification time of a file, or the sum of those of a folder's files; ns since 1970, below 2^63.
    pub modified_unix_ns: u64,
}

/// Size and modification times of a checkpoint, file or folder. Reads no weight.
pub fn stamp(path: &Path) -> io::Result<Stamp> {
    let mut stamp = Stamp { bytes: 0, modified_unix_ns: 0 };
    for file in files(path).map_err(io::Error::other)? {
        let metadata = std::fs::metadata(&file)?;
        let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        stamp.bytes += metadata.len();
        stamp.modified_unix_ns = stamp.modified_unix_ns.wrapping_add(modified) & (u64::MAX >> 1);
    }
    Ok(stamp)
}

/// What names a revision: the digest of everything in the checkpoint that its answers depend on, as 64 hexadecimal
/// digits, and how it is quantised at load. Reads all of it.
pub fn revision(path: &Path, quantisation: Option<Quantisation>) -> Result<String, CheckpointError> {
    let digest = if path.is_dir() { folder_digest(path)? } else { digest(path)? };
    Ok(match quantisation {
        None => digest,
        Some(quantisation) => format!("{digest}+{quantisation}"),
    })
}

fn folder_digest(folder: &Path) -> Result<String, CheckpointError> {
    let mut hash = Sha256::new();
    hash.update(DOMAIN);
    for file in files(folder)? {
        let mapping = Mapping::open(&file).map_err(|source| SafetensorsError::Io { path: file.clone(), source })?;
        mapping.will_need();
        let name = file.file_name().map(|name| name.as_encoded_bytes().to_vec()).unwrap_or_default();
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update((mapping.bytes().len() as u64).to_le_bytes());
        hash.update(mapping.bytes());
    }
    Ok(digest::hex(&hash.finalize()))
}

/// The files of a folder beside its weights, by their names in it. Each but config.json may be absent; the last three are
/// what sentence-transformers puts beside an encoder, and what its vectors depend on.
pub const FOLDER_FILES: [&str; 9] = [
    CONFIG_FILE,
    GENERATION_FILE,
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    SPECIAL_TOKENS_FILE,
    TEMPLATE_FILE,
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
];

/// The files of a checkpoint, absolute or not as `path` is. Those of a folder that may be absent are left out when they are.
pub(crate) fn files(path: &Path) -> Result<Vec<PathBuf>, SafetensorsError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files: Vec<PathBuf> =
        FOLDER_FILES.iter().map(|name| path.join(name)).filter(|file| file.exists()).collect();
    let (whole, index) = (path.join(WHOLE_FILE), path.join(INDEX_FILE));
    if whole.exists() || !index.exists() {
        files.push(whole);
        return Ok(files);
    }
    files.push(index.clone());
    files.extend(shards(&index)?);
    Ok(files)
}
