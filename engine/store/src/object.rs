//! What the store keeps: objects, named by their content. An object is cut into chunks that are read and verified each
//! by itself, in any order; its name is a hash of their checksums, so a list of checksums proves itself.

use std::{fmt, ops::Range};

/// What direct I/O asks of offsets, lengths and addresses. Objects are whole blocks.
pub const BLOCK_BYTES: u64 = 4096;
/// What is read and verified at once: large enough for a disk's full speed, small enough to spread over queues.
pub const CHUNK_BYTES: u64 = 1 << 20;
/// Keeps names of objects apart from hashes of anything else.
const DOMAIN: &str = "foreshock 2026 object of checked chunks, version 1";

/// A BLAKE3 hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Checksum([u8; 32]);

impl Checksum {
    /// Hexadecimal digits of one.
    pub(crate) const DIGITS: usize = 64;

    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// From 64 lower-case hexadecimal digits: one spelling only, because checksums are file names.
    pub fn parse(text: &str) -> Option<Self> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let mut out = [0; 32];
        if pairs.len() != out.len() || !rest.is_empty() {
            return None;
        }
        for (out, [high, low]) in out.iter_mut().zip(pairs) {
            *out = digit(*high)? << 4 | digit(*low)?;
        }
        Some(Self(out))
    }
}

impl From<blake3::Hash> for Checksum {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An object: how long it is, and the checksum of each chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    name: Checksum,
    bytes: u64,
    chunks: Vec<Checksum>,
}

impl Object {
    /// None unless `bytes` are whole blocks, at least one, and there is a checksum for each chunk of them.
    pub fn new(bytes: u64, chunks: Vec<Checksum>) -> Option<Self> {
        if bytes == 0 || !bytes.is_multiple_of(BLOCK_BYTES) || chunks.len() as u64 != bytes.div_ceil(CHUNK_BYTES) {
            return None;
        }
        let mut hash = blake3::Hasher::new_derive_key(DOMAIN);
        hash.update(&bytes.to_le_bytes());
        chunks.iter().for_each(|chunk| {
            hash.update(&chunk.0);
        });
        Some(Self { name: Checksum(*hash.finalize().as_bytes()), bytes, chunks })
    }

    /// Its name, which is its content's.
    pub fn name(&self) -> Checksum {
        self.name
    }

    /// Bytes, filled up to whole blocks.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Checksums of the chunks, in order.
    pub fn chunks(&self) -> &[Checksum] {
        &self.chunks
    }

    /// Where a chunk lies.
    pub fn chunk_range(&self, chunk: usize) -> Range<u64> {
        let start = chunk as u64 * CHUNK_BYTES;
        start..self.bytes.min(start + CHUNK_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_have_one_spelling() {
        let text = Checksum::of(b"abc").to_string();
        assert_eq!(text, "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85");
        assert_eq!(Checksum::parse(&text), Some(Checksum::of(b"abc")));
        for bad in [&text.to_uppercase(), &text[1..], "", &text.replace('6', "g"), &format!("{text}00")] {
            assert_eq!(Checksum::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_name_depends_on_length_and_on_every_chunk() {
        let sum = |text: &str| Checksum::of(text.as_bytes());
        let object = Object::new(CHUNK_BYTES + BLOCK_BYTES, vec![sum("a"), sum("b")]).unwrap();
        assert_eq!(object.chunk_range(1), CHUNK_BYTES..CHUNK_BYTES + BLOCK_BYTES);
        let other = |bytes, chunks| assert_ne!(Object::new(bytes, chunks).unwrap().name(), object.name());
        other(CHUNK_BYTES + 2 * BLOCK_BYTES, vec![sum("a"), sum("b")]);
        other(CHUNK_BYTES + BLOCK_BYTES, vec![sum("b"), sum("a")]);
        other(CHUNK_BYTES + BLOCK_BYTES, vec![sum("a"), sum("c")]);
        for (bytes, chunks) in [(0, vec![]), (100, vec![sum("a")]), (BLOCK_BYTES, vec![]), (u64::MAX, vec![sum("a")])] {
            assert_eq!(Object::new(bytes, chunks), None);
        }
    }
}
