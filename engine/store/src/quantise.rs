//! Quantisation at load: rows of f32, f16 or bf16 rounded to ggml's simple formats, exactly as its reference does
//! (ggml-quants.c, `quantize_row_q8_0_ref` and its neighbours), so that a folder quantised here and the same one
//! converted and quantised by llama.cpp have the same bits.

use crate::{GgmlType, TensorData};
use half::{bf16, f16};
use serde::{Deserialize, Serialize};
use std::{fmt, num::NonZeroUsize, str::FromStr, thread};
use thiserror::Error;

const BLOCK: usize = 32;

/// What matrices are rounded to.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quantisation {
    Q8_0,
    Q4_0,
    Q4_1,
}

impl Quantisation {
    pub const ALL: [Self; 3] = [Self::Q8_0, Self::Q4_0, Self::Q4_1];

    fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
        }
    }

    /// The type of a matrix. One with a row per token of the vocabulary keeps eight bits: these suffer most from
    /// few, and llama.cpp spares them too.
    pub(crate) fn of(self, is_vocabulary: bool) -> GgmlType {
        match self {
            Self::Q4_0 if !is_vocabulary => GgmlType::Q4_0,
            Self::Q4_1 if !is_vocabulary => GgmlType::Q4_1,
            _ => GgmlType::Q8_0,
        }
    }
}

impl fmt::Display for Quantisation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no quantisation.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{name:?} is no quantisation at load; there are q8_0, q4_0 and q4_1")]
pub struct UnknownQuantisation {
    pub name: String,
}

impl FromStr for Quantisation {
    type Err = UnknownQuantisation;

    fn from_str(name: &str) -> Result<Self, UnknownQuantisation> {
        let same = |other: &Self| other.name().eq_ignore_ascii_case(name);
        Self::ALL.into_iter().find(same).ok_or_else(|| UnknownQuantisation { name: name.to_owned() })
    }
}

/// Why numbers cannot be rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RoundError {
    #[error("holds a number in row {row} that is not finite or too large to be quantised")]
    NotFinite { row: u64 },
    #[error("cannot be quantised from {from} to {to}")]
    Types { from: GgmlType, to: GgmlType },
}

/// Numbers of a plain type as f32. `bytes` hold as many as `out`; those of any other type become NaN.
pub(crate) fn widen(kind: GgmlType, bytes: &[u8], out: &mut [f32]) {
    match kind {
        GgmlType::F32 => {
            for (out, x) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *out = f32::from_le_bytes(*x);
            }
        }
        GgmlType::F16 => {
            for (out, x) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = f16::from_le_bytes(*x).to_f32();
            }
        }
        GgmlType::BF16 => {
            for (out, x) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = bf16::from_le_bytes(*x).to_f32();
            }
        }
        _ => out.fill(f32::NAN),
    }
}

/// Rounds a whole matrix, rows shared out to as many threads as the process has cores.
pub(crate) fn rows(matrix: &TensorData, to: GgmlType) -> Result<Vec<u8>, RoundError> {
    let from = matrix.kind();
    let round = match (from, to) {
        (GgmlType::F32 | GgmlType::F16 | GgmlType::BF16, GgmlType::Q8_0) => q8_0,
        (GgmlType::F32 | GgmlType::F16 | GgmlType::BF16, GgmlType::Q4_0) => q4_0,
        (GgmlType::F32 | GgmlType::F16 | GgmlType::BF16, GgmlType::Q4_1) => q4_1,
        _ => return Err(RoundError::Types { from, to }),
    };
    let cols = matrix.dims().first().map_or(0, |cols| *cols as usize);
    let (from_bytes, to_bytes) = (from.bytes(cols as u64), to.bytes(cols as u64));
    let (Some(from_bytes @ 1..), Some(to_bytes)) = (from_bytes, to_bytes) else {
        return Err(RoundError::Types { from, to });
    };
    let (from_bytes, to_bytes) = (from_bytes as usize, to_bytes as usize);
    let count = matrix.len() / from_bytes;
    let mut out = vec![0; count * to_bytes];
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let share = count.div_ceil(threads).max(1);
    let round_rows = |first: usize, stored: &[u8], rounded: &mut [u8]| -> Result<(), RoundError> {
        let mut row = vec![0.0; cols];
        let rows = stored.chunks_exact(from_bytes).zip(rounded.chunks_exact_mut(to_bytes));
        for (index, (stored, rounded)) in rows.enumerate() {
            widen(from, stored, &mut row);
            if !round(&row, rounded) {
                return Err(RoundError::NotFinite { row: (first + index) as u64 });
            }
        }
        Ok(())
    };
    let round_rows = &round_rows;
    thread::scope(|scope| {
        let parts = matrix.chunks(share * from_bytes).zip(out.chunks_mut(share * to_bytes)).enumerate();
        let start = |(part, (stored, rounded))| scope.spawn(move || round_rows(part * share, stored, rounded));
        let threads: Vec<_> = parts.map(start).collect();
        // A thread that panicked has hit a bug; the panic goes on here.
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().try_for_each(join)
    })?;
    Ok(out)
}

/// Stores a number as f16; false when it has none.
fn put(x: f32, out: &mut [u8]) -> bool {
    let half = f16::from_f32(x);
    out[..2].copy_from_slice(&half.to_le_bytes());
    half.is_finite()
}

fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// One row to Q8_0; false when a block's scale is no finite f16, as of numbers that are not finite.
fn q8_0(row: &[f32], out: &mut [u8]) -> bool {
    let mut good = true;
    for (x, out) in row.as_chunks::<BLOCK>().0.iter().zip(out.as_chunks_mut::<34>().0) {
        let high = x.iter().fold(0.0f32, |high, x| high.max(x.abs()));
        let scale = high / 127.0;
        let factor = inverse(scale);
        good &= put(scale, out) && finite(x);
        for (out, x) in out[2..].iter_mut().zip(x) {
            // `round` takes halves away from zero, as C's roundf does.
            *out = (x * factor).round() as i8 as u8;
        }
    }
    good
}

fn q4_0(row: &[f32], out: &mut [u8]) -> bool {
    let mut good = true;
    for (x, out) in row.as_chunks::<BLOCK>().0.iter().zip(out.as_chunks_mut::<18>().0) {
        // The number furthest from zero, with its sign: it becomes -8, the code that has no counterpart.
        let far = x.iter().fold(0.0f32, |far, x| if x.abs() > far.abs() { *x } else { far });
        let scale = far / -8.0;
        let factor = inverse(scale);
        good &= put(scale, out) && finite(x);
        // The reference is compiled to a fused multiply-add, whose one rounding f64 gives on any machine.
        let code = |x: f32| ((f64::from(x) * f64::from(factor) + 8.5) as f32 as i8).min(15) as u8;
        for (index, out) in out[2..].iter_mut().enumerate() {
            *out = code(x[index]) | code(x[index + BLOCK / 2]) << 4;
        }
    }
    good
}

fn q4_1(row: &[f32], out: &mut [u8]) -> bool {
    let mut good = true;
    for (x, out) in row.as_chunks::<BLOCK>().0.iter().zip(out.as_chunks_mut::<20>().0) {
        let low = x.iter().copied().fold(f32::INFINITY, f32::min);
        let high = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let scale = (high - low) / 15.0;
        let factor = inverse(scale);
        good &= put(scale, out) && put(low, &mut out[2..]) && finite(x);
        let code = |x: f32| (((x - low) * factor + 0.5) as i8).min(15) as u8;
        for (index, out) in out[4..].iter_mut().enumerate() {
            *out = code(x[index]) | code(x[index + BLOCK / 2]) << 4;
        }
    }
    good
}

fn finite(x: &[f32; BLOCK]) -> bool {
    x.iter().all(|x| x.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest;
    use sha2::{Digest, Sha256};

    /// Uneven noise with a block of zeros and two of one number each.
    fn numbers() -> Vec<f32> {
        let noise = |index: u32| {
            let bits = index.wrapping_mul(0x9e37_79b9).rotate_left(13).wrapping_mul(0x85eb_ca6b);
            let x = bits as i32 as f32 / (1u32 << 31) as f32;
            x * x * x
        };
        let mut x: Vec<f32> = (0..4096).map(noise).collect();
        x[64..96].fill(0.0);
        x[96..128].fill(0.25);
        x[128..160].fill(-3.0);
        x
    }

    fn matrix(kind: GgmlType, x: &[f32]) -> TensorData {
        let bytes = x.iter().flat_map(|x| match kind {
            GgmlType::F32 => x.to_le_bytes().to_vec(),
            GgmlType::F16 => f16::from_f32(*x).to_le_bytes().to_vec(),
            _ => bf16::from_f32(*x).to_le_bytes().to_vec(),
        });
        TensorData::from_bytes(kind, vec![128, x.len() as u64 / 128], bytes.collect()).expect("a matrix")
    }

    /// `expected`: SHA-256 of what `quantize` of gguf 0.17 (PyPI), llama.cpp's own second implementation, makes of the
    /// same numbers.
    fn check(to: GgmlType, expected: &str) {
        let rounded = rows(&matrix(GgmlType::F32, &numbers()), to).expect("finite numbers");
        assert_eq!(digest::hex(&Sha256::digest(&rounded)), expected, "{to}");
    }

    #[test]
    fn rounding_is_that_of_ggml() {
        check(GgmlType::Q8_0, "f59d3933189f6b126a8f16614e63b6666116ebaf81cec6253ea41d55a784ee00");
        check(GgmlType::Q4_0, "5eb681bbbfc2f4285c7a9729da9da73d700bace91db60c8ce812435fa7aaf473");
        check(GgmlType::Q4_1, "7235e857399262d303da399c380e5dfb842d33dc88dcf2cde75d5c688d202f8b");
    }

    /// Scale, minimum and 32 codes of a block.
    fn block(to: GgmlType, bytes: &[u8]) -> (f32, f32, Vec<f32>) {
        let half = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
        let nibbles = |bytes: &[u8], less: f32| {
            let low = bytes.iter().map(|byte| f32::from(byte & 15) - less);
            low.chain(bytes.iter().map(|byte| f32::from(byte >> 4) - less)).collect()
        };
        match to {
            GgmlType::Q8_0 => (half(0), 0.0, bytes[2..].iter().map(|byte| f32::from(*byte as i8)).collect()),
            GgmlType::Q4_0 => (half(0), 0.0, nibbles(&bytes[2..], 8.0)),
            _ => (half(0), half(2), nibbles(&bytes[4..], 0.0)),
        }
    }

    /// No number is further off than the format allows: half a step, which is a whole one at the end of Q4_0's range
    /// that has no code, and what rounding scale and minimum to f16 adds.
    #[test]
    fn round_trips_stay_within_half_a_step() {
        for from in [GgmlType::F32, GgmlType::F16, GgmlType::BF16] {
            for to in [GgmlType::Q8_0, GgmlType::Q4_0, GgmlType::Q4_1] {
                let stored = matrix(from, &numbers());
                let mut x = vec![0.0; 4096];
                widen(from, &stored, &mut x);
                let rounded = rows(&stored, to).expect("finite numbers");
                for (x, bytes) in x.chunks(BLOCK).zip(rounded.chunks(to.block_bytes() as usize)) {
                    let (scale, min, codes) = block(to, bytes);
                    let steps = if to == GgmlType::Q4_0 { 1.0 } else { 0.5 };
                    let high = x.iter().fold(0.0f32, |high, x| high.max(x.abs()));
                    let bound = scale.abs() * steps * 1.001 + high * 2e-3;
                    for (x, code) in x.iter().zip(codes) {
                        assert!(
                            (x - (code * scale + min)).abs() <= bound,
                            "{from} to {to}: {x}, {code} * {scale} + {min}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_rounded_is_named() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
            for to in [GgmlType::Q8_0, GgmlType::Q4_0, GgmlType::Q4_1] {
                let mut x = numbers();
                x[128 * 17 + 5] = bad;
                let error = rows(&matrix(GgmlType::F32, &x), to);
                assert_eq!(error, Err(RoundError::NotFinite { row: 17 }), "{bad} to {to}");
            }
        }
        let error = rows(&matrix(GgmlType::F32, &numbers()), GgmlType::Q4_K).map_err(|error| error.to_string());
        assert_eq!(error, Err("cannot be quantised from F32 to Q4_K".into()));
        assert_eq!("q4_k".parse::<Quantisation>().map_err(|error| error.name), Err("q4_k".into()));
        assert!(Quantisation::ALL.iter().all(|each| each.to_string().parse() == Ok(*each)));
    }
}
