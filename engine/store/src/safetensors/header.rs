//! One file's header: eight bytes of length, then JSON with each tensor's type, shape and range. The `safetensors`
//! crate defines the entries and checks them against each other; they are read one by one here, so that an error
//! names its tensor.

use super::{Dtype, SafetensorsError};
use ::safetensors::tensor::{Metadata, TensorInfo};
use serde_json::Value;
use std::{collections::BTreeMap, ops::Range, path::Path};

/// Longest header, bytes: some hundred thousand tensors.
const BYTES_MAX: u64 = 32 << 20;
const LENGTH_BYTES: usize = 8;
const DIMS_MAX: usize = 8;
/// The entry that is no tensor.
const METADATA: &str = "__metadata__";

/// Where a tensor lies in its file, checked against the file's length.
pub(super) struct Entry {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<u64>,
    pub(super) range: Range<usize>,
}

/// Reads and checks the header of a whole file. `path` is for errors.
pub(super) fn parse(path: &Path, file: &[u8]) -> Result<Vec<(String, Entry)>, SafetensorsError> {
    let wrong = |message: String| SafetensorsError::Header { path: path.to_owned(), message };
    let found = file.len() as u64;
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(wrong(format!("it has {found} bytes, less than a header")));
    };
    let length = u64::from_le_bytes(*length);
    if length > BYTES_MAX {
        return Err(wrong(format!("its header would have {length} bytes, more than the limit of {BYTES_MAX}")));
    }
    let Some(text) = rest.get(..length as usize) else {
        return Err(SafetensorsError::Truncated { path: path.to_owned(), expected: length + 8, found });
    };
    let entries: BTreeMap<String, Value> =
        serde_json::from_slice(text).map_err(|error| wrong(format!("its header is not as it should be: {error}")))?;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, value) in entries {
        if name != METADATA {
            let info = read(value).map_err(|message| SafetensorsError::Tensor {
                path: path.to_owned(),
                name: name.clone(),
                message,
            })?;
            tensors.push((name, info));
        }
    }
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let start = LENGTH_BYTES + text.len();
    let end = tensors.last().map_or(0, |(_, info)| info.data_offsets.1);
    // The crate's own check: ranges follow each other without hole or overlap.
    Metadata::new(None, tensors.clone()).map_err(|error| wrong(error.to_string()))?;
    let expected = start as u64 + end as u64;
    if expected > found {
        return Err(SafetensorsError::Truncated { path: path.to_owned(), expected, found });
    }
    if expected < found {
        return Err(wrong(format!("{} bytes follow its last tensor", found - expected)));
    }
    let entry = |info: TensorInfo| {
        let (from, to) = info.data_offsets;
        Entry {
            dtype: info.dtype,
            shape: info.shape.into_iter().map(|dim| dim as u64).collect(),
            range: start + from..start + to,
        }
    };
    Ok(tensors.into_iter().map(|(name, info)| (name, entry(info))).collect())
}

/// One entry, checked by itself.
fn read(value: Value) -> Result<TensorInfo, String> {
    let info: TensorInfo = serde_json::from_value(value).map_err(|error| error.to_string())?;
    if info.shape.len() > DIMS_MAX {
        return Err(format!("{} dimensions; at most {DIMS_MAX} are allowed", info.shape.len()));
    }
    let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |total, dim| total.checked_mul(*dim));
    let Some(bits) = bits else { return Err(format!("shape {:?} overflows", info.shape)) };
    let (from, to) = info.data_offsets;
    let bytes = to.checked_sub(from).ok_or_else(|| format!("it ends at {to}, before it begins at {from}"))?;
    if bits != bytes.saturating_mul(8) {
        return Err(format!("{} of shape {:?} do not fill its {bytes} bytes", info.dtype, info.shape));
    }
    Ok(info)
}
