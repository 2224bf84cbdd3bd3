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
        let code = |x: f32| ((x * factor + 8.5) as i8).min(15) as u8;
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
