//! The version of what is stored: state of another version is an error to read, so that it is left alone.

use serde::{Deserialize, Serialize};

/// Raised whenever the experts, their order or their state change.
const VERSION: u32 = 2;

/// Reads and writes as the version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub(crate) struct Format;

impl TryFrom<u32> for Format {
    type Error = String;

    fn try_from(version: u32) -> Result<Self, String> {
        if version == VERSION {
            return Ok(Self);
        }
        Err(format!("a forecast's state of version {version}, where this is {VERSION}"))
    }
}

impl From<Format> for u32 {
    fn from(_: Format) -> Self {
        VERSION
    }
}
