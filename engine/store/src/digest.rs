//! The digest that names a revision: the same bytes are the same model wherever they lie.

use crate::{GgufError, mapping::Mapping};
use sha2::{Digest, Sha256};
use std::{fmt::Write, path::Path};

/// SHA-256 of the file as 64 lower-case hex digits.
pub fn digest(path: impl AsRef<Path>) -> Result<String, GgufError> {
    let path = path.as_ref();
    let mapping = Mapping::open(path).map_err(|source| GgufError::Io { path: path.to_owned(), source })?;
    mapping.will_need();
    Ok(hex(&Sha256::digest(mapping.bytes())))
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut hex = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}
