//! Causal attention over paged KV with an online softmax (Milakov and Gimelshein 2018; FlashAttention,
//! Dao et al. 2022).
//!
//! Each query walks the tiles of its own sequence in position order, from 0 (or the start of its sliding
//! window) to itself, whatever else is computed beside it. Queries that share keys (tokens of one prefill, query heads of one KV head) also
//! share each tile's conversion to f32, which changes no bit of the result.

// See integer_avx2.rs: vectors go through plain loops, never through closures.
#![allow(clippy::needless_range_loop)]

use super::{
    kv::{KvElement, KvPool, TILE},
    pool::{Pool, SharedMut},
    simd::{Isa, Kernel, Simd},
};
use std::{cell::RefCell, ops::Range};

/// Query tokens of one item: with three heads each, their state stays in the first-level cache.
const QUERY_TOKENS: usize = 16;

/// New tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// Row of the first new token in the query and output matrices.
    pub row: usize,
    pub tokens: usize,
    /// Position of the first new token.
    pub start: usize,
    pub blocks: &'a [u32],
}

/// Queries (`heads * head_dim` per row) and where the result goes, in the same layout.
pub struct Attention<'a, E> {
    pub kv: &'a KvPool<E>,
    pub layer: usize,
    pub heads: usize,
    /// Factor of every score.
    pub scale: f32,
    /// Latest tokens that a query sees, itself included; None for all.
    pub window: Option<usize>,
    pub spans: &'a [Span<'a>],
    pub queries: &'a [f32],
    pub out: &'a mut [f32],
}

/// Some query tokens of one span and some query heads of one KV head.
#[derive(Clone, Debug)]
struct Item {
    span: usize,
    tokens: Range<usize>,
    kv_head: usize,
    heads: Range<usize>,
}

/// Attends for all spans, in parallel by (tokens, head).
pub fn attend<E: KvElement>(pool: &mut Pool, isa: Isa, job: Attention<'_, E>) {
    let items = items(&job, pool.threads());
    let shape = job.kv.shape;
    let out = SharedMut::new(job.out);
    pool.run(items.len(), &|index| {
        let item = &items[index];
        let span = &job.spans[item.span];
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.fit(item.tokens.len() * item.heads.len(), shape.head_dim);
            let sink = |row: usize, head: usize, values: &[[f32; 8]], factor: f32| {
                let start = ((span.row + row) * job.heads + head) * shape.head_dim;
                // SAFETY: (row, head) belongs to one item, and each item is handed out once.
                let out = unsafe { out.slice(start, shape.head_dim) };
                for (out, x) in out.iter_mut().zip(values.as_flattened()) {
                    *out = x * factor;
                }
            };
            isa.run(Attend {
                kv: job.kv,
                layer: job.layer,
                heads: job.heads,
                scale: job.scale,
                window: job.window,
                queries: job.queries,
                span,
                item,
                scratch,
                sink,
            });
        });
    });
}

fn items<E: KvElement>(job: &Attention<'_, E>, threads: usize) -> Vec<Item> {
    let kv_heads = job.kv.shape.heads;
    let group = job.heads / kv_heads;
    let tiles: usize = job.spans.iter().map(|span| span.tokens.div_ceil(QUERY_TOKENS)).sum();
    // Query heads of one KV head share the conversion of its keys, unless that would leave threads idle.
    let split = if tiles * kv_heads < threads { 1 } else { group };
    let mut items = Vec::with_capacity(tiles * job.heads / split);
    for (index, span) in job.spans.iter().enumerate() {
        // The longest walks first, so that the last items to be handed out are short.
        for tile in (0..span.tokens.div_ceil(QUERY_TOKENS)).rev() {
            let tokens = tile * QUERY_TOKENS..((tile + 1) * QUERY_TOKENS).min(span.tokens);
            for first in (0..job.heads).step_by(split) {
                items.push(Item {
                    span: index,
                    tokens: tokens.clone(),
                    kv_head: first / group,
                    heads: first..first + split,
                });
            }
        }
    }
    items
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

/// A tile in f32 and the running softmax of each query.
#[derive(Default)]
struct Scratch {
    /// By (dimension, half tile).
    keys: Vec<[f32; 8]>,
    /// By (position, eight dimensions).
    values: Vec<[f32; 8]>,
    /// Scaled queries, one row each.
    queries: Vec<f32>,
    /// Weighted sums of values, one row each.
    sums: Vec<[f32; 8]>,
    state: Vec<State>,
}

#[derive(Clone, Copy)]
struct State {
    /// First position that the query sees.
    first: usize,
    /// Its own position, the last that it sees.
    position: usize,
    /// Largest score so far.
    high: f32,
    /// Sum of e^(score - high).
    total: f32,
}

impl Scratch {
    fn fit(&mut self, rows: usize, head_dim: usize) {
        self.keys.resize(head_dim * TILE / 8, [0.0; 8]);
        self.values.resize(head_dim * TILE / 8, [0.0; 8]);
        self.queries.resize(rows * head_dim, 0.0);
        self.sums.clear();
        self.sums.resize(rows * head_dim / 8, [0.0; 8]);
        self.state.clear();
    }
}

struct Attend<'a, E, K> {
    kv: &'a KvPool<E>,
    layer: usize,
    heads: usize,
    scale: f32,
    window: Option<usize>,
    queries: &'a [f32],
    span: &'a Span<'a>,
    item: &'a Item,
    scratch: &'a mut Scratch,
    sink: K,
}

impl<E: KvElement, K: Fn(usize, usize, &[[f32; 8]], f32)> Kernel for Attend<'_, E, K> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        self.gather_queries();
        let last = self.span.start + self.item.tokens.end - 1;
        let first = self.scratch.state[0].first;
        for tile in first / TILE..=last / TILE {
            self.load_tile(s, tile, last);
            // Rows are in position order: those before this tile are finished, and windows of those after its
            // end begin later.
            let mut row = self.scratch.state.partition_point(|state| state.position < tile * TILE);
            let rows = self.scratch.state.partition_point(|state| state.first < (tile + 1) * TILE);
            while row < rows {
                row = match rows - row {
                    1 => rows_step::<S, 1>(s, self.scratch, row, tile),
                    2 => rows_step::<S, 2>(s, self.scratch, row, tile),
                    3 => rows_step::<S, 3>(s, self.scratch, row, tile),
                    _ => rows_step::<S, 4>(s, self.scratch, row, tile),
                };
            }
        }
        let width = self.kv.shape.head_dim / 8;
        for (row, state) in self.scratch.state.iter().enumerate() {
            let (token, head) = (row / self.item.heads.len(), row % self.item.heads.len());
            let sums = &self.scratch.sums[row * width..(row + 1) * width];
            (self.sink)(self.item.tokens.start + token, self.item.heads.start + head, sums, 1.0 / state.total);
        }
    }
}

impl<'a, E: KvElement, K> Attend<'a, E, K> {
    #[inline(always)]
    fn gather_queries(&mut self) {
        let dim = self.kv.shape.head_dim;
        let scale = self.scale;
        let mut out = self.scratch.queries.chunks_exact_mut(dim);
        for token in self.item.tokens.clone() {
            for head in self.item.heads.clone() {
                let start = ((self.span.row + token) * self.heads + head) * dim;
                let Some(out) = out.next() else { return };
                for (out, x) in out.iter_mut().zip(&self.queries[start..start + dim]) {
                    *out = x * scale;
                }
                let position = self.span.start + token;
                let first = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
                self.scratch.state.push(State { first, position, high: f32::NEG_INFINITY, total: 0.0 });
            }
        }
    }

    #[inline(always)]
    fn tile(&self, tile: usize) -> (&'a [E], &'a [E]) {
        let tiles_per_block = self.kv.shape.block_tokens / TILE;
        let block = self.span.blocks[tile / tiles_per_block];
        self.kv.tile(self.layer, block, self.item.kv_head, tile % tiles_per_block)
    }

    /// Converts one tile. Values after `last` may be another sequence's leftovers; they get weight zero, and
    /// are set to zero too so that a leftover NaN cannot get in.
    #[inline(always)]
    fn load_tile<S: Simd>(&mut self, s: S, tile: usize, last: usize) {
        let shape = self.kv.shape;
        let (keys, values) = self.tile(tile);
        // Blocks lie anywhere, so no hardware prefetcher finds the next tile.
        if (tile + 1) * TILE <= last {
            let (keys, values) = self.tile(tile + 1);
            s.prefetch(keys);
            s.prefetch(values);
        }
        for (x, out) in keys.as_chunks::<8>().0.iter().zip(&mut self.scratch.keys) {
            s.store(E::load(s, x), out);
        }
        let valid = (last + 1 - tile * TILE).min(TILE) * shape.head_dim / 8;
        let (filled, empty) = self.scratch.values.split_at_mut(valid);
        for (x, out) in values.as_chunks::<8>().0.iter().zip(filled) {
            s.store(E::load(s, x), out);
        }
        empty.fill([0.0; 8]);
    }
}

/// Takes `R` queries from `row` on through the loaded tile; returns the next row.
#[inline(always)]
fn rows_step<S: Simd, const R: usize>(s: S, scratch: &mut Scratch, row: usize, tile: usize) -> usize {
    let dim = scratch.keys.len() * 8 / TILE;
    let (pairs, _) = scratch.keys.as_chunks::<2>();
    let queries: [&[f32]; R] = std::array::from_fn(|r| &scratch.queries[(row + r) * dim..][..dim]);
    let mut scores = [[s.zero(); 2]; R];
    for (d, [low, high]) in pairs.iter().enumerate() {
        let (low, high) = (s.load(low), s.load(high));
        for r in 0..R {
            let q = s.splat(queries[r][d]);
            scores[r] = [s.fma(q, low, scores[r][0]), s.fma(q, high, scores[r][1])];
        }
    }
    let mut weights = [[[0.0f32; 8]; 2]; R];
    let mut factors = [0.0f32; R];
    for r in 0..R {
        let state = &mut scratch.state[row + r];
        (factors[r], weights[r]) = soften(s, state, scores[r], tile);
    }
    let width = dim / 8;
    for column in 0..width {
        let mut acc = [s.zero(); R];
        for r in 0..R {
            acc[r] = s.mul(s.load(&scratch.sums[(row + r) * width + column]), s.splat(factors[r]));
        }
        for position in 0..TILE {
            let v = s.load(&scratch.values[position * width + column]);
            for r in 0..R {
                acc[r] = s.fma(s.splat(weights[r].as_flattened()[position]), v, acc[r]);
            }
        }
        for r in 0..R {
            s.store(acc[r], &mut scratch.sums[(row + r) * width + column]);
        }
    }
    row + R
}

/// One step of the online softmax: the factor for what was summed before, and the tile's weights.
#[inline(always)]
fn soften<S: Simd>(s: S, state: &mut State, scores: [S::V; 2], tile: usize) -> (f32, [[f32; 8]; 2]) {
    let mut scores = [s.array(scores[0]), s.array(scores[1])];
    let valid = (state.position + 1 - tile * TILE).min(TILE);
    scores.as_flattened_mut()[valid..].fill(f32::NEG_INFINITY);
    // Never the whole tile, which would leave no largest score: see the choice of rows in `run`.
    scores.as_flattened_mut()[..state.first.saturating_sub(tile * TILE)].fill(f32::NEG_INFINITY);
    let scores = [s.load(&scores[0]), s.load(&scores[1])];
    let lanes = s.array(s.max(scores[0], scores[1]));
    let high = lanes.into_iter().fold(state.high, |a, b| if a > b { a } else { b });
    let factor = s.array(s.exp(s.splat(state.high - high)))[0];
    let shift = s.splat(high);
    let weights = [s.exp(s.sub(scores[0], shift)), s.exp(s.sub(scores[1], shift))];
    state.total = state.total * factor + s.sum(s.add(weights[0], weights[1]));
    state.high = high;
    (factor, [s.array(weights[0]), s.array(weights[1])])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::kv::{KvShape, Slot};

    const SHAPE: KvShape = KvShape { layers: 1, heads: 2, head_dim: 16, block_tokens: 32, blocks: 4 };
    const HEADS: usize = 4;

    fn noise(index: usize) -> f32 {
        ((index as u32).wrapping_mul(0x9e37_79b9).rotate_left(13).wrapping_mul(0x85eb_ca6b) >> 8) as f32 / 8e6 - 1.0
    }

    /// Attention of one query head at one position by its definition, in f64.
    fn exact(position: usize, head: usize, window: Option<usize>, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
        let (dim, kv_head) = (SHAPE.head_dim, head / (HEADS / SHAPE.heads));
        let row = |x: &[f32], at: usize| -> Vec<f64> {
            x[(at * SHAPE.heads + kv_head) * dim..][..dim].iter().map(|x| f64::from(*x)).collect()
        };
        let q = &q[(position * HEADS + head) * dim..][..dim];
        let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
        let weight =
            |at: usize| -> f64 { (row(k, at).iter().zip(q).map(|(k, q)| k * f64::from(*q)).sum::<f64>() * 0.25).exp() };
        let total: f64 = (first..=position).map(weight).sum();
        let sum = |d: usize| (first..=position).map(|at| weight(at) * row(v, at)[d]).sum::<f64>() / total;
        (0..dim).map(sum).collect()
    }

    /// The last `tokens` of 100 as one step, on `isa`.
    fn attend_last(isa: Isa, tokens: usize, window: Option<usize>, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
        let mut pool = Pool::new(2, |_| {}).expect("two threads");
        let mut kv = KvPool::<f32>::new(SHAPE).expect("a pool");
        let blocks = [2, 0, 3, 1];
        let slot = |position: usize| Slot { block: blocks[position / 32], offset: position % 32 };
        kv.write(&mut pool, isa, 0, &(0..100).map(slot).collect::<Vec<_>>(), k, v);
        let start = 100 - tokens;
        let width = HEADS * SHAPE.head_dim;
        let mut out = vec![0.0; tokens * width];
        let spans = [Span { row: 0, tokens, start, blocks: &blocks }];
        let job = Attention {
            kv: &kv,
            layer: 0,
            heads: HEADS,
            scale: 0.25,
            window,
            spans: &spans,
            queries: &q[start * width..],
            out: &mut out,
        };
        attend(&mut pool, isa, job);
        out
    }

    #[test]
    fn windows_follow_the_definition_however_a_prefill_is_cut() {
        let data = |count: usize, salt: usize| (0..count).map(|i| noise(i * 3 + salt)).collect::<Vec<f32>>();
        let (q, k, v) = (data(100 * 64, 0), data(100 * 32, 1), data(100 * 32, 2));
        for window in [None, Some(1), Some(7), Some(16), Some(17), Some(50), Some(200)] {
            let whole = attend_last(Isa::detect(), 100, window, &q, &k, &v);
            for (at, found) in whole.chunks_exact(16).enumerate() {
                for (found, exact) in found.iter().zip(exact(at / HEADS, at % HEADS, window, &q, &k, &v)) {
                    assert!((f64::from(*found) - exact).abs() < 1e-5, "{window:?} at {at}: {found}, not {exact}");
                }
            }
            assert!(whole == attend_last(Isa::Portable, 100, window, &q, &k, &v), "{window:?}");
            for tokens in [1, 5, 33] {
                let part = attend_last(Isa::detect(), tokens, window, &q, &k, &v);
                assert!(part == whole[(100 - tokens) * 64..], "{window:?}, {tokens} tokens");
            }
        }
    }
}
