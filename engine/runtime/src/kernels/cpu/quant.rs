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

/// What a block of 32 activations was rounded with. `q` are its bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scale {
    /// An activation is about `q * step`.
    pub step: f32,
    /// `step * sum(q)`, which a format's minimum is multiplied with.
    pub sum: f32,
    /// `-sum(q)`, of the whole block and of its halves, which makes good what an offset adds to integer products.
    pub negative: i32,
    pub negative_halves: [i32; 2],
}

/// Rows whose scales stand together for kernels that take a tile of tokens at once.
pub const TILE: usize = 16;

/// One row: its blocks and their scales.
pub type QuantisedRow<'a> = (&'a [[i8; BLOCK]], &'a [Scale]);

/// Rows of activations rounded to int8 per block of 32: `x ~ q * step`.
#[derive(Default)]
pub struct Quantised {
    width: usize,
    q: Vec<[i8; BLOCK]>,
    scale: Vec<Scale>,
    /// By tile and block: the steps of its rows, then their `Scale::sum`s. Past the last row is whatever was there before.
    tiles: Vec<[[f32; TILE]; 2]>,
}

impl Quantised {
    /// Makes room for `tokens` rows of `width` elements, a multiple of 32.
    pub fn resize(&mut self, tokens: usize, width: usize) {
        self.width = width;
        self.q.resize(tokens * width / BLOCK, [0; BLOCK]);
        self.scale.resize(tokens * width / BLOCK, Scale::default());
        self.tiles.resize(tokens.div_ceil(TILE) * (width / BLOCK), [[0.0; TILE]; 2]);
    }

    pub fn blocks(&self) -> usize {
        self.width / BLOCK
    }

    pub fn row(&self, token: usize) -> QuantisedRow<'_> {
        let range = token * self.blocks()..(token + 1) * self.blocks();
        (&self.q[range.clone()], &self.scale[range])
    }

    /// Bytes of rows from `token` on.
    pub(super) fn bytes_from(&self, token: usize) -> &[[i8; BLOCK]] {
        &self.q[token * self.blocks()..]
    }

    /// Scales of the tile that begins with `token`, a multiple of sixteen.
    pub(super) fn tile(&self, token: usize) -> &[[[f32; TILE]; 2]] {
        &self.tiles[token / TILE * self.blocks()..][..self.blocks()]
    }

    /// Rounds all rows of `x`, whose size was given to `resize`.
    pub fn fill(&mut self, pool: &mut Pool, isa: Isa, x: &[f32]) {
        let (width, rows) = (self.width, self.rows());
        let per_item = rows_per_item(x.len() / width, pool);
        pool.run((x.len() / width).div_ceil(per_item), &|item| {
            for (row, x) in x.chunks_exact(width).enumerate().skip(item * per_item).take(per_item) {
                // SAFETY: a row belongs to one item, and each item is handed out once.
                unsafe { rows.quantise(isa, row, x) };
            }
        });
    }

    /// Calls `produce(row, x)` for each row of `x`, whose size was given to `resize`, and rounds what that leaves there, as
    /// one parallel region.
    pub fn produce(&mut self, pool: &mut Pool, isa: Isa, x: &mut [f32], produce: impl Fn(usize, &mut [f32]) + Sync) {
        let (width, rows) = (self.width, self.rows());
        let per_item = rows_per_item(x.len() / width, pool);
        pool.for_each_chunk(x, per_item * width, |item, x| {
            for (row, x) in x.chunks_exact_mut(width).enumerate() {
                produce(item * per_item + row, x);
                // SAFETY: a row belongs to one item, and each item is handed out once.
                unsafe { rows.quantise(isa, item * per_item + row, x) };
            }
        });
    }

    fn rows(&mut self) -> Rows<'_> {
        let tiles = self.tiles.as_flattened_mut().as_flattened_mut();
        Rows {
            blocks: self.width / BLOCK,
            q: SharedMut::new(&mut self.q),
            scale: SharedMut::new(&mut self.scale),
            tiles: SharedMut::new(tiles),
        }
    }
}

/// Several rows make an item worth its hand-out, and a few rows still occupy all threads.
fn rows_per_item(rows: usize, pool: &Pool) -> usize {
    rows.div_ceil(2 * pool.threads()).clamp(1, 8)
}

/// Rows that several threads write.
struct Rows<'a> {
    blocks: usize,
    q: SharedMut<'a, [i8; BLOCK]>,
    scale: SharedMut<'a, Scale>,
    tiles: SharedMut<'a, f32>,
}

impl Rows<'_> {
    /// Rounds one row.
    ///
    /// # Safety
    /// No two threads may work on the same row at once.
    unsafe fn quantise(&self, isa: Isa, row: usize, x: &[f32]) {
        let first = row * self.blocks;
        // SAFETY: blocks of this row only.
        let (q, scale) = unsafe { (self.q.slice(first, self.blocks), self.scale.slice(first, self.blocks)) };
        quantise_row(isa, x, q, scale);
        let (tile, lane) = (row / TILE * self.blocks, row % TILE);
        for (block, scale) in scale.iter().enumerate() {
            let step = (tile + block) * 2 * TILE + lane;
            // SAFETY: elements of this row's lane only.
            let (steps, sums) = unsafe { (self.tiles.slice(step, 1), self.tiles.slice(step + TILE, 1)) };
            (steps[0], sums[0]) = (scale.step, scale.sum);
        }
    }
}

/// Blocks whose largest magnitude is below this are rounded to zero: 127 over it would overflow.
pub(super) const SMALLEST: f32 = 1e-30;

/// Rounds one row or several. A non-finite input makes its block's scale NaN, so that it cannot pass unseen.
pub fn quantise_row(isa: Isa, x: &[f32], q: &mut [[i8; BLOCK]], scale: &mut [Scale]) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the token proves that the features are there, VNNI having been asked for.
        Isa::Avx512(set) if set.vnni() => unsafe { super::quant_avx512::quantise(x, q, scale) },
        _ => isa.run(QuantiseRow { x, q, scale }),
    }
}

struct QuantiseRow<'a> {
    x: &'a [f32],
    q: &'a mut [[i8; BLOCK]],
    scale: &'a mut [Scale],
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
            if s.sum(poison) != 0.0 {
                // Only NaN, which an infinity times zero is too.
                (*q, *scale) = ([0; BLOCK], Scale { step: f32::NAN, sum: f32::NAN, ..Scale::default() });
                continue;
            }
            let high = s.array(high).into_iter().fold(0.0f32, |a, b| if a > b { a } else { b });
            let inverse = s.splat(if high >= SMALLEST { 127.0 / high } else { 0.0 });
            let mut rounded = x;
            for v in &mut rounded {
                *v = s.round(s.mul(*v, inverse));
            }
            s.store_i8(rounded, q);
            let halves = [s.sum(s.add(rounded[0], rounded[1])), s.sum(s.add(rounded[2], rounded[3]))];
            *scale = scale_of(high, halves.map(|half| half as i32));
        }
    }
}

/// The scale of a block whose largest magnitude is `high` and whose halves have these sums of bytes.
#[inline(always)]
pub(super) fn scale_of(high: f32, sums: [i32; 2]) -> Scale {
    let (step, sum) = (high / 127.0, sums[0] + sums[1]);
    Scale { step, sum: step * sum as f32, negative: -sum, negative_halves: sums.map(|sum| -sum) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_round_to_nearest_and_poison_shows() {
        let x: Vec<f32> = (0..96).map(|i| if i < 64 { (i as f32 - 20.0) * 0.37 } else { 1e-38 }).collect();
        for isa in Isa::available() {
            let (mut q, mut scale) = ([[0; 32]; 3], [Scale::default(); 3]);
            quantise_row(isa, &x, &mut q, &mut scale);
            for (i, x) in x.iter().enumerate() {
                let step = scale[i / 32].step;
                assert!((f32::from(q[i / 32][i % 32]) * step - x).abs() <= step * 0.5001 + 1e-30);
            }
            for bad in [f32::NAN, f32::INFINITY] {
                let mut x = x.clone();
                x[40] = bad;
                quantise_row(isa, &x, &mut q, &mut scale);
                assert!(scale[0].step.is_finite() && scale[1].step.is_nan() && scale[1].sum.is_nan());
            }
        }
    }

    #[test]
    fn instruction_sets_round_alike() {
        let x: Vec<f32> = (0..3200).map(|i| ((i * i) as f32 * 0.7).sin() * (i as f32 * 0.01 - 9.0).exp()).collect();
        let [first, rest @ ..] = &Isa::available()[..] else { unreachable!("portable at least") };
        let run = |isa: Isa| {
            let (mut q, mut scale) = (vec![[0; 32]; 100], vec![Scale::default(); 100]);
            quantise_row(isa, &x, &mut q, &mut scale);
            (q, scale)
        };
        let expected = run(*first);
        for (q, scale) in expected.0.iter().zip(&expected.1) {
            let sum = |q: &[i8]| q.iter().map(|q| i32::from(*q)).sum::<i32>();
            assert_eq!([-sum(&q[..16]), -sum(&q[16..])], scale.negative_halves);
            assert_eq!(scale.sum, scale.step * sum(q) as f32);
        }
        for isa in rest {
            assert!(run(*isa) == expected, "{isa:?}");
        }
    }
}
