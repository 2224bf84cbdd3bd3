//! A manifest as JSON has it, before anything is believed of it.

use super::PackedTensor;
use crate::{Checksum, Object};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    pub(super) format: u32,
    pub(super) revision: String,
    pub(super) layout: String,
    pub(super) objects: Vec<RawObject>,
    pub(super) tensors: Vec<RawTensor>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawObject {
    name: String,
    bytes: u64,
    /// The checksums, one after the other.
    chunks: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTensor {
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) dims: Vec<u64>,
    pub(super) object: usize,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

impl RawObject {
    /// None when the name is not that of these checksums.
    pub(super) fn read(&self) -> Option<Object> {
        let (chunks, rest) = self.chunks.as_bytes().as_chunks::<{ Checksum::DIGITS }>();
        let chunk = |digits: &[u8; Checksum::DIGITS]| Checksum::parse(std::str::from_utf8(digits).ok()?);
        let chunks = chunks.iter().map(chunk).collect::<Option<Vec<Checksum>>>()?;
        let object = Object::new(self.bytes, chunks).filter(|_| rest.is_empty())?;
        (Checksum::parse(&self.name) == Some(object.name())).then_some(object)
    }
}

impl From<&Object> for RawObject {
    fn from(object: &Object) -> Self {
        let chunks = object.chunks().iter().map(Checksum::to_string).collect();
        Self { name: object.name().to_string(), bytes: object.bytes(), chunks }
    }
}

impl From<&PackedTensor> for RawTensor {
    fn from(tensor: &PackedTensor) -> Self {
        let PackedTensor { name, kind, dims, object, offset, bytes } = tensor.clone();
        Self { name, kind: kind.to_string(), dims, object, offset, bytes }
    }
}
