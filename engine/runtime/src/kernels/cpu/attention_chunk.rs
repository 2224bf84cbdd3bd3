//! What one thread does of attention: some queries against one chunk of keys after another.
//!
//! Per chunk three passes: scores, softmax against the chunk's own largest score, weighted sum of values. Keys and
//! values become f32 once for all queries; the products then run on [`ROWS`] queries at a time. Every number is
//! computed in one order whatever queries are beside it: a score along the dimensions, a sum of values along the
//! positions, a sum of weights in sixteen lanes along the tiles.

// Vectors go through plain loops, never through closures: those might be compiled without the features.
#![allow(clippy::needless_range_loop)]

use super::{
    attention::{CHUNK, Part, Span},
    kv::{KvPool, TILE, Tile},
    kv_format::{GROUP, KvElement},
    wide::{LANES, Wide, WideKernel},
};
use std::ops::Range;

const CHUNK_TILES: usize = CHUNK / TILE;
/// Bytes that memory is fetched in.
const LINE: usize = 64;
/// Tiles whose values are fetched before they are wanted.
const VALUES_AHEAD: usize = 2;
/// Queries that the products take together.
const ROWS: usize = 6;

/// What is computed on, and how scores are scaled and cut.
pub(super) struct Source<'a, E> {
    pub kv: &'a KvPool<E>,
    pub layer: usize,
    pub heads: usize,
    pub scale: f32,
    pub window: Option<usize>,
    pub queries: &'a [f32],
}

/// Softmax over the keys of a chunk, or of several: largest score, sum of e^(score - largest), and the values summed
/// with these weights, padded to whole vectors.
pub(super) struct Partial<'a> {
    pub high: f32,
    pub total: f32,
    pub sums: &'a [[f32; LANES]],
}

/// Takes what a row of a part has from a chunk.
pub(super) trait Sink {
    fn take<S: Wide>(&mut self, s: S, row: usize, chunk: usize, partial: Partial<'_>);
}

/// Kept by each thread from call to call.
#[derive(Default)]
pub(super) struct Scratch {
    /// By (dimension, tile) of the tiles that are scored together.
    keys: Vec<[f32; LANES]>,
    /// By (columns that are summed together, position, column).
    values: Vec<[f32; LANES]>,
    /// Scaled; by (rows that are taken together, dimension, row).
    queries: Vec<f32>,
    /// Scores, then weights, by (row, tile).
    scores: Vec<[f32; LANES]>,
    /// By (row, column).
    sums: Vec<[f32; LANES]>,
    rows: Vec<Row>,
}

#[derive(Clone, Copy)]
struct Row {
    /// First position that the query sees.
    first: usize,
    /// Its own position, the last that it sees.
    position: usize,
    high: f32,
    total: f32,
}

impl Row {
    fn sees(&self, chunk: usize) -> bool {
        self.position >= chunk * CHUNK && self.first < (chunk + 1) * CHUNK
    }
}

/// Vectors of sums by row and column, padded so that whole passes fill it on every instruction set.
pub(super) fn padded_width(head_dim: usize) -> usize {
    head_dim.div_ceil(LANES).next_multiple_of(4)
}

pub(super) struct Attend<'a, E, K> {
    pub source: &'a Source<'a, E>,
    pub span: &'a Span<'a>,
    pub part: &'a Part,
    pub scratch: &'a mut Scratch,
    pub sink: &'a mut K,
}

impl<E: KvElement, K: Sink> WideKernel for Attend<'_, E, K> {
    type Out = ();

    #[inline(always)]
    fn run<S: Wide>(mut self, s: S) {
        self.gather();
        // As many tiles and columns at a time as leave their sums in registers.
        match S::SUMS / self.scratch.rows.len().clamp(1, ROWS) {
            0 | 1 => self.chunks::<S, 1>(s),
            2 | 3 => self.chunks::<S, 2>(s),
            _ => self.chunks::<S, 4>(s),
        }
    }
}

impl<'a, E: KvElement, K: Sink> Attend<'a, E, K> {
    #[inline(always)]
    fn gather(&mut self) {
        let (dim, part) = (self.source.kv.shape.head_dim, self.part);
        let rows = part.tokens.len() * part.heads.len();
        let scratch = &mut *self.scratch;
        scratch.queries.resize(rows * dim, 0.0);
        scratch.scores.resize(rows * CHUNK_TILES, [0.0; LANES]);
        scratch.sums.resize(rows * padded_width(dim), [0.0; LANES]);
        scratch.keys.resize(dim * 4, [0.0; LANES]);
        scratch.values.resize(TILE * padded_width(dim), [0.0; LANES]);
        scratch.rows.clear();
        for token in part.tokens.clone() {
            let position = self.span.start + token;
            let first = self.source.window.map_or(0, |window| (position + 1).saturating_sub(window));
            let row = Row { first, position, high: 0.0, total: 0.0 };
            scratch.rows.extend(std::iter::repeat_n(row, part.heads.len()));
        }
        for (group, out) in scratch.queries.chunks_mut(ROWS * dim).enumerate() {
            let together = out.len() / dim;
            for member in 0..together {
                let row = group * ROWS + member;
                let (token, head) = (row / part.heads.len(), row % part.heads.len());
                let token = self.span.row + part.tokens.start + token;
                let start = (token * self.source.heads + part.heads.start + head) * dim;
                for (d, x) in self.source.queries[start..start + dim].iter().enumerate() {
                    out[d * together + member] = x * self.source.scale;
                }
            }
        }
    }

    #[inline(always)]
    fn chunks<S: Wide, const N: usize>(&mut self, s: S) {
        let last = self.span.start + self.part.tokens.end - 1;
        let first = self.scratch.rows[0].first;
        let width = padded_width(self.source.kv.shape.head_dim);
        for chunk in self.part.chunks.clone() {
            let tiles = (chunk * CHUNK_TILES).max(first / TILE)..((chunk + 1) * CHUNK_TILES).min(last / TILE + 1);
            for tile in tiles.clone().step_by(N) {
                let count = N.min(tiles.end - tile);
                self.load_keys::<S, N>(s, tile, count, &tiles);
                for group in 0..self.scratch.rows.len().div_ceil(ROWS) {
                    let rows = self.scratch.rows_of(group, chunk);
                    score_rows::<S, N>(s, self.scratch, group, rows, tile % CHUNK_TILES, count);
                }
            }
            self.scratch.sums.fill([0.0; LANES]);
            let within = tiles.start % CHUNK_TILES..tiles.start % CHUNK_TILES + tiles.len();
            for row in 0..self.scratch.rows.len() {
                let state = &mut self.scratch.rows[row];
                let weights = &mut self.scratch.scores[row * CHUNK_TILES..][within.clone()];
                if state.sees(chunk) {
                    soften(s, state, weights, tiles.start * TILE);
                } else {
                    // Computed with its neighbours, and not delivered.
                    weights.fill([0.0; LANES]);
                }
            }
            for tile in tiles.clone() {
                let valid = (last + 1 - tile * TILE).min(TILE);
                self.load_values::<S, N>(s, tile, valid, tiles.end);
                for group in 0..self.scratch.rows.len().div_ceil(ROWS) {
                    let rows = self.scratch.rows_of(group, chunk);
                    sum_rows::<S, N>(s, self.scratch, group, rows, tile % CHUNK_TILES, valid);
                }
            }
            for (row, state) in self.scratch.rows.iter().enumerate().filter(|(_, state)| state.sees(chunk)) {
                let sums = &self.scratch.sums[row * width..(row + 1) * width];
                self.sink.take(s, row, chunk, Partial { high: state.high, total: state.total, sums });
            }
        }
    }

    #[inline(always)]
    fn tile(&self, tile: usize) -> Tile<'a, E> {
        let tiles_per_block = self.source.kv.shape.block_tokens / TILE;
        let block = self.span.blocks[tile / tiles_per_block];
        self.source.kv.tile(self.source.layer, block, self.part.kv_head, tile % tiles_per_block)
    }

    /// Keys of `count` tiles, up to `N`. Those after the last query's position may be another sequence's leftovers:
    /// their scores are masked.
    #[inline(always)]
    fn load_keys<S: Wide, const N: usize>(&mut self, s: S, first: usize, count: usize, tiles: &Range<usize>) {
        // Dimensions that share a line.
        let per_line = (LINE / (TILE * size_of::<E>())).max(1);
        for k in 0..count.min(N) {
            let from = self.tile(first + k);
            let next = self.ahead(first + k, N, tiles);
            let groups = from.keys.chunks(GROUP * TILE).zip(next.chunks(GROUP * TILE));
            let into = self.scratch.keys.as_chunks_mut::<N>().0.chunks_mut(GROUP);
            for (group, ((keys, next), into)) in groups.zip(into).enumerate() {
                let scale = if E::SCALED { s.load(&from.key_scales[group]) } else { s.zero() };
                let lines = keys.chunks(per_line * TILE).zip(next.chunks(per_line * TILE));
                for ((keys, next), into) in lines.zip(into.chunks_mut(per_line)) {
                    s.prefetch(&next[..1]);
                    for (x, into) in keys.as_chunks::<TILE>().0.iter().zip(into) {
                        let v = E::load(s, x);
                        s.store(if E::SCALED { s.mul(v, scale) } else { v }, &mut into[k]);
                    }
                }
            }
        }
    }

    /// What is read `distance` tiles after the keys of `tile`: keys, and then values. Blocks lie anywhere, so no
    /// hardware prefetcher finds the next tile; and asked for in one go, lines would wait for each other.
    #[inline(always)]
    fn ahead(&self, tile: usize, distance: usize, tiles: &Range<usize>) -> &'a [E] {
        match tile + distance {
            next if next < tiles.end => self.tile(next).keys,
            next => self.tile((tiles.start + next - tiles.end).min(tiles.end - 1)).values,
        }
    }

    /// The first `valid` values of a tile; others may be leftovers, and are not touched.
    #[inline(always)]
    fn load_values<S: Wide, const N: usize>(&mut self, s: S, tile: usize, valid: usize, end: usize) {
        let (from, dim) = (self.tile(tile), self.source.kv.shape.head_dim);
        let next = self.tile((tile + VALUES_AHEAD).min(end - 1)).values;
        let rows = from.values.chunks_exact(dim).zip(next.chunks_exact(dim));
        let into = self.scratch.values.as_chunks_mut::<N>().0;
        for (position, (row, next)) in rows.enumerate().take(valid) {
            s.prefetch(next);
            let (whole, rest) = row.as_chunks::<LANES>();
            // Columns that are summed together share a scale: they are at most a group.
            for (pass, columns) in whole.chunks(N).enumerate() {
                let scale = scale_of::<S, E, N>(s, &from, pass, position);
                for (x, into) in columns.iter().zip(&mut into[pass * TILE + position]) {
                    let v = E::load(s, x);
                    s.store(if E::SCALED { s.mul(v, scale) } else { v }, into);
                }
            }
            if !rest.is_empty() {
                let mut filled = [E::zeroed(); LANES];
                filled[..rest.len()].copy_from_slice(rest);
                let (pass, column) = (whole.len() / N, whole.len() % N);
                let v = E::load(s, &filled);
                let v = if E::SCALED { s.mul(v, scale_of::<S, E, N>(s, &from, pass, position)) } else { v };
                s.store(v, &mut into[pass * TILE + position][column]);
            }
        }
    }
}

/// The scale of the columns of one pass and position.
#[inline(always)]
fn scale_of<S: Wide, E: KvElement, const N: usize>(s: S, from: &Tile<'_, E>, pass: usize, position: usize) -> S::V {
    const { assert!(GROUP.is_multiple_of(N * LANES)) };
    if E::SCALED { s.splat(from.value_scales[pass * N * LANES / GROUP][position]) } else { s.zero() }
}

impl Scratch {
    /// Rows of a group; none when none of them sees the chunk.
    fn rows_of(&self, group: usize, chunk: usize) -> usize {
        let rows = &self.rows[group * ROWS..self.rows.len().min((group + 1) * ROWS)];
        if rows.iter().any(|row| row.sees(chunk)) { rows.len() } else { 0 }
    }
}

#[inline(always)]
fn score_rows<S: Wide, const N: usize>(
    s: S,
    scratch: &mut Scratch,
    group: usize,
    rows: usize,
    tile: usize,
    count: usize,
) {
    match rows {
        0 => {}
        1 => score::<S, 1, N>(s, scratch, group, tile, count),
        2 => score::<S, 2, N>(s, scratch, group, tile, count),
        3 => score::<S, 3, N>(s, scratch, group, tile, count),
        4 => score::<S, 4, N>(s, scratch, group, tile, count),
        5 => score::<S, 5, N>(s, scratch, group, tile, count),
        _ => score::<S, ROWS, N>(s, scratch, group, tile, count),
    }
}

/// Scores of `R` rows with the `count` tiles that are loaded.
#[inline(always)]
fn score<S: Wide, const R: usize, const N: usize>(
    s: S,
    scratch: &mut Scratch,
    group: usize,
    tile: usize,
    count: usize,
) {
    let (keys, _) = scratch.keys.as_chunks::<N>();
    let dim = scratch.keys.len() / 4;
    let (queries, _) = scratch.queries[group * ROWS * dim..][..R * dim].as_chunks::<R>();
    let mut sums = [[s.zero(); N]; R];
    for (query, key) in queries.iter().zip(keys) {
        let mut loaded = [s.zero(); N];
        for n in 0..N {
            loaded[n] = s.load(&key[n]);
        }
        for r in 0..R {
            let q = s.splat(query[r]);
            for n in 0..N {
                sums[r][n] = s.fma(q, loaded[n], sums[r][n]);
            }
        }
    }
    for r in 0..R {
        let out = &mut scratch.scores[(group * ROWS + r) * CHUNK_TILES + tile..][..count];
        for (n, out) in out.iter_mut().enumerate().take(N) {
            s.store(sums[r][n], out);
        }
    }
}

/// Turns the scores of the positions from `start` on into weights.
#[inline(always)]
fn soften<S: Wide>(s: S, row: &mut Row, scores: &mut [[f32; LANES]], start: usize) {
    let mut highest = s.splat(f32::NEG_INFINITY);
    for (tile, scores) in scores.iter_mut().enumerate() {
        let start = start + tile * TILE;
        if start + TILE > row.position + 1 || start < row.first {
            for (lane, score) in scores.iter_mut().enumerate() {
                if !(row.first..=row.position).contains(&(start + lane)) {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
        highest = s.max(s.load(scores), highest);
    }
    row.high = s.highest(highest);
    let shift = s.splat(row.high);
    let mut total = s.zero();
    for scores in scores {
        let weights = s.exp(s.sub(s.load(scores), shift));
        total = s.add(total, weights);
        s.store(weights, scores);
    }
    row.total = s.sum(total);
}

#[inline(always)]
fn sum_rows<S: Wide, const N: usize>(
    s: S,
    scratch: &mut Scratch,
    group: usize,
    rows: usize,
    tile: usize,
    valid: usize,
) {
    match rows {
        0 => {}
        1 => sum::<S, 1, N>(s, scratch, group, tile, valid),
        2 => sum::<S, 2, N>(s, scratch, group, tile, valid),
        3 => sum::<S, 3, N>(s, scratch, group, tile, valid),
        4 => sum::<S, 4, N>(s, scratch, group, tile, valid),
        5 => sum::<S, 5, N>(s, scratch, group, tile, valid),
        _ => sum::<S, ROWS, N>(s, scratch, group, tile, valid),
    }
}

/// Adds the loaded tile's values to the sums of `R` rows.
#[inline(always)]
fn sum<S: Wide, const R: usize, const N: usize>(s: S, scratch: &mut Scratch, group: usize, tile: usize, valid: usize) {
    let width = scratch.values.len() / TILE;
    let mut weights = [[0.0; LANES]; R];
    for r in 0..R {
        weights[r] = scratch.scores[(group * ROWS + r) * CHUNK_TILES + tile];
    }
    let sums = &mut scratch.sums[group * ROWS * width..][..R * width];
    let (values, _) = scratch.values.as_chunks::<N>();
    for (pass, values) in values.as_chunks::<TILE>().0.iter().enumerate() {
        let mut acc = [[s.zero(); N]; R];
        for r in 0..R {
            for n in 0..N {
                acc[r][n] = s.load(&sums[r * width + pass * N + n]);
            }
        }
        for (position, value) in values.iter().enumerate().take(valid) {
            let mut loaded = [s.zero(); N];
            for n in 0..N {
                loaded[n] = s.load(&value[n]);
            }
            for r in 0..R {
                let weight = s.splat(weights[r][position]);
                for n in 0..N {
                    acc[r][n] = s.fma(weight, loaded[n], acc[r][n]);
                }
            }
        }
        for r in 0..R {
            for n in 0..N {
                s.store(acc[r][n], &mut sums[r * width + pass * N + n]);
            }
        }
    }
}
