//! What a fine-tune's tensor is kept as when that takes less room: its numbers' differences from the base's, compressed
//! chunk by chunk. Only how an object lies on the disk; its name and checksums are those of its own bytes, so everything
//! that is read through a difference is verified like everything else.
//!
//! ```text
//! frames      one for each chunk: none when it is the base's, else zstd, or as it is where that is no shorter
//! trailer     JSON: what they are of, and how long each is
//! 4 bytes     the trailer's length, and 8 bytes that say what this is
//! ```

use crate::{Checksum, GgmlType, Object, object::CHUNK_BYTES};
use serde::{Deserialize, Serialize};
use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

const MAGIC: [u8; 8] = *b"fsdiff01";
const END_BYTES: u64 = 12;
/// Longest trailer: that of an object of a terabyte.
const TRAILER_BYTES_MAX: u64 = 16 << 20;
/// Noise gains nothing from more work.
const LEVEL: i32 = 1;

/// Bytes of a number, whose differences are small when numbers are near each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub(crate) enum Unit {
    One,
    Two,
    Four,
}

impl Unit {
    pub(crate) fn of(kind: GgmlType) -> Self {
        match kind {
            GgmlType::F16 | GgmlType::BF16 => Self::Two,
            GgmlType::F32 => Self::Four,
            _ => Self::One,
        }
    }
}

impl TryFrom<u8> for Unit {
    type Error = String;

    fn try_from(bytes: u8) -> Result<Self, String> {
        match bytes {
            1 => Ok(Self::One),
            2 => Ok(Self::Two),
            4 => Ok(Self::Four),
            _ => Err(format!("numbers of {bytes} bytes")),
        }
    }
}

impl From<Unit> for u8 {
    fn from(unit: Unit) -> Self {
        match unit {
            Unit::One => 1,
            Unit::Two => 2,
            Unit::Four => 4,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Trailer {
    object: String,
    base: String,
    unit: Unit,
    frames: Vec<u64>,
}

/// An object's difference, opened: of which base, and where its frames lie.
#[derive(Debug)]
pub(crate) struct Difference {
    file: File,
    pub(crate) base: Checksum,
    unit: Unit,
    frames: Vec<Range<u64>>,
}

fn odd(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

impl Difference {
    /// Reads the trailer, and believes none of it: every frame lies in the file and is no longer than a chunk.
    pub(crate) fn open(file: File, object: &Object) -> io::Result<Self> {
        let len = file.metadata()?.len();
        let end = len.checked_sub(END_BYTES).ok_or_else(|| odd("it is too short"))?;
        let mut tail = [0; END_BYTES as usize];
        file.read_exact_at(&mut tail, end)?;
        let (length, magic) = tail.split_at(4);
        if magic != MAGIC {
            return Err(odd("it is no difference"));
        }
        let length = length.try_into().map_or(0, u32::from_le_bytes).into();
        let start =
            end.checked_sub(length).filter(|_| length <= TRAILER_BYTES_MAX).ok_or_else(|| odd("it is too short"))?;
        let mut text = vec![0; length as usize];
        file.read_exact_at(&mut text, start)?;
        let trailer: Trailer = serde_json::from_slice(&text).map_err(|error| odd(&error.to_string()))?;
        if Checksum::parse(&trailer.object) != Some(object.name()) || trailer.frames.len() != object.chunks().len() {
            return Err(odd("it is another object's"));
        }
        let base = Checksum::parse(&trailer.base).ok_or_else(|| odd("it names no base"))?;
        let mut frames = Vec::with_capacity(trailer.frames.len());
        let mut at = 0u64;
        for bytes in trailer.frames {
            let next = at.checked_add(bytes).filter(|next| bytes <= CHUNK_BYTES && *next <= start);
            let next = next.ok_or_else(|| odd("its frames are longer than it is"))?;
            frames.push(at..next);
            at = next;
        }
        if at != start {
            return Err(odd("its frames do not fill it"));
        }
        Ok(Self { file, base, unit: trailer.unit, frames })
    }

    /// A chunk of the object, from that chunk of its base; whatever it is, it must be verified. `out` is as long as `base`.
    pub(crate) fn chunk(&self, index: usize, base: &[u8], out: &mut [u8], scratch: &mut Scratch) -> io::Result<()> {
        let range = self.frames.get(index).cloned().ok_or_else(|| odd("it has no such chunk"))?;
        let Scratch { frame, planes, decompressor } = scratch;
        let (frame, planes) = match (frame.get_mut(..(range.end - range.start) as usize), planes.get_mut(..out.len())) {
            (Some(frame), Some(planes)) => (frame, planes),
            _ => return Err(odd("it has a chunk that is too long")),
        };
        if frame.is_empty() {
            out.copy_from_slice(base);
            return Ok(());
        }
        self.file.read_exact_at(frame, range.start)?;
        if frame.len() == out.len() {
            apply(self.unit, frame, base, out);
            return Ok(());
        }
        if decompressor.decompress_to_buffer(frame, planes)? != out.len() {
            return Err(odd("a frame is too short"));
        }
        apply(self.unit, planes, base, out);
        Ok(())
    }
}

/// Memory to work in, kept from chunk to chunk.
pub(crate) struct Scratch {
    frame: Vec<u8>,
    planes: Vec<u8>,
    decompressor: zstd::bulk::Decompressor<'static>,
}

impl Scratch {
    pub(crate) fn new() -> io::Result<Self> {
        let chunk = || vec![0; CHUNK_BYTES as usize];
        Ok(Self { frame: chunk(), planes: chunk(), decompressor: zstd::bulk::Decompressor::new()? })
    }
}

/// Makes a difference, chunk by chunk.
pub(crate) struct Differ {
    unit: Unit,
    frames: Vec<u64>,
    compressor: zstd::bulk::Compressor<'static>,
}

impl Differ {
    pub(crate) fn new(unit: Unit) -> io::Result<Self> {
        Ok(Self { unit, frames: Vec::new(), compressor: zstd::bulk::Compressor::new(LEVEL)? })
    }

    /// The frame of the next chunk.
    pub(crate) fn frame(&mut self, base: &[u8], tuned: &[u8]) -> io::Result<Vec<u8>> {
        let frame = match base == tuned {
            true => Vec::new(),
            false => {
                let planes = take(self.unit, base, tuned);
                let frame = self.compressor.compress(&planes)?;
                if frame.len() < planes.len() { frame } else { planes }
            }
        };
        self.frames.push(frame.len() as u64);
        Ok(frame)
    }

    /// Frames so far.
    pub(crate) fn chunks(&self) -> usize {
        self.frames.len()
    }

    /// Bytes of all frames so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.frames.iter().sum()
    }

    /// What follows the frames.
    pub(crate) fn trailer(self, object: Checksum, base: Checksum) -> Vec<u8> {
        let trailer =
            Trailer { object: object.to_string(), base: base.to_string(), unit: self.unit, frames: self.frames };
        // Strings and numbers alone: that cannot fail.
        let mut out = serde_json::to_vec(&trailer).unwrap_or_default();
        out.extend((out.len() as u32).to_le_bytes());
        out.extend(MAGIC);
        out
    }
}

/// Differences of numbers, small ones of either sign as small numbers, with the bytes of one weight side by side: the
/// higher ones are then mostly zeros.
macro_rules! planes {
    ($take:ident, $apply:ident, $unsigned:ty, $signed:ty) => {
        fn $take(base: &[u8], tuned: &[u8], out: &mut [u8]) {
            const BYTES: usize = size_of::<$unsigned>();
            let (base, tuned) = (base.as_chunks::<BYTES>().0, tuned.as_chunks::<BYTES>().0);
            let fold = |base: &[u8; BYTES], tuned: &[u8; BYTES]| {
                let by = <$unsigned>::from_le_bytes(*tuned).wrapping_sub(<$unsigned>::from_le_bytes(*base)) as $signed;
                ((by << 1) ^ (by >> (<$signed>::BITS - 1))) as $unsigned
            };
            // A plane at a time, which compilers make wide instructions of.
            for (plane, out) in out.chunks_exact_mut(base.len().max(1)).enumerate() {
                for ((base, tuned), out) in base.iter().zip(tuned).zip(out) {
                    *out = (fold(base, tuned) >> (8 * plane)) as u8;
                }
            }
        }

        fn $apply(planes: &[u8], base: &[u8], out: &mut [u8]) {
            const BYTES: usize = size_of::<$unsigned>();
            let (base, out) = (base.as_chunks::<BYTES>().0, out.as_chunks_mut::<BYTES>().0);
            let count = base.len().min(out.len()).min(planes.len() / BYTES);
            let (base, out) = (&base[..count], &mut out[..count]);
            let planes: [&[u8]; BYTES] = std::array::from_fn(|plane| &planes[plane * count..][..count]);
            for at in 0..count {
                let folded = <$unsigned>::from_le_bytes(planes.map(|plane| plane[at]));
                let by = (folded >> 1) ^ (folded & 1).wrapping_neg();
                out[at] = <$unsigned>::from_le_bytes(base[at]).wrapping_add(by).to_le_bytes();
            }
        }
    };
}

planes!(take_one, apply_one, u8, i8);
planes!(take_two, apply_two, u16, i16);
planes!(take_four, apply_four, u32, i32);

/// Both are as long, and whole blocks.
fn take(unit: Unit, base: &[u8], tuned: &[u8]) -> Vec<u8> {
    let mut out = vec![0; tuned.len()];
    match unit {
        Unit::One => take_one(base, tuned, &mut out),
        Unit::Two => take_two(base, tuned, &mut out),
        Unit::Four => take_four(base, tuned, &mut out),
    }
    out
}

fn apply(unit: Unit, planes: &[u8], base: &[u8], out: &mut [u8]) {
    match unit {
        Unit::One => apply_one(planes, base, out),
        Unit::Two => apply_two(planes, base, out),
        Unit::Four => apply_four(planes, base, out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::BLOCK_BYTES;
    use proptest::prelude::*;
    use std::io::Write;

    const UNITS: [Unit; 3] = [Unit::One, Unit::Two, Unit::Four];

    fn blocks() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), BLOCK_BYTES as usize)
    }

    fn opened(bytes: &[u8], object: &Object) -> io::Result<Difference> {
        let mut file = tempfile::tempfile()?;
        file.write_all(bytes)?;
        Difference::open(file, object)
    }

    /// A difference of one chunk, and its object.
    fn made(unit: Unit, base: &[u8], tuned: &[u8]) -> (Vec<u8>, Object) {
        let object = Object::new(tuned.len() as u64, vec![Checksum::of(tuned)]).expect("whole blocks");
        let mut differ = Differ::new(unit).expect("memory");
        let frame = differ.frame(base, tuned).expect("compressed");
        ([frame, differ.trailer(object.name(), Checksum::of(base))].concat(), object)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn a_base_and_its_difference_are_the_object(base in blocks(), tuned in blocks(), near: bool, same: bool) {
            let near = |(at, byte): (usize, &u8)| if near { byte.wrapping_add((at % 7 == 0).into()) } else { tuned[at] };
            let tuned: Vec<u8> = base.iter().enumerate().map(near).collect();
            let tuned = if same { base.clone() } else { tuned };
            for unit in UNITS {
                let (bytes, object) = made(unit, &base, &tuned);
                let difference = opened(&bytes, &object).expect("a difference");
                prop_assert_eq!(difference.base, Checksum::of(&base));
                let mut out = vec![0; tuned.len()];
                let mut scratch = Scratch::new().expect("memory");
                difference.chunk(0, &base, &mut out, &mut scratch).expect("a chunk");
                prop_assert_eq!(&out, &tuned);
                prop_assert!(difference.chunk(1, &base, &mut out, &mut scratch).is_err());
            }
        }

        #[test]
        fn any_bytes_are_read_without_harm(base in blocks(), tuned in blocks(), at: usize, to: u8, cut: usize) {
            let (mut bytes, object) = made(Unit::Two, &base, &tuned);
            let at = at % bytes.len();
            bytes[at] = to;
            bytes.truncate(bytes.len() - (cut % 3) * (cut % bytes.len()));
            let Ok(difference) = opened(&bytes, &object) else { return Ok(()) };
            // What comes out is verified by whoever asked.
            let mut scratch = Scratch::new().expect("memory");
            let _ = difference.chunk(0, &base, &mut vec![0; tuned.len()], &mut scratch);
        }
    }

    #[test]
    fn numbers_that_are_near_take_little() {
        let number = |at: u32| (at.wrapping_mul(2_654_435_761) >> 16) as u16;
        let base: Vec<u8> = (0..1 << 16).flat_map(|at| number(at).to_le_bytes()).collect();
        let by = |at: u32| number(at ^ 77) % 4;
        let tuned: Vec<u8> = (0..1 << 16).flat_map(|at| number(at).wrapping_add(by(at)).to_le_bytes()).collect();
        let (bytes, _) = made(Unit::Two, &base, &tuned);
        // Two bits of sixteen, and little more.
        assert!(bytes.len() * 5 < tuned.len(), "{} of {}", bytes.len(), tuned.len());
    }
}
