//! Rows of any weight type as f32, and activations rounded to int8.

use super::{
    formats,
    pool::{Pool, SharedMut},
    simd::{Isa, Kernel, Simd},
};
use engine_store::GgmlType;
use half::{bf16, f16};

/// Elements per block in every format the kernels know, and in quantised activations.
pub const BLOCK: usize = 32;

/// Writes a row of any runnable type as f32. `bytes` holds exactly `out.len()` elements.
pub fn dequantise(kind: GgmlType, bytes: &[u8], out: &mut [f32]) {
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
        // `validate` lets no other type through.
        _ if !formats::dequantise(kind, bytes, out) => out.fill(f32::NAN),
        _ => {}
    }
}

pub(super) fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// One row: its blocks, and each block's scale and scale times sum.
pub type QuantisedRow<'a> = (&'a [[i8; BLOCK]], &'a [[f32; 2]]);

/// Rows of activations rounded to int8 per block of 32: `x ~ q * scale`.
#[derive(Default)]
pub struct Quantised {
    width: usize,
    q: Vec<[i8; BLOCK]>,
    /// Scale and scale times sum(q) of each block; the sum serves formats with a minimum.
    scale: Vec<[f32; 2]>,
}

impl Quantised {
    /// Makes room for `tokens` rows of `width` elements, a multiple of 32.
    pub fn resize(&mut self, tokens: usize, width: usize) {
        self.width = width;
        self.q.resize(tokens * width / BLOCK, [0; BLOCK]);
        self.scale.resize(tokens * width / BLOCK, [0.0; 2]);
    }

    pub fn blocks(&self) -> usize {
        self.width / BLOCK
    }

    pub fn row(&self, token: usize) -> QuantisedRow<'_> {
        let range = token * self.blocks()..(token + 1) * self.blocks();
        (&self.q[range.clone()], &self.scale[range])
    }

    /// Rounds all rows of `x`, whose size was given to `resize`.
    pub fn fill(&mut self, pool: &mut Pool, isa: Isa, x: &[f32]) {
        const ROWS_PER_ITEM: usize = 8;
        let (blocks, width) = (self.blocks() * ROWS_PER_ITEM, self.width * ROWS_PER_ITEM);
        let (q, scale) = (SharedMut::new(&mut self.q), SharedMut::new(&mut self.scale));
        pool.run(x.len().div_ceil(width), &|item| {
            let x = &x[item * width..x.len().min((item + 1) * width)];
            let count = x.len() / BLOCK;
            // SAFETY: items cover disjoint ranges of blocks, and each item is handed out once.
            let (q, scale) = unsafe { (q.slice(item * blocks, count), scale.slice(item * blocks, count)) };
            quantise_row(isa, x, q, scale);
        });
    }
}

/// Rounds one row. A non-finite input makes its block's scale NaN, so that it cannot pass unseen.
pub fn quantise_row(isa: Isa, x: &[f32], q: &mut [[i8; BLOCK]], scale: &mut [[f32; 2]]) {
    isa.run(QuantiseRow { x, q, scale });
}

struct QuantiseRow<'a> {
    x: &'a [f32],
    q: &'a mut [[i8; BLOCK]],
    scale: &'a mut [[f32; 2]],
}

impl Kernel for QuantiseRow<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let blocks = self.x.as_chunks::<BLOCK>().0.iter();
        for ((x, q), scale) in blocks.zip(self.q).zip(self.scale) {
            let (x, _) = x.as_chunks::<8>();
            let x = [s.load(&x[0]), s.load(&x[1]), s.load(&x[2]), s.load(&x[3])];
            let (mut high, mut poison) = (s.zero(), s.zero());
            for v in x {
                high = s.max(s.max(v, s.sub(s.zero(), v)), high);
                poison = s.fma(v, s.zero(), poison);
            }
            let high = s.array(high).into_iter().fold(0.0f32, |a, b| if a > b { a } else { b });
            let inverse = s.splat(if high > 0.0 { 127.0 / high } else { 0.0 });
            let mut rounded = x;
            for v in &mut rounded {
                *v = s.round(s.mul(*v, inverse));
            }
            s.store_i8(rounded, q);
            let sum = s.sum(s.add(s.add(rounded[0], rounded[1]), s.add(rounded[2], rounded[3])));
            let step = high / 127.0 + s.sum(poison);
            *scale = [step, step * sum];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_round_to_nearest_and_poison_shows() {
        let x: Vec<f32> = (0..64).map(|i| (i as f32 - 20.0) * 0.37).collect();
        for isa in [Isa::detect(), Isa::Portable] {
            let (mut q, mut scale) = ([[0; 32]; 2], [[0.0; 2]; 2]);
            quantise_row(isa, &x, &mut q, &mut scale);
            for (i, x) in x.iter().enumerate() {
                let step = scale[i / 32][0];
                assert!((f32::from(q[i / 32][i % 32]) * step - x).abs() <= step * 0.5001);
            }
            for bad in [f32::NAN, f32::INFINITY] {
                let mut x = x.clone();
                x[40] = bad;
                quantise_row(isa, &x, &mut q, &mut scale);
                assert!(scale[0][0].is_finite() && !scale[1][0].is_finite());
            }
        }
    }
}
