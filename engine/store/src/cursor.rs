//! A bounds-checked little-endian reader that knows the name of what it reads, for error messages.

use crate::GgufError;

pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    pub(crate) offset: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8], offset: usize) -> Self {
        Self { bytes, offset }
    }

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.offset
    }

    pub(crate) fn take(&mut self, len: u64, field: &str) -> Result<&'a [u8], GgufError> {
        let available = self.remaining();
        let offset = self.offset;
        let truncated = || GgufError::Truncated { field: field.to_owned(), offset, needed: len, available };
        let len = usize::try_from(len).ok().filter(|len| *len <= available).ok_or_else(truncated)?;
        self.offset += len;
        Ok(&self.bytes[offset..self.offset])
    }

    fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N], GgufError> {
        let bytes = self.take(N as u64, field)?;
        let mut out = [0; N];
        out.copy_from_slice(bytes);
        Ok(out)
    }

    pub(crate) fn u32(&mut self, field: &str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    pub(crate) fn u64(&mut self, field: &str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    pub(crate) fn str(&mut self, field: &str) -> Result<&'a str, GgufError> {
        let len = self.u64(field)?;
        let bytes = self.take(len, field)?;
        std::str::from_utf8(bytes).map_err(|_| GgufError::Utf8 { field: field.to_owned() })
    }

    /// A count of things of at least `min_bytes` each, refused when the rest of the file cannot hold them,
    /// so that no count from the file ever sizes an allocation unchecked.
    pub(crate) fn count(&mut self, min_bytes: u64, field: &str) -> Result<usize, GgufError> {
        let count = self.u64(field)?;
        let limit = self.remaining() as u64 / min_bytes;
        if count > limit {
            return Err(GgufError::Count { field: field.to_owned(), count, limit });
        }
        Ok(count as usize)
    }
}
