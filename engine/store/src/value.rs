//! Metadata values. They stay in the mapped file; a value is decoded when asked for, and strings
//! (a vocabulary has tens of thousands) are borrowed, never copied.

use crate::{GgufError, cursor::Cursor};

/// Nested arrays are legal in GGUF; no known file nests more than two deep.
const NESTING_LIMIT: u32 = 4;

const U8: u32 = 0;
const I8: u32 = 1;
const U16: u32 = 2;
const I16: u32 = 3;
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const U64: u32 = 10;
const I64: u32 = 11;
const F64: u32 = 12;

/// One metadata value, borrowed from the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    U64(u64),
    I64(i64),
    F64(f64),
    Bool(bool),
    Str(&'a str),
    Array(Array<'a>),
}

impl Value<'_> {
    /// The value's kind, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::U64(_) => "an unsigned integer",
            Self::I64(_) => "a signed integer",
            Self::F64(_) => "a float",
            Self::Bool(_) => "a boolean",
            Self::Str(_) => "a string",
            Self::Array(_) => "an array",
        }
    }

    /// The value as a non-negative integer, whatever integer width it was stored in.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U64(v) => Some(v),
            Self::I64(v) => u64::try_from(v).ok(),
            _ => None,
        }
    }
}

/// An array of metadata values, already checked against the file's bounds.
#[derive(Clone, Copy, PartialEq)]
pub struct Array<'a> {
    element: u32,
    len: usize,
    bytes: &'a [u8],
}

impl std::fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Array({} values of type {})", self.len, self.element)
    }
}

impl<'a> Array<'a> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements as strings, or None when they are something else.
    pub fn strings(&self) -> Option<Strings<'a>> {
        (self.element == STRING).then_some(Strings { cursor_bytes: self.bytes, left: self.len })
    }

    /// All elements as scalars, in order; empty when the elements are strings or arrays.
    pub fn scalars(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let element = self.element;
        let width = scalar_bytes(element).unwrap_or(0) as usize;
        let bytes = if width == 0 { &[][..] } else { self.bytes };
        bytes.chunks_exact(width.max(1)).filter_map(move |chunk| scalar(element, chunk))
    }
}

/// Iterator over an array of strings, zero-copy.
#[derive(Clone, Debug)]
pub struct Strings<'a> {
    cursor_bytes: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.left == 0 {
            return None;
        }
        let mut cursor = Cursor::new(self.cursor_bytes, 0);
        // Checked when the file was opened, so this does not fail; ending early is the safe answer if it did.
        let text = cursor.str("array element").ok()?;
        self.cursor_bytes = &self.cursor_bytes[cursor.offset..];
        self.left -= 1;
        Some(text)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Strings<'_> {}

fn scalar_bytes(kind: u32) -> Option<u64> {
    match kind {
        U8 | I8 | BOOL => Some(1),
        U16 | I16 => Some(2),
        U32 | I32 | F32 => Some(4),
        U64 | I64 | F64 => Some(8),
        _ => None,
    }
}

fn scalar<'a>(kind: u32, bytes: &[u8]) -> Option<Value<'a>> {
    let mut wide = [0u8; 8];
    wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
    let bits = u64::from_le_bytes(wide);
    Some(match kind {
        U8 | U16 | U32 | U64 => Value::U64(bits),
        I8 => Value::I64(i64::from(bits as u8 as i8)),
        I16 => Value::I64(i64::from(bits as u16 as i16)),
        I32 => Value::I64(i64::from(bits as u32 as i32)),
        I64 => Value::I64(bits as i64),
        F32 => Value::F64(f64::from(f32::from_bits(bits as u32))),
        F64 => Value::F64(f64::from_bits(bits)),
        BOOL => Value::Bool(bits != 0),
        _ => return None,
    })
}

/// Reads the value type, then the value, checking everything inside it.
pub(crate) fn read<'a>(cursor: &mut Cursor<'a>, field: &str) -> Result<Value<'a>, GgufError> {
    let kind = cursor.u32(field)?;
    match kind {
        STRING => Ok(Value::Str(cursor.str(field)?)),
        ARRAY => Ok(Value::Array(read_array(cursor, field, 1)?)),
        _ => {
            let unknown = || GgufError::ValueType { field: field.to_owned(), value: kind };
            let bytes = cursor.take(scalar_bytes(kind).ok_or_else(unknown)?, field)?;
            scalar(kind, bytes).ok_or_else(unknown)
        }
    }
}

fn read_array<'a>(cursor: &mut Cursor<'a>, field: &str, depth: u32) -> Result<Array<'a>, GgufError> {
    if depth > NESTING_LIMIT {
        return Err(GgufError::Nesting { field: field.to_owned(), limit: NESTING_LIMIT });
    }
    let element = cursor.u32(field)?;
    let min_bytes = match (element, scalar_bytes(element)) {
        (_, Some(bytes)) => bytes,
        (STRING, _) => 8,
        (ARRAY, _) => 12,
        _ => return Err(GgufError::ValueType { field: field.to_owned(), value: element }),
    };
    let len = cursor.count(min_bytes, field)?;
    let mut inside = Cursor::new(cursor.take(cursor.remaining() as u64, field)?, 0);
    let start = cursor.offset - inside.remaining();
    match element {
        STRING => {
            for _ in 0..len {
                inside.str(field)?;
            }
        }
        ARRAY => {
            for _ in 0..len {
                read_array(&mut inside, field, depth + 1)?;
            }
        }
        _ => {
            inside.take(min_bytes * len as u64, field)?;
        }
    }
    let used = inside.offset;
    cursor.offset = start;
    Ok(Array { element, len, bytes: cursor.take(used as u64, field)? })
}
