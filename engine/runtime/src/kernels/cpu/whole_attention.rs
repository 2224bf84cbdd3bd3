//! Attention of encoders: every token of a text sees the whole text, and nothing is kept afterwards.
//!
//! Texts lie packed one behind the other. An item is one head of one text: its keys are transposed once, then
//! queries go through them four at a time, with all their scores at hand, so the softmax is taken as it is defined.
//! Sums run in the order of positions and depend on the text alone.

// See integer_avx2.rs: vectors go through plain loops, never through closures.
#![allow(clippy::needless_range_loop)]

use super::{
    pool::{Pool, SharedMut},
    simd::{Isa, Kernel, Simd},
};
use std::{cell::RefCell, ops::Range};

/// Positions whose scores are taken together: two vectors.
const TILE: usize = 16;

/// Queries, keys and values of all texts, `heads * head_dim` per row, without their biases.
pub struct WholeAttention<'a> {
    pub heads: usize,
    /// A multiple of eight.
    pub head_dim: usize,
    /// Factor of every score.
    pub scale: f32,
    /// Rows of each text, at least one.
    pub texts: &'a [Range<usize>],
    /// Queries, keys, values.
    pub inputs: [&'a [f32]; 3],
    /// One row for each of them.
    pub biases: [&'a [f32]; 3],
    /// The same layout.
    pub out: &'a mut [f32],
}

/// Attends in all texts, in parallel by (text, head).
pub fn attend_whole(pool: &mut Pool, isa: Isa, job: WholeAttention<'_>) {
    let WholeAttention { heads, head_dim, scale, texts, inputs, biases, out } = job;
    let out = SharedMut::new(out);
    // Longest first, so that the last items to be handed out are short.
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by_key(|text| std::cmp::Reverse(texts[*text].len()));
    pool.run(texts.len() * heads, &|item| {
        let (rows, column) = (&texts[order[item / heads]], item % heads * head_dim);
        SCRATCH.with_borrow_mut(|scratch| {
            let head = Head { width: heads * head_dim, rows: rows.clone(), columns: column..column + head_dim };
            scratch.gather(&head, &inputs, &biases, scale);
            let sink = |row: usize, values: &[[f32; 8]]| {
                // SAFETY: a row of a text and a head belong to one item, and each item is handed out once.
                let out = unsafe { out.slice((rows.start + row) * heads * head_dim + column, head_dim) };
                out.copy_from_slice(values.as_flattened());
            };
            isa.run(Attend { count: rows.len(), dim: head_dim, scratch, sink });
        });
    });
}

/// One head of one text in the matrices.
struct Head {
    width: usize,
    rows: Range<usize>,
    columns: Range<usize>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

/// One head of one text.
#[derive(Default)]
struct Scratch {
    /// By (tile, dimension, half tile); zeros after the last position.
    keys: Vec<[[f32; 8]; 2]>,
    /// By (position, eight dimensions).
    values: Vec<[f32; 8]>,
    /// Scaled queries, one row each.
    queries: Vec<f32>,
    /// Scores and then weights of up to four queries, by (query, tile, half tile).
    weights: Vec<[[f32; 8]; 2]>,
    /// Results of those queries, by (query, eight dimensions).
    sums: Vec<[f32; 8]>,
}

impl Scratch {
    /// Copies a head's part of the inputs here, with biases added.
    fn gather(&mut self, head: &Head, [queries, keys, values]: &[&[f32]; 3], biases: &[&[f32]; 3], scale: f32) {
        let (count, dim) = (head.rows.len(), head.columns.len());
        let tiles = count.div_ceil(TILE);
        self.keys.clear();
        self.keys.resize(tiles * dim, [[0.0; 8]; 2]);
        self.values.resize(count * dim / 8, [0.0; 8]);
        self.queries.resize(count * dim, 0.0);
        self.weights.resize(QUERIES * tiles, [[0.0; 8]; 2]);
        self.sums.resize(QUERIES * dim / 8, [0.0; 8]);
        let [query_bias, key_bias, value_bias] = biases.map(|bias| &bias[head.columns.clone()]);
        for (position, row) in head.rows.clone().enumerate() {
            let part = row * head.width + head.columns.start..row * head.width + head.columns.end;
            let out = &mut self.queries[position * dim..(position + 1) * dim];
            for ((out, x), bias) in out.iter_mut().zip(&queries[part.clone()]).zip(query_bias) {
                *out = (x + bias) * scale;
            }
            let out = &mut self.values[position * dim / 8..(position + 1) * dim / 8];
            for ((out, x), bias) in out.as_flattened_mut().iter_mut().zip(&values[part.clone()]).zip(value_bias) {
                *out = x + bias;
            }
            let tile = &mut self.keys[position / TILE * dim..(position / TILE + 1) * dim];
            for ((out, x), bias) in tile.iter_mut().zip(&keys[part]).zip(key_bias) {
                out.as_flattened_mut()[position % TILE] = x + bias;
            }
        }
    }
}

/// Queries that go through keys and values together.
const QUERIES: usize = 4;

struct Attend<'a, K> {
    count: usize,
    dim: usize,
    scratch: &'a mut Scratch,
    sink: K,
}

impl<K: Fn(usize, &[[f32; 8]])> Kernel for Attend<'_, K> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let mut query = 0;
        while query < self.count {
            query += match self.count - query {
                1 => queries::<S, 1>(s, &mut self, query),
                2 | 3 => queries::<S, 2>(s, &mut self, query),
                _ => queries::<S, QUERIES>(s, &mut self, query),
            };
        }
    }
}

/// `R` queries from `first` on; answers `R`.
#[inline(always)]
fn queries<S: Simd, const R: usize>(s: S, job: &mut Attend<'_, impl Fn(usize, &[[f32; 8]])>, first: usize) -> usize {
    let dim = job.dim;
    let Scratch { keys, values, queries, weights, sums } = &mut *job.scratch;
    let tiles = keys.len() / dim;
    let rows: [&[f32]; R] = std::array::from_fn(|r| &queries[(first + r) * dim..][..dim]);
    for (tile, keys) in keys.chunks_exact(dim).enumerate() {
        let mut scores = [[s.zero(); 2]; R];
        for (d, [low, high]) in keys.iter().enumerate() {
            let (low, high) = (s.load(low), s.load(high));
            for r in 0..R {
                let q = s.splat(rows[r][d]);
                scores[r] = [s.fma(q, low, scores[r][0]), s.fma(q, high, scores[r][1])];
            }
        }
        for r in 0..R {
            s.store(scores[r][0], &mut weights[r * tiles + tile][0]);
            s.store(scores[r][1], &mut weights[r * tiles + tile][1]);
        }
    }
    let mut factors = [0.0f32; R];
    for r in 0..R {
        factors[r] = soften(s, job.count, &mut weights[r * tiles..(r + 1) * tiles]);
    }
    let rows: [&[f32]; R] = std::array::from_fn(|r| weights[r * tiles..][..tiles].as_flattened().as_flattened());
    let width = dim / 8;
    for column in 0..width {
        let mut acc = [s.zero(); R];
        for (position, row) in values.chunks_exact(width).enumerate() {
            let v = s.load(&row[column]);
            for r in 0..R {
                acc[r] = s.fma(s.splat(rows[r][position]), v, acc[r]);
            }
        }
        for r in 0..R {
            s.store(s.mul(acc[r], s.splat(factors[r])), &mut sums[r * width + column]);
        }
    }
    for (r, sums) in sums.chunks_exact(width).take(R).enumerate() {
        (job.sink)(first + r, sums);
    }
    R
}

/// Turns scores into weights; answers the factor that makes their sum 1.
#[inline(always)]
fn soften<S: Simd>(s: S, count: usize, tiles: &mut [[[f32; 8]; 2]]) -> f32 {
    let halves = tiles.as_flattened_mut();
    halves.as_flattened_mut()[count..].fill(f32::NEG_INFINITY);
    let mut high = s.splat(f32::NEG_INFINITY);
    for x in halves.iter() {
        high = s.max(high, s.load(x));
    }
    let high = s.splat(s.array(high).into_iter().fold(f32::NEG_INFINITY, f32::max));
    let mut total = s.zero();
    for x in halves.iter_mut() {
        let weight = s.exp(s.sub(s.load(x), high));
        s.store(weight, x);
        total = s.add(total, weight);
    }
    1.0 / s.sum(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: usize = 2;
    const DIM: usize = 24;
    const WIDTH: usize = HEADS * DIM;

    fn noise(index: usize) -> f32 {
        ((index as u32).wrapping_mul(0x9e37_79b9).rotate_left(13).wrapping_mul(0x85eb_ca6b) >> 8) as f32 / 8e6 - 1.0
    }

    fn data(rows: usize, salt: usize) -> Vec<f32> {
        (0..rows * WIDTH).map(|index| noise(index * 5 + salt) * 2.0).collect()
    }

    /// Texts of these lengths, packed, on `isa`.
    fn attend(isa: Isa, lengths: &[usize], inputs: [&[f32]; 3], biases: [&[f32]; 3]) -> Vec<f32> {
        let mut end = 0;
        let next = |length: &usize| {
            end += length;
            end - length..end
        };
        let texts: Vec<Range<usize>> = lengths.iter().map(next).collect();
        let mut out = vec![f32::NAN; end * WIDTH];
        let mut pool = Pool::new(2, |_| {}).expect("two threads");
        let job =
            WholeAttention { heads: HEADS, head_dim: DIM, scale: 0.2, texts: &texts, inputs, biases, out: &mut out };
        attend_whole(&mut pool, isa, job);
        out
    }

    /// One number of the result by its definition, in f64.
    fn exact(row: usize, column: usize, inputs: [&[f32]; 3], biases: [&[f32]; 3]) -> f64 {
        let head = column / DIM * DIM;
        let x = |input: usize, row: usize, column: usize| {
            f64::from(inputs[input][row * WIDTH + column] + biases[input][column])
        };
        let weight = |at: usize| (head..head + DIM).map(|d| x(0, row, d) * x(1, at, d)).sum::<f64>() * 0.2;
        let weights: Vec<f64> = (0..inputs[0].len() / WIDTH).map(|at| weight(at).exp()).collect();
        let sum: f64 = weights.iter().enumerate().map(|(at, weight)| weight * x(2, at, column)).sum();
        sum / weights.iter().sum::<f64>()
    }

    #[test]
    fn each_text_by_its_definition_and_bit_for_bit_in_any_company() {
        let lengths = [1, 2, 3, 16, 17, 5, 40];
        let rows: usize = lengths.iter().sum();
        let inputs = [data(rows, 1), data(rows, 2), data(rows, 3)];
        let biases = [data(1, 4), data(1, 5), data(1, 6)];
        let biases = [&biases[0][..], &biases[1], &biases[2]];
        let all = [&inputs[0][..], &inputs[1], &inputs[2]];
        let together = attend(Isa::detect(), &lengths, all, biases);
        assert_eq!(together, attend(Isa::Portable, &lengths, all, biases));
        let mut start = 0;
        for length in lengths {
            let part = start * WIDTH..(start + length) * WIDTH;
            let own = all.map(|input| &input[part.clone()]);
            assert_eq!(attend(Isa::detect(), &[length], own, biases), together[part.clone()], "{length}");
            for (index, found) in together[part].iter().enumerate() {
                let exact = exact(index / WIDTH, index % WIDTH, own, biases);
                assert!((f64::from(*found) - exact).abs() < 1e-5, "{found}, not {exact}");
            }
            start += length;
        }
    }
}
