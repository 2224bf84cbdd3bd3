//! What low-rank adapters add to a product: `y += scale * B (A x)` for some rows of a batch, each with its own
//! adapter's A and B, in f32.
//!
//! Two parallel regions for all adapters and matrices of one input: first every `A x`, lanes across the rank, then
//! every `B h`, lanes across the output. The sums of one row are taken in one order, even columns apart from odd
//! ones in the first and by rank in the second, whatever rows stand beside it and however the work is cut, so
//! a row's result does not depend on the batch or the threads.

// See integer_avx2.rs: vectors go through plain loops, never through closures.
#![allow(clippy::needless_range_loop)]

use super::{
    pool::{Pool, SharedMut},
    simd::{Isa, Kernel, Simd},
};
use half::f16;
use std::ops::Range;

/// Lanes of a vector.
const GROUP: usize = 8;
/// Rows of a batch per item.
const ROWS_PER_ITEM: usize = 16;
/// Groups per item: of the rank, and of the output.
const RANK_GROUPS_PER_ITEM: usize = 2;
const OUT_GROUPS_PER_ITEM: usize = 32;
/// Multiply-adds below which a region is not worth its hand-out.
const SERIAL_MAX: usize = 8192;

/// How an adapter's numbers are stored.
trait Number: Copy + Send + Sync {
    fn load<S: Simd>(s: S, x: &[Self; 8]) -> S::V;
}

impl Number for f32 {
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[f32; 8]) -> S::V {
        s.load(x)
    }
}

/// IEEE half floats by their bits.
impl Number for u16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[u16; 8]) -> S::V {
        s.load_f16(x)
    }
}

/// Eight numbers that a vector takes together, many times.
#[derive(Debug)]
enum Packed {
    F32(Vec<[f32; GROUP]>),
    F16(Vec<[u16; GROUP]>),
}

impl Packed {
    fn bytes(&self) -> usize {
        match self {
            Self::F32(data) => size_of_val(&data[..]),
            Self::F16(data) => size_of_val(&data[..]),
        }
    }
}

/// `A` and `B` of one matrix in the order in which the kernels read them.
#[derive(Debug)]
pub struct Pair {
    /// By group of eight ranks, then by column.
    a: Packed,
    /// By group of eight outputs, then by rank.
    b: Packed,
    cols: usize,
    rows: usize,
    rank: usize,
    scale: f32,
}

impl Pair {
    /// `a` has `rank` rows of `cols`, `b` as many rows as the matrix of `rank` columns. Halves take half the memory
    /// traffic: each matrix is first brought near 1 by a power of two, so that none is lost to their range.
    pub fn new(a: &[f32], b: &[f32], rank: usize, scale: f32, halves: bool) -> Self {
        let (cols, rows) = (a.len() / rank, b.len() / rank);
        // Lane `lane` of group `group` at `index`; zero beyond the edge.
        let ranks = |group: usize, index: usize, lane: usize| {
            let row = group * GROUP + lane;
            if row < rank { a[row * cols + index] } else { 0.0 }
        };
        let outputs = |group: usize, index: usize, lane: usize| {
            let row = group * GROUP + lane;
            if row < rows { b[row * rank + index] } else { 0.0 }
        };
        let mut scale = scale;
        let mut pack = |groups: usize, length: usize, at: &dyn Fn(usize, usize, usize) -> f32, values: &[f32]| {
            let places = || (0..groups).flat_map(move |group| (0..length).map(move |index| (group, index)));
            if !halves {
                let vector = |(group, index)| std::array::from_fn(|lane| at(group, index, lane));
                return Packed::F32(places().map(vector).collect());
            }
            let unit = power_of_two_above(values);
            scale *= unit;
            let vector =
                |(group, index)| std::array::from_fn(|lane| f16::from_f32(at(group, index, lane) / unit).to_bits());
            Packed::F16(places().map(vector).collect())
        };
        let a_packed = pack(rank.div_ceil(GROUP), cols, &ranks, a);
        let b_packed = pack(rows.div_ceil(GROUP), rank, &outputs, b);
        Self { a: a_packed, b: b_packed, cols, rows, rank, scale }
    }

    /// Memory that it takes.
    pub fn bytes(&self) -> usize {
        self.a.bytes() + self.b.bytes()
    }

    fn rank_groups(&self) -> usize {
        self.rank.div_ceil(GROUP)
    }
}

/// The power of two next above the largest magnitude; 1 for zeros. Dividing by it is exact.
fn power_of_two_above(values: &[f32]) -> f32 {
    let largest = values.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    if largest < f32::MIN_POSITIVE { 1.0 } else { largest.log2().floor().exp2() }
}

/// What one adapter adds to one output of a step.
pub struct Product<'a> {
    pub pair: &'a Pair,
    /// Rows of input and output that it is for, ascending.
    pub rows: &'a [usize],
    /// Which of the outputs.
    pub out: usize,
}

/// A part of a product: some of its rows, some of its groups.
struct Item {
    product: usize,
    rows: Range<usize>,
    groups: Range<usize>,
}

/// Adds all products to their outputs. `input` and each output have a row for each token, as wide as the pairs say;
/// no two products share both output and row. `scratch` is for what lies between.
pub fn apply(
    pool: &mut Pool,
    isa: Isa,
    input: &[f32],
    outputs: &mut [&mut [f32]],
    products: &[Product<'_>],
    scratch: &mut Vec<f32>,
) {
    let mut starts = Vec::with_capacity(products.len());
    let mut total = 0;
    for product in products {
        starts.push(total);
        total += product.rows.len() * product.pair.rank_groups() * GROUP;
    }
    scratch.resize(total, 0.0);
    let hidden = SharedMut::new(&mut scratch[..]);
    let down = items(products, RANK_GROUPS_PER_ITEM, |pair| pair.rank_groups());
    let work: usize = products.iter().map(|product| product.rows.len() * product.pair.rank * product.pair.cols).sum();
    region(pool, work, &down, |item| {
        let product = &products[item.product];
        let job = Down { product, item, input, hidden: &hidden, start: starts[item.product] };
        match &product.pair.a {
            Packed::F32(a) => isa.run(Job(job, a)),
            Packed::F16(a) => isa.run(Job(job, a)),
        }
    });
    let outputs: Vec<SharedMut<'_, f32>> = outputs.iter_mut().map(|out| SharedMut::new(out)).collect();
    let up = items(products, OUT_GROUPS_PER_ITEM, |pair| pair.rows.div_ceil(GROUP));
    let work: usize = products.iter().map(|product| product.rows.len() * product.pair.rank * product.pair.rows).sum();
    region(pool, work, &up, |item| {
        let product = &products[item.product];
        let out = &outputs[product.out];
        let job = Up { product, item, hidden: &scratch[starts[item.product]..], out };
        match &product.pair.b {
            Packed::F32(b) => isa.run(Job(job, b)),
            Packed::F16(b) => isa.run(Job(job, b)),
        }
    });
}

fn items(products: &[Product<'_>], per_item: usize, groups: impl Fn(&Pair) -> usize) -> Vec<Item> {
    let mut items = Vec::new();
    for (index, product) in products.iter().enumerate() {
        let (rows, groups) = (product.rows.len(), groups(product.pair));
        for row in (0..rows).step_by(ROWS_PER_ITEM) {
            for group in (0..groups).step_by(per_item) {
                let rows = row..(row + ROWS_PER_ITEM).min(rows);
                items.push(Item { product: index, rows, groups: group..(group + per_item).min(groups) });
            }
        }
    }
    items
}

fn region(pool: &mut Pool, work: usize, items: &[Item], task: impl Fn(&Item) + Sync) {
    if work <= SERIAL_MAX {
        return items.iter().for_each(task);
    }
    pool.run(items.len(), &|index| task(&items[index]));
}

/// A kernel over one way of storing numbers.
struct Job<'a, J, E>(J, &'a [[E; GROUP]]);

/// `h = scale * A x`.
struct Down<'a> {
    product: &'a Product<'a>,
    item: &'a Item,
    input: &'a [f32],
    hidden: &'a SharedMut<'a, f32>,
    start: usize,
}

impl<E: Number> Kernel for Job<'_, Down<'_>, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(job, a) = self;
        let end = job.item.rows.end;
        let mut row = job.item.rows.start;
        while row < end {
            let mut group = job.item.groups.start;
            while group < job.item.groups.end {
                let pairs = job.item.groups.end - group > 1;
                group += match (end - row, pairs) {
                    (1, true) => job.tile::<S, E, 1, 2>(s, a, row, group),
                    (1, false) => job.tile::<S, E, 1, 1>(s, a, row, group),
                    (2 | 3, true) => job.tile::<S, E, 2, 2>(s, a, row, group),
                    (2 | 3, false) => job.tile::<S, E, 2, 1>(s, a, row, group),
                    _ => job.tile::<S, E, 4, 1>(s, a, row, group),
                };
            }
            row += match end - row {
                1 => 1,
                2 | 3 => 2,
                _ => 4,
            };
        }
    }
}

impl Down<'_> {
    /// `T` rows from the `row`-th and `G` groups from `group` on; answers `G`.
    #[inline(always)]
    fn tile<S: Simd, E: Number, const T: usize, const G: usize>(
        &self,
        s: S,
        a: &[[E; GROUP]],
        row: usize,
        group: usize,
    ) -> usize {
        let pair = self.product.pair;
        let (cols, halves) = (pair.cols, pair.cols / 2);
        let a: [&[[E; GROUP]]; G] = std::array::from_fn(|g| &a[(group + g) * cols..][..cols]);
        let x: [&[f32]; T] = std::array::from_fn(|t| &self.input[self.product.rows[row + t] * cols..][..cols]);
        let a_pairs: [&[[[E; GROUP]; 2]]; G] = std::array::from_fn(|g| &a[g].as_chunks::<2>().0[..halves]);
        let x_pairs: [&[[f32; 2]]; T] = std::array::from_fn(|t| &x[t].as_chunks::<2>().0[..halves]);
        let mut acc = [[[s.zero(); 2]; G]; T];
        for i in 0..halves {
            for parity in 0..2 {
                for g in 0..G {
                    let w = E::load(s, &a_pairs[g][i][parity]);
                    for t in 0..T {
                        acc[t][g][parity] = s.fma(w, s.splat(x_pairs[t][i][parity]), acc[t][g][parity]);
                    }
                }
            }
        }
        let scale = s.splat(pair.scale);
        for t in 0..T {
            for g in 0..G {
                if cols % 2 == 1 {
                    let w = E::load(s, &a[g][cols - 1]);
                    acc[t][g][0] = s.fma(w, s.splat(x[t][cols - 1]), acc[t][g][0]);
                }
                let at = self.start + ((row + t) * pair.rank_groups() + group + g) * GROUP;
                // SAFETY: an item is handed out once, and each (row, group) of a product belongs to one item.
                let out = unsafe { self.hidden.slice(at, GROUP) };
                let sum = s.array(s.mul(scale, s.add(acc[t][g][0], acc[t][g][1])));
                out.copy_from_slice(&sum);
            }
        }
        G
    }
}

/// `y += B h`.
struct Up<'a> {
    product: &'a Product<'a>,
    item: &'a Item,
    /// From this product's beginning.
    hidden: &'a [f32],
    out: &'a SharedMut<'a, f32>,
}

impl<E: Number> Kernel for Job<'_, Up<'_>, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(job, b) = self;
        let end = job.item.rows.end;
        let mut row = job.item.rows.start;
        while row < end {
            let mut group = job.item.groups.start;
            while group < job.item.groups.end {
                let left = job.item.groups.end - group;
                group += match (end - row, left) {
                    (1, 4..) => job.tile::<S, E, 1, 4>(s, b, row, group),
                    (1, _) => job.tile::<S, E, 1, 1>(s, b, row, group),
                    (2 | 3, 2..) => job.tile::<S, E, 2, 2>(s, b, row, group),
                    (2 | 3, _) => job.tile::<S, E, 2, 1>(s, b, row, group),
                    (_, 2..) => job.tile::<S, E, 4, 2>(s, b, row, group),
                    _ => job.tile::<S, E, 4, 1>(s, b, row, group),
                };
            }
            row += match end - row {
                1 => 1,
                2 | 3 => 2,
                _ => 4,
            };
        }
    }
}

impl Up<'_> {
    /// `T` rows from the `row`-th and `G` groups from `group` on; answers `G`.
    #[inline(always)]
    fn tile<S: Simd, E: Number, const T: usize, const G: usize>(
        &self,
        s: S,
        b: &[[E; GROUP]],
        row: usize,
        group: usize,
    ) -> usize {
        let pair = self.product.pair;
        let (rank, stride) = (pair.rank, pair.rank_groups() * GROUP);
        let b: [&[[E; GROUP]]; G] = std::array::from_fn(|g| &b[(group + g) * rank..][..rank]);
        let h: [&[f32]; T] = std::array::from_fn(|t| &self.hidden[(row + t) * stride..][..rank]);
        let mut acc = [[s.zero(); G]; T];
        for k in 0..rank {
            for g in 0..G {
                let w = E::load(s, &b[g][k]);
                for t in 0..T {
                    acc[t][g] = s.fma(w, s.splat(h[t][k]), acc[t][g]);
                }
            }
        }
        for t in 0..T {
            for g in 0..G {
                let first = (group + g) * GROUP;
                let at = self.product.rows[row + t] * pair.rows + first;
                // SAFETY: an item is handed out once, each (row, group) of a product belongs to one item, and no two
                // products share both output and row.
                let out = unsafe { self.out.slice(at, GROUP.min(pair.rows - first)) };
                let sum = s.array(acc[t][g]);
                for (out, value) in out.iter_mut().zip(&sum) {
                    *out += value;
                }
            }
        }
        G
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Noise in [-1, 1), the same on every run.
    fn noise(index: usize) -> f32 {
        (index as u32).wrapping_mul(0x9e37_79b9).rotate_left(13).wrapping_mul(0x85eb_ca6b) as i32 as f32
            / (1u32 << 31) as f32
    }

    fn numbers(count: usize, salt: usize) -> Vec<f32> {
        (0..count).map(|index| noise(index + salt * 7919)).collect()
    }

    const COLS: usize = 37;
    const ROWS: usize = 45;

    /// Outputs of all tokens, of which `rows` have the adapter.
    fn run(isa: Isa, threads: usize, pair: &Pair, tokens: usize, rows: &[usize]) -> Vec<f32> {
        let mut pool = Pool::new(threads, |_| {}).expect("threads");
        let input = numbers(tokens * COLS, 3);
        let mut out = numbers(tokens * ROWS, 4);
        let product = Product { pair, rows, out: 0 };
        apply(&mut pool, isa, &input, &mut [&mut out], &[product], &mut Vec::new());
        out
    }

    #[test]
    fn rows_are_what_the_definition_says_and_independent_of_each_other() {
        for (rank, halves) in [(1, false), (8, false), (13, true), (16, true), (64, false), (64, true)] {
            let (a, b) = (numbers(rank * COLS, 1), numbers(ROWS * rank, 2));
            let pair = Pair::new(&a, &b, rank, 0.5, halves);
            let input = numbers(40 * COLS, 3);
            let before = numbers(40 * ROWS, 4);
            let rows: Vec<usize> = (0..40).filter(|row| row % 7 != 2).collect();
            let out = run(Isa::detect(), 1, &pair, 40, &rows);
            assert_eq!(out, run(Isa::detect(), 3, &pair, 40, &rows), "threads");
            assert_eq!(out, run(Isa::Portable, 2, &pair, 40, &rows), "portable");
            for row in 0..40 {
                let own = &out[row * ROWS..][..ROWS];
                if !rows.contains(&row) {
                    assert_eq!(own, &before[row * ROWS..][..ROWS], "a row without adapter");
                    continue;
                }
                assert_eq!(own, &run(Isa::detect(), 1, &pair, 40, &[row])[row * ROWS..][..ROWS], "alone");
                for (index, found) in own.iter().enumerate() {
                    let x = &input[row * COLS..][..COLS];
                    let hidden = |k: usize| -> f64 {
                        x.iter().zip(&a[k * COLS..]).map(|(x, a)| f64::from(*x) * f64::from(*a)).sum()
                    };
                    let added: f64 = (0..rank).map(|k| f64::from(b[index * rank + k]) * hidden(k)).sum();
                    let expected = f64::from(before[row * ROWS + index]) + 0.5 * added;
                    let tolerance = if halves { 2e-2 } else { 1e-4 };
                    assert!((f64::from(*found) - expected).abs() < tolerance, "{found}, expected {expected}");
                }
            }
        }
    }

    #[test]
    fn halves_keep_what_is_small_or_large() {
        for size in [1e-9f32, 1e-5, 3e4, 1e9] {
            let a: Vec<f32> = numbers(8 * COLS, 1).into_iter().map(|x| x * size).collect();
            let b: Vec<f32> = numbers(ROWS * 8, 2).into_iter().map(|x| x / size).collect();
            let exact = run(Isa::detect(), 1, &Pair::new(&a, &b, 8, 1.0, false), 1, &[0]);
            let halves = run(Isa::detect(), 1, &Pair::new(&a, &b, 8, 1.0, true), 1, &[0]);
            for (exact, halves) in exact.iter().zip(&halves) {
                assert!((exact - halves).abs() < 1e-2, "{halves}, expected {exact} at {size}");
            }
        }
    }

    #[test]
    fn several_adapters_and_outputs_go_at_once() {
        let (a, b) = (numbers(16 * COLS, 1), numbers(ROWS * 16, 2));
        let (c, d) = (numbers(8 * COLS, 5), numbers(24 * 8, 6));
        let (wide, narrow) = (Pair::new(&a, &b, 16, 1.0, true), Pair::new(&c, &d, 8, 2.0, true));
        let other = Pair::new(&c, &numbers(ROWS * 8, 7), 8, 1.0, true);
        let input = numbers(9 * COLS, 3);
        let mut pool = Pool::new(2, |_| {}).expect("threads");
        let mut apply_to = |products: &[Product<'_>]| {
            let (mut first, mut second) = (numbers(9 * ROWS, 8), numbers(9 * 24, 9));
            apply(&mut pool, Isa::detect(), &input, &mut [&mut first, &mut second], products, &mut Vec::new());
            (first, second)
        };
        let product = |pair, rows, out| Product { pair, rows, out };
        let all = apply_to(&[product(&wide, &[0, 4], 0), product(&narrow, &[0, 4], 1), product(&other, &[2, 8], 0)]);
        let (first, _) = apply_to(&[product(&wide, &[4], 0)]);
        assert_eq!(all.0[4 * ROWS..5 * ROWS], first[4 * ROWS..5 * ROWS]);
        let (_, second) = apply_to(&[product(&narrow, &[4], 1)]);
        assert_eq!(all.1[4 * 24..5 * 24], second[4 * 24..5 * 24]);
        let (first, _) = apply_to(&[product(&other, &[8], 0)]);
        assert_eq!(all.0[8 * ROWS..], first[8 * ROWS..]);
    }
}
