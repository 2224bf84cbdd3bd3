//! Which files of a folder make the model: what its revision is a digest of, and what tells that it has changed.

use super::{EncoderCheckpoint, EncoderError};
use crate::safetensors::{INDEX_FILE, WHOLE_FILE};
use crate::{Safetensors, mapping::Mapping};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Begins what is digested, so that a folder of another kind with the same files is another revision.
const DOMAIN: &[u8] = b"foreshock encoder 1\n";

/// Small files that answers depend on; those that are absent are left out.
const SMALL_FILES: [&str; 5] =
    ["config.json", "tokenizer.json", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json"];

/// A cheap sign of whether a folder is still what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FolderStamp {
    /// Bytes of all files that make the model.
    pub bytes: u64,
    /// Sum of their modification times, ns since 1970, below 2^63.
    pub modified_unix_ns: u64,
}

/// Sizes and modification times of a folder's files. Reads no weight.
///
/// # Errors
/// When a file cannot be looked at.
pub fn folder_stamp(folder: &Path) -> io::Result<FolderStamp> {
    let mut stamp = FolderStamp { bytes: 0, modified_unix_ns: 0 };
    let weights = Safetensors::open_folder(folder).map_err(io::Error::other)?;
    for (_, file) in files(folder, &weights) {
        let metadata = std::fs::metadata(&file)?;
        let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        stamp.bytes += metadata.len();
        stamp.modified_unix_ns = stamp.modified_unix_ns.wrapping_add(modified) & (u64::MAX >> 1);
    }
    Ok(stamp)
}

impl EncoderCheckpoint {
    /// SHA-256 over the names and bytes of all files that answers depend on, as 64 hexadecimal digits. Reads all of it.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn revision(&self) -> Result<String, EncoderError> {
        let mut hash = Sha256::new();
        hash.update(DOMAIN);
        for (name, path) in files(&self.folder, &self.weights) {
            let mapping = Mapping::open(&path)
                .map_err(|source| EncoderError::File { path: path.clone(), message: source.to_string() })?;
            mapping.will_need();
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
            hash.update((mapping.bytes().len() as u64).to_le_bytes());
            hash.update(mapping.bytes());
        }
        let mut hex = String::with_capacity(64);
        for byte in hash.finalize() {
            // Writing to a String cannot fail.
            let _ = write!(hex, "{byte:02x}");
        }
        Ok(hex)
    }
}

/// Names and paths, in a fixed order.
fn files(folder: &Path, weights: &Safetensors) -> Vec<(String, PathBuf)> {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let index = if folder.join(WHOLE_FILE).exists() { None } else { Some(INDEX_FILE) };
    let small = SMALL_FILES.into_iter().chain(index).map(|name| (name.to_owned(), folder.join(name)));
    small.filter(|(_, path)| path.exists()).chain(weights.files().map(|path| (name(path), path.to_owned()))).collect()
}
