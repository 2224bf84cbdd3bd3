//! What a model is made of, once it is ingested: its tensors and the objects that they lie in. A manifest comes into
//! being last, by one rename, so whoever sees one sees a whole model; and it is read as if it came from a stranger.
//!
//! The file is JSON in one line, and its checksum in a second.

mod error;
mod raw;

pub use error::ManifestError;

use crate::{Checksum, GgmlType, Object};
use raw::{Raw, RawObject, RawTensor};
use std::collections::{BTreeMap, BTreeSet};

/// Longest manifest: 64 bytes a chunk are those of a model of a terabyte.
const BYTES_MAX: usize = 128 << 20;
/// The version of this form.
const FORMAT: u32 = 1;
/// Where tensors may begin in an object: cache lines.
pub(crate) const ALIGN_BYTES: u64 = 64;
/// Largest object: no tensor known is near.
const OBJECT_BYTES_MAX: u64 = 1 << 40;
/// How much longer than its numbers a packed tensor may be, for what kernels want at its end.
const PACKED_TIMES_MAX: u64 = 16;
const DIMS_MAX: usize = 4;
const NAME_BYTES_MAX: usize = 512;

/// A tensor as kernels read it. `dims[0]` is the contiguous dimension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedTensor {
    /// As GGUF has it.
    pub name: String,
    pub kind: GgmlType,
    pub dims: Vec<u64>,
    /// Index of its object in the manifest.
    pub object: usize,
    /// Where it begins there.
    pub offset: u64,
    /// Its bytes, with what the packer put after them.
    pub bytes: u64,
}

/// A model in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// What was ingested; see [`crate::revision`].
    pub revision: String,
    /// For which kernels it is laid out.
    pub layout: String,
    /// In the order in which a forward pass comes to them.
    pub objects: Vec<Object>,
    pub tensors: Vec<PackedTensor>,
}

impl Manifest {
    /// Bytes of its objects.
    pub fn bytes(&self) -> u64 {
        self.objects.iter().map(Object::bytes).sum()
    }

    /// The text of its file.
    pub fn to_text(&self) -> String {
        let raw = Raw {
            format: FORMAT,
            revision: self.revision.clone(),
            layout: self.layout.clone(),
            objects: self.objects.iter().map(RawObject::from).collect(),
            tensors: self.tensors.iter().map(RawTensor::from).collect(),
        };
        // Strings and numbers alone: that cannot fail.
        let body = serde_json::to_string(&raw).unwrap_or_default();
        let checksum = Checksum::of(body.as_bytes());
        format!("{body}\n{checksum}\n")
    }

    /// Reads and checks a manifest's text completely: nothing that comes out of it needs another look.
    ///
    /// # Errors
    /// Names the tensor or object at fault.
    pub fn parse(text: &[u8]) -> Result<Self, ManifestError> {
        if text.len() > BYTES_MAX {
            return Err(ManifestError::TooLarge { bytes: text.len(), limit: BYTES_MAX });
        }
        let raw: Raw = serde_json::from_slice(checked_body(text)?)
            .map_err(|error| ManifestError::Json { message: error.to_string() })?;
        if raw.format != FORMAT {
            return Err(ManifestError::Format { found: raw.format, known: FORMAT });
        }
        check_name("revision", &raw.revision)?;
        check_name("layout", &raw.layout)?;
        let object = |(index, raw): (usize, &RawObject)| {
            let read = raw.read().filter(|object| object.bytes() <= OBJECT_BYTES_MAX);
            read.ok_or(ManifestError::Object { index })
        };
        let objects: Vec<Object> = raw.objects.iter().enumerate().map(object).collect::<Result<_, _>>()?;
        let mut names = BTreeSet::new();
        if let Some(object) = objects.iter().find(|object| !names.insert(object.name())) {
            return Err(ManifestError::ObjectTwice { name: object.name() });
        }
        let tensors: Vec<PackedTensor> =
            raw.tensors.into_iter().map(|raw| read_tensor(raw, &objects)).collect::<Result<_, _>>()?;
        let mut names = BTreeSet::new();
        if let Some(tensor) = tensors.iter().find(|tensor| !names.insert(&tensor.name)) {
            return Err(ManifestError::TensorTwice { name: tensor.name.clone() });
        }
        check_places(&objects, &tensors)?;
        Ok(Self { revision: raw.revision, layout: raw.layout, objects, tensors })
    }
}

/// The JSON, when the checksum after it is its own.
fn checked_body(text: &[u8]) -> Result<&[u8], ManifestError> {
    let whole = text.strip_suffix(b"\n").and_then(|text| {
        let end = text.len().checked_sub(Checksum::DIGITS)?;
        let checksum = Checksum::parse(std::str::from_utf8(&text[end..]).ok()?)?;
        Some((text[..end].strip_suffix(b"\n")?, checksum))
    });
    let (body, checksum) = whole.ok_or(ManifestError::Truncated { bytes: text.len() })?;
    if Checksum::of(body) != checksum {
        return Err(ManifestError::Checksum);
    }
    Ok(body)
}

/// What may be part of a file's name.
pub(crate) fn check_name(what: &'static str, name: &str) -> Result<(), ManifestError> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'+' | b'_');
    if name.is_empty() || name.len() > 100 || !name.bytes().all(plain) {
        return Err(ManifestError::Name { what, name: name.chars().take(100).collect() });
    }
    Ok(())
}

fn read_tensor(raw: RawTensor, objects: &[Object]) -> Result<PackedTensor, ManifestError> {
    let RawTensor { name, kind, dims, object, offset, bytes } = raw;
    let wrong = |message: String| {
        let name = name.chars().take(NAME_BYTES_MAX).collect();
        Err(ManifestError::Tensor { name, message })
    };
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return wrong(format!("its name has {} bytes; 1 to {NAME_BYTES_MAX} are allowed", name.len()));
    }
    let Some(kind) = GgmlType::from_name(&kind) else { return wrong(format!("type {kind:?} is not known")) };
    if dims.is_empty() || dims.len() > DIMS_MAX || dims.contains(&0) {
        return wrong(format!("dimensions {dims:?}; 1 to {DIMS_MAX} are allowed, none of them zero"));
    }
    let elements = dims.iter().try_fold(1u64, |total, dim| total.checked_mul(*dim));
    let whole = dims[0].is_multiple_of(kind.block_len());
    let numbers = elements.filter(|_| whole).and_then(|elements| kind.bytes(elements));
    let Some(numbers) = numbers else { return wrong(format!("{kind} cannot have dimensions {dims:?}")) };
    if bytes < numbers || bytes / PACKED_TIMES_MAX > numbers {
        return wrong(format!("{bytes} bytes for {kind} of {dims:?}, which takes {numbers}"));
    }
    let Some(place) = objects.get(object) else {
        return wrong(format!("it would lie in object {object} of {}", objects.len()));
    };
    if !offset.is_multiple_of(ALIGN_BYTES) || offset.checked_add(bytes).is_none_or(|end| end > place.bytes()) {
        return wrong(format!("{bytes} bytes at {offset} do not fit into an object of {}", place.bytes()));
    }
    Ok(PackedTensor { name, kind, dims, object, offset, bytes })
}

/// Tensors of the same bytes may lie in the same place; any other overlap is a mistake, and so are objects that no tensor
/// is in.
fn check_places(objects: &[Object], tensors: &[PackedTensor]) -> Result<(), ManifestError> {
    let mut places: BTreeMap<(usize, u64), &PackedTensor> = BTreeMap::new();
    for tensor in tensors {
        let other = places.insert((tensor.object, tensor.offset), tensor);
        if let Some(other) = other.filter(|other| other.bytes != tensor.bytes) {
            return Err(ManifestError::Overlap { first: other.name.clone(), second: tensor.name.clone() });
        }
    }
    let order: Vec<&PackedTensor> = places.into_values().collect();
    for pair in order.windows(2) {
        if pair[0].object == pair[1].object && pair[0].offset + pair[0].bytes > pair[1].offset {
            return Err(ManifestError::Overlap { first: pair[0].name.clone(), second: pair[1].name.clone() });
        }
    }
    let used: BTreeSet<usize> = order.iter().map(|tensor| tensor.object).collect();
    match (0..objects.len()).find(|index| !used.contains(index)) {
        Some(index) => Err(ManifestError::Unused { name: objects[index].name() }),
        None => Ok(()),
    }
}
