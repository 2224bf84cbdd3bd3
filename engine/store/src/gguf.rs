//! The GGUF container (ggml's docs/gguf.md), versions 2 and 3, little-endian.
//!
//! `open` reads the header once and checks every count, string, type, dimension and offset against the
//! file; afterwards all accessors are infallible lookups into the map.

use crate::{
    Array, GgmlType, GgufError, Strings, TensorData, TensorView, Value, cursor::Cursor, mapping::Mapping,
    tensor::TensorInfo, value,
};
use std::{collections::HashMap, ops::Range, path::Path, sync::Arc};

const ALIGNMENT_DEFAULT: u64 = 32;
const DIMS_MAX: u32 = 4;
/// The smallest encodings of a metadata pair (key length, type, one byte) and of a tensor description.
const PAIR_BYTES_MIN: u64 = 13;
const TENSOR_BYTES_MIN: u64 = 8 + 4 + 8 + 4 + 8;

/// An opened checkpoint. Cloning shares the mapping.
#[derive(Clone)]
pub struct Gguf {
    mapping: Mapping,
    header: Arc<Header>,
}

struct Header {
    version: u32,
    keys: Vec<(String, Range<usize>)>,
    key_index: HashMap<String, usize>,
    tensors: Vec<TensorInfo>,
    tensor_index: HashMap<String, usize>,
}

impl Gguf {
    /// Maps and checks the file. Costs the header (a few ms for a large vocabulary); no weight is read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, GgufError> {
        let path = path.as_ref();
        let mapping = Mapping::open(path).map_err(|source| GgufError::Io { path: path.to_owned(), source })?;
        Self::parse(mapping)
    }

    /// The same checks on bytes in memory.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, GgufError> {
        Self::parse(Mapping::Memory(Arc::new(bytes)))
    }

    fn parse(mapping: Mapping) -> Result<Self, GgufError> {
        let header = Arc::new(parse_header(mapping.bytes())?);
        Ok(Self { mapping, header })
    }

    pub fn version(&self) -> u32 {
        self.header.version
    }

    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> u64 {
        self.mapping.bytes().len() as u64
    }

    /// Bytes before the first tensor's: everything but weights.
    pub(crate) fn head_bytes(&self) -> u64 {
        let starts = self.header.tensors.iter().map(|tensor| tensor.range.start as u64);
        starts.min().unwrap_or_else(|| self.file_bytes())
    }

    /// Starts reading the file and mapping its pages in the background, so that the first step finds both
    /// done. Call it right after `open`, before other start-up work that it can overlap.
    pub fn will_need(&self) {
        self.mapping.populate();
    }

    /// Metadata keys in file order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.header.keys.iter().map(|(key, _)| key.as_str())
    }

    /// A metadata value, if the key is there.
    pub fn value(&self, key: &str) -> Option<Value<'_>> {
        let range = &self.header.keys[*self.header.key_index.get(key)?].1;
        let mut cursor = Cursor::new(self.mapping.bytes(), range.start);
        value::read(&mut cursor, key).ok()
    }

    fn required(&self, key: &str) -> Result<Value<'_>, GgufError> {
        self.value(key).ok_or_else(|| GgufError::MissingKey { key: key.to_owned() })
    }

    /// A string; missing or of another type is an error.
    pub fn str(&self, key: &str) -> Result<&str, GgufError> {
        match self.required(key)? {
            Value::Str(text) => Ok(text),
            other => Err(wrong_type(key, &other, "a string")),
        }
    }

    /// A non-negative integer of any stored width.
    pub fn u64(&self, key: &str) -> Result<u64, GgufError> {
        let value = self.required(key)?;
        value.as_u64().ok_or_else(|| wrong_type(key, &value, "a non-negative integer"))
    }

    /// A non-negative integer that fits in 32 bits.
    pub fn u32(&self, key: &str) -> Result<u32, GgufError> {
        let wide = self.u64(key)?;
        u32::try_from(wide).map_err(|_| GgufError::KeyValue {
            key: key.to_owned(),
            message: format!("{wide} does not fit in 32 bits"),
        })
    }

    pub fn f32(&self, key: &str) -> Result<f32, GgufError> {
        match self.required(key)? {
            Value::F64(number) => Ok(number as f32),
            other => Err(wrong_type(key, &other, "a float")),
        }
    }

    pub fn bool(&self, key: &str) -> Result<bool, GgufError> {
        match self.required(key)? {
            Value::Bool(flag) => Ok(flag),
            other => Err(wrong_type(key, &other, "a boolean")),
        }
    }

    pub fn array(&self, key: &str) -> Result<Array<'_>, GgufError> {
        match self.required(key)? {
            Value::Array(array) => Ok(array),
            other => Err(wrong_type(key, &other, "an array")),
        }
    }

    /// An array of strings, zero-copy (`tokenizer.ggml.tokens`, `tokenizer.ggml.merges`).
    pub fn strings(&self, key: &str) -> Result<Strings<'_>, GgufError> {
        let array = self.array(key)?;
        array.strings().ok_or_else(|| wrong_type(key, &Value::Array(array), "an array of strings"))
    }

    /// An array of floats (`tokenizer.ggml.scores`).
    pub fn f32s(&self, key: &str) -> Result<Vec<f32>, GgufError> {
        self.scalars(key, "an array of floats", |value| match value {
            Value::F64(number) => Some(number as f32),
            _ => None,
        })
    }

    /// An array of integers (`tokenizer.ggml.token_type`).
    pub fn i64s(&self, key: &str) -> Result<Vec<i64>, GgufError> {
        self.scalars(key, "an array of integers", |value| match value {
            Value::I64(number) => Some(number),
            Value::U64(number) => i64::try_from(number).ok(),
            _ => None,
        })
    }

    fn scalars<T>(
        &self,
        key: &str,
        expected: &'static str,
        convert: impl Fn(Value<'_>) -> Option<T>,
    ) -> Result<Vec<T>, GgufError> {
        let array = self.array(key)?;
        let out: Vec<T> = array.scalars().map_while(convert).collect();
        if out.len() != array.len() {
            return Err(wrong_type(key, &Value::Array(array), expected));
        }
        Ok(out)
    }

    /// `Ok(None)` when the key is absent, an error when it is there with the wrong type.
    pub fn optional<'a, T>(
        &'a self,
        key: &str,
        get: impl Fn(&'a Self, &str) -> Result<T, GgufError>,
    ) -> Result<Option<T>, GgufError> {
        if !self.header.key_index.contains_key(key) {
            return Ok(None);
        }
        get(self, key).map(Some)
    }

    /// Tensors in file order.
    pub fn tensors(&self) -> impl Iterator<Item = TensorView<'_>> {
        self.header.tensors.iter().map(|info| self.view(info))
    }

    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, GgufError> {
        Ok(self.view(self.info(name)?))
    }

    pub fn has_tensor(&self, name: &str) -> bool {
        self.header.tensor_index.contains_key(name)
    }

    /// A tensor's bytes that keep the mapping alive.
    pub fn tensor_data(&self, name: &str) -> Result<TensorData, GgufError> {
        let info = self.info(name)?;
        Ok(TensorData {
            mapping: self.mapping.clone(),
            range: info.range.clone(),
            kind: info.kind,
            dims: info.dims.clone(),
        })
    }

    fn info(&self, name: &str) -> Result<&TensorInfo, GgufError> {
        let index = self.header.tensor_index.get(name);
        index
            .map(|index| &self.header.tensors[*index])
            .ok_or_else(|| GgufError::MissingTensor { name: name.to_owned() })
    }

    fn view<'a>(&'a self, info: &'a TensorInfo) -> TensorView<'a> {
        let bytes = &self.mapping.bytes()[info.range.clone()];
        TensorView { name: &info.name, dims: &info.dims, kind: info.kind, bytes }
    }
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gguf(v{}, {} tensors)", self.header.version, self.header.tensors.len())
    }
}

fn wrong_type(key: &str, found: &Value<'_>, expected: &'static str) -> GgufError {
    GgufError::KeyType { key: key.to_owned(), found: found.kind(), expected }
}

fn parse_header(bytes: &[u8]) -> Result<Header, GgufError> {
    let mut cursor = Cursor::new(bytes, 0);
    let magic = cursor.take(4, "magic")?;
    if magic != b"GGUF" {
        return Err(GgufError::Magic { found: String::from_utf8_lossy(magic).escape_debug().to_string() });
    }
    let version = cursor.u32("version")?;
    if !matches!(version, 2 | 3) {
        return Err(GgufError::Version { version });
    }
    // The two counts stand together, before what they count.
    let tensor_count = cursor.count(TENSOR_BYTES_MIN, "tensor count")?;
    let pair_count = cursor.count(PAIR_BYTES_MIN, "metadata count")?;
    let (keys, key_index, alignment) = parse_pairs(&mut cursor, pair_count)?;
    let mut tensors = Vec::with_capacity(tensor_count);
    for index in 0..tensor_count {
        tensors.push(parse_tensor(&mut cursor, index, alignment)?);
    }
    let data_start = (cursor.offset as u64).next_multiple_of(alignment);
    let tensors = place_tensors(tensors, data_start, bytes.len() as u64)?;
    let mut tensor_index = HashMap::with_capacity(tensors.len());
    for (index, info) in tensors.iter().enumerate() {
        if tensor_index.insert(info.name.clone(), index).is_some() {
            return Err(GgufError::DuplicateTensor { name: info.name.clone() });
        }
    }
    Ok(Header { version, keys, key_index, tensors, tensor_index })
}

type Pairs = (Vec<(String, Range<usize>)>, HashMap<String, usize>, u64);

fn parse_pairs(cursor: &mut Cursor<'_>, count: usize) -> Result<Pairs, GgufError> {
    let mut keys = Vec::with_capacity(count);
    let mut key_index = HashMap::with_capacity(count);
    let mut alignment = ALIGNMENT_DEFAULT;
    for index in 0..count {
        let key = cursor.str(&format!("metadata key {index}"))?.to_owned();
        let start = cursor.offset;
        let value = value::read(cursor, &format!("metadata value of {key:?}"))?;
        if key == "general.alignment" {
            alignment = value.as_u64().filter(|a| a.is_power_of_two() && *a <= 1 << 20).ok_or_else(|| {
                GgufError::KeyValue { key: key.clone(), message: "must be a power of two of at most 1 MiB".into() }
            })?;
        }
        if key_index.insert(key.clone(), index).is_some() {
            return Err(GgufError::DuplicateKey { key });
        }
        keys.push((key, start..cursor.offset));
    }
    Ok((keys, key_index, alignment))
}

/// A tensor description whose offset still counts from the data section.
struct Unplaced {
    name: String,
    dims: Vec<u64>,
    kind: GgmlType,
    offset: u64,
    bytes: u64,
}

fn parse_tensor(cursor: &mut Cursor<'_>, index: usize, alignment: u64) -> Result<Unplaced, GgufError> {
    let name = cursor.str(&format!("name of tensor {index}"))?.to_owned();
    let wrong = |message: String| GgufError::Tensor { name: name.clone(), message };
    let field = format!("description of tensor {name:?}");
    let dim_count = cursor.u32(&field)?;
    if dim_count == 0 || dim_count > DIMS_MAX {
        return Err(wrong(format!("{dim_count} dimensions; 1 to {DIMS_MAX} are allowed")));
    }
    let mut dims = Vec::with_capacity(dim_count as usize);
    for _ in 0..dim_count {
        dims.push(cursor.u64(&field)?);
    }
    let number = cursor.u32(&field)?;
    let kind =
        GgmlType::from_number(number).ok_or_else(|| GgufError::TensorType { name: name.clone(), value: number })?;
    let offset = cursor.u64(&field)?;
    if !offset.is_multiple_of(alignment) {
        return Err(wrong(format!("offset {offset} is not a multiple of the alignment {alignment}")));
    }
    if dims.contains(&0) {
        return Err(wrong(format!("a dimension is zero: {dims:?}")));
    }
    if !dims[0].is_multiple_of(kind.block_len()) {
        return Err(wrong(format!("row length {} is no multiple of {kind}'s block of {}", dims[0], kind.block_len())));
    }
    let bytes = dims
        .iter()
        .try_fold(1u64, |total, dim| total.checked_mul(*dim))
        .and_then(|elements| kind.bytes(elements))
        .ok_or_else(|| wrong(format!("dimensions {dims:?} overflow")))?;
    Ok(Unplaced { name, dims, kind, offset, bytes })
}

fn place_tensors(unplaced: Vec<Unplaced>, data_start: u64, file: u64) -> Result<Vec<TensorInfo>, GgufError> {
    let mut tensors = Vec::with_capacity(unplaced.len());
    for tensor in unplaced {
        let start = data_start.checked_add(tensor.offset);
        let end = start.and_then(|start| start.checked_add(tensor.bytes)).unwrap_or(u64::MAX);
        if end > file {
            return Err(GgufError::TensorTruncated { name: tensor.name, end, file });
        }
        // `end` is within the file, so both bounds fit in usize.
        let range = (end - tensor.bytes) as usize..end as usize;
        tensors.push(TensorInfo { name: tensor.name, dims: tensor.dims, kind: tensor.kind, range });
    }
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by_key(|info| info.range.start);
    for pair in order.windows(2) {
        if pair[0].range.end > pair[1].range.start {
            return Err(GgufError::Overlap { first: pair[0].name.clone(), second: pair[1].name.clone() });
        }
    }
    Ok(tensors)
}
