//! Checkpoints of one shape with nothing in common: the demo checkpoint with random quants, its scales as they are. What
//! they say is noise; what they weigh and take is that of the real one.

use anyhow::{Context, Result, bail, ensure};
use std::path::Path;

/// SplitMix64.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0..1, never 0.
    pub(super) fn share(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }
}

/// What of a block of a type is noise: its length in bytes, and where the quants begin. Of plain numbers, the lowest byte.
fn block(kind: u32) -> Result<(usize, std::ops::Range<usize>, u64)> {
    Ok(match kind {
        0 => (4, 0..1, 1),
        2 => (18, 2..18, 32),
        3 => (20, 4..20, 32),
        8 => (34, 2..34, 32),
        _ => bail!("a tensor of type {kind} has no known place for noise"),
    })
}

/// A GGUF file's bytes, read from the front.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn take(&mut self, count: usize) -> Result<&[u8]> {
        let taken = self.bytes.get(self.at..self.at.saturating_add(count)).context("the checkpoint is cut short")?;
        self.at += count;
        Ok(taken)
    }

    fn number(&mut self, bytes: usize) -> Result<u64> {
        let mut wide = [0; 8];
        wide[..bytes].copy_from_slice(self.take(bytes)?);
        Ok(u64::from_le_bytes(wide))
    }

    fn skip_text(&mut self) -> Result<()> {
        let length = self.number(8)?;
        self.take(usize::try_from(length)?).map(drop)
    }

    fn skip_value(&mut self, kind: u64) -> Result<()> {
        match kind {
            0 | 1 | 7 => self.take(1).map(drop),
            2 | 3 => self.take(2).map(drop),
            4..=6 => self.take(4).map(drop),
            10..=12 => self.take(8).map(drop),
            8 => self.skip_text(),
            9 => {
                let (inner, count) = (self.number(4)?, self.number(8)?);
                ensure!(inner != 9, "arrays of arrays");
                (0..count).try_for_each(|_| self.skip_value(inner))
            }
            _ => bail!("a value of type {kind}"),
        }
    }
}

/// The tensors of a GGUF file: type, elements, and where they begin in it.
fn tensors(bytes: &[u8]) -> Result<Vec<(u32, u64, usize)>> {
    let mut cursor = Cursor { bytes, at: 8 };
    let (count, pairs) = (cursor.number(8)?, cursor.number(8)?);
    for _ in 0..pairs {
        cursor.skip_text()?;
        let kind = cursor.number(4)?;
        cursor.skip_value(kind)?;
    }
    let mut tensors = Vec::new();
    for _ in 0..count {
        cursor.skip_text()?;
        let dims = cursor.number(4)?;
        let elements =
            (0..dims).try_fold(1, |product: u64, _| Ok::<u64, anyhow::Error>(product * cursor.number(8)?))?;
        let (kind, offset) = (cursor.number(4)?, cursor.number(8)?);
        tensors.push((u32::try_from(kind)?, elements, usize::try_from(offset)?));
    }
    let data = cursor.at.next_multiple_of(32);
    Ok(tensors.into_iter().map(|(kind, elements, offset)| (kind, elements, data + offset)).collect())
}

/// The checkpoint with noise of this seed.
pub(super) fn copy(bytes: &[u8], seed: u64) -> Result<Vec<u8>> {
    let (mut copy, mut random) = (bytes.to_vec(), Random(seed));
    for (kind, elements, start) in tensors(bytes)? {
        let (length, noise, each) = block(kind)?;
        let blocks = usize::try_from(elements / each)?;
        let tensor = copy.get_mut(start..start + blocks * length).context("the checkpoint is cut short")?;
        for block in tensor.chunks_exact_mut(length) {
            for bytes in block[noise.clone()].chunks_mut(8) {
                let drawn = random.next().to_le_bytes();
                bytes.copy_from_slice(&drawn[..bytes.len()]);
            }
        }
    }
    Ok(copy)
}

/// Writes it.
pub(super) fn write(from: &[u8], to: &Path, seed: u64) -> Result<()> {
    std::fs::write(to, copy(from, seed)?).with_context(|| format!("cannot write {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One pair of metadata, and a matrix of 64 numbers in Q8_0.
    fn checkpoint() -> Vec<u8> {
        let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend([1u64.to_le_bytes(), 1u64.to_le_bytes()].concat());
        bytes.extend([text("a"), 9u32.to_le_bytes().to_vec(), 8u32.to_le_bytes().to_vec()].concat());
        bytes.extend([2u64.to_le_bytes().to_vec(), text("b"), text("c")].concat());
        bytes.extend([text("m"), 1u32.to_le_bytes().to_vec(), 64u64.to_le_bytes().to_vec()].concat());
        bytes.extend([8u32.to_le_bytes().to_vec(), 0u64.to_le_bytes().to_vec()].concat());
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend([7; 68]);
        bytes
    }

    #[test]
    fn quants_are_noise_and_all_else_stays() {
        let from = checkpoint();
        let (one, other) = (copy(&from, 1).expect("read"), copy(&from, 2).expect("read"));
        assert!(one != other && one == copy(&from, 1).expect("read"));
        let data = from.len() - 68;
        assert_eq!(one[..data + 2], from[..data + 2]);
        assert_eq!(one[data + 34..data + 36], [7, 7]);
        assert!(one[data + 2..data + 34].iter().filter(|byte| **byte == 7).count() < 8);
        assert!(copy(&from[..data + 10], 1).is_err() && copy(&from[..20], 1).is_err());
    }
}
