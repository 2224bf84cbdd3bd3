//! Causal attention over paged KV with an online softmax (Milakov and Gimelshein 2018; FlashAttention,
//! Dao et al. 2022; split along the keys as in Flash-Decoding, Dao et al. 2023).
//!
//! The context is cut into chunks at fixed multiples of [`CHUNK`] positions. What a query has from a chunk depends on
//! nothing but query and chunk, and a query's chunks are joined in their order: by one thread that walks them, or
//! from memory by whichever thread finishes the last. So bits depend neither on threads nor on the batch. Queries
//! that share keys (tokens of one prefill, query heads of one KV head) share their conversion to f32.

use super::{
    attention_chunk::{Attend, Partial, Scratch, Sink, Source, padded_width},
    kv::KvPool,
    kv_format::KvElement,
    pool::{Pool, SharedMut},
    simd::Isa,
    wide::{LANES, Wide, WideKernel},
};
use std::{
    cell::RefCell,
    cmp::Reverse,
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

/// Positions after which the online softmax begins anew.
pub(super) const CHUNK: usize = 256;
/// Query rows of one part: enough to pay for the conversion of keys, few enough to stay in the cache.
const ROWS_PER_PART: usize = 48;
const TOKENS_PER_PART: usize = 16;

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

/// Some query tokens of one span, the query heads of one KV head, and some chunks of the keys that they see.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub span: usize,
    pub tokens: Range<usize>,
    pub kv_head: usize,
    pub heads: Range<usize>,
    pub chunks: Range<usize>,
    /// Index of the split that this is one chunk of.
    split: Option<usize>,
}

impl Part {
    fn rows(&self) -> usize {
        self.tokens.len() * self.heads.len()
    }

    fn cost(&self) -> usize {
        self.rows() * self.chunks.len()
    }
}

/// A part whose chunks are computed apart, and joined by whoever finishes the last.
struct Split {
    whole: Part,
    /// Where its partial results begin: by (row, chunk), each one vector of (high, total) and the sums.
    start: usize,
    unfinished: AtomicUsize,
}

struct Plan {
    parts: Vec<Part>,
    splits: Vec<Split>,
    /// Vectors of all partial results.
    partials: usize,
}

thread_local! {
    static SCRATCH: RefCell<(Scratch, Joined)> = RefCell::default();
    /// Partial results of splits, kept by the thread that calls [`attend`].
    static PARTIALS: RefCell<Vec<[f32; LANES]>> = const { RefCell::new(Vec::new()) };
}

/// Attends for all spans, in parallel by (tokens, KV head), and by chunks where that is too coarse.
pub fn attend<E: KvElement>(pool: &mut Pool, isa: Isa, job: Attention<'_, E>) {
    let plan = plan(&job, pool.threads());
    let (spans, heads, dim) = (job.spans, job.heads, job.kv.shape.head_dim);
    let source =
        Source { kv: job.kv, layer: job.layer, heads, scale: job.scale, window: job.window, queries: job.queries };
    let mut partials = PARTIALS.take();
    if partials.len() < plan.partials {
        partials.resize(plan.partials, [0.0; LANES]);
    }
    let shared = SharedMut::new(&mut partials);
    let out = SharedMut::new(job.out);
    let stride = 1 + padded_width(dim);
    pool.run(plan.parts.len(), &|index| {
        let part = &plan.parts[index];
        let span = &spans[part.span];
        SCRATCH.with_borrow_mut(|(scratch, joined)| {
            joined.begin(part.rows(), stride - 1);
            let finished = match part.split.map(|split| &plan.splits[split]) {
                None => {
                    isa.run_wide(Attend { source: &source, span, part, scratch, sink: joined });
                    part
                }
                Some(split) => {
                    let mut sink = Store { split, shared: &shared, stride };
                    isa.run_wide(Attend { source: &source, span, part, scratch, sink: &mut sink });
                    // The last to finish sees what all others have stored.
                    if split.unfinished.fetch_sub(1, Ordering::AcqRel) > 1 {
                        return;
                    }
                    isa.run_wide(Join { source: &source, span, split, shared: &shared, stride, joined });
                    &split.whole
                }
            };
            for row in 0..finished.rows() {
                let (token, head) = (row / finished.heads.len(), row % finished.heads.len());
                let row_out = span.row + finished.tokens.start + token;
                // SAFETY: (token, head) belongs to one part or split, and each is finished once.
                let out = unsafe { out.slice((row_out * heads + finished.heads.start + head) * dim, dim) };
                joined.write(row, out);
            }
        });
    });
    PARTIALS.set(partials);
}

fn plan<E: KvElement>(job: &Attention<'_, E>, threads: usize) -> Plan {
    let group = job.heads / job.kv.shape.heads;
    let tokens_per_part = (ROWS_PER_PART / group).clamp(1, TOKENS_PER_PART);
    let mut wholes = Vec::new();
    for (index, span) in job.spans.iter().enumerate() {
        for start in (0..span.tokens).step_by(tokens_per_part) {
            let tokens = start..(start + tokens_per_part).min(span.tokens);
            let chunks = chunks(span.start + tokens.start, span.start + tokens.end - 1, job.window);
            for kv_head in 0..job.kv.shape.heads {
                let heads = kv_head * group..(kv_head + 1) * group;
                let (tokens, chunks) = (tokens.clone(), chunks.clone());
                wholes.push(Part { span: index, tokens, kv_head, heads, chunks, split: None });
            }
        }
    }
    let cost: usize = wholes.iter().map(Part::cost).sum();
    let mut plan = Plan { parts: Vec::with_capacity(wholes.len()), splits: Vec::new(), partials: 0 };
    for whole in wholes {
        // No part may be more than half of what one thread has to do.
        if threads > 1 && whole.chunks.len() > 1 && whole.cost() * 2 * threads > cost {
            let split = Some(plan.splits.len());
            let one = |chunk| Part { chunks: chunk..chunk + 1, split, ..whole.clone() };
            plan.parts.extend(whole.chunks.clone().map(one));
            let (start, unfinished) = (plan.partials, AtomicUsize::new(whole.chunks.len()));
            plan.partials += whole.cost() * (1 + padded_width(job.kv.shape.head_dim));
            plan.splits.push(Split { whole, start, unfinished });
        } else {
            plan.parts.push(whole);
        }
    }
    // The longest first, so that the last to be handed out are short.
    plan.parts.sort_by_key(|part| Reverse(part.cost()));
    plan
}

/// Chunks that queries from position `first` to `last` see.
fn chunks(first: usize, last: usize, window: Option<usize>) -> Range<usize> {
    window.map_or(0, |window| (first + 1).saturating_sub(window)) / CHUNK..last / CHUNK + 1
}

/// The softmax of each row over the chunks so far.
#[derive(Default)]
struct Joined {
    width: usize,
    /// Largest score and sum of e^(score - largest); none before the first chunk.
    state: Vec<Option<(f32, f32)>>,
    sums: Vec<[f32; LANES]>,
}

impl Joined {
    fn begin(&mut self, rows: usize, width: usize) {
        self.width = width;
        self.state.clear();
        self.state.resize(rows, None);
        self.sums.resize(rows * width, [0.0; LANES]);
    }

    fn write(&self, row: usize, out: &mut [f32]) {
        let factor = 1.0 / self.state[row].map_or(f32::NAN, |(_, total)| total);
        let sums = self.sums[row * self.width..(row + 1) * self.width].as_flattened();
        for (out, x) in out.iter_mut().zip(sums) {
            *out = x * factor;
        }
    }
}

impl Sink for Joined {
    #[inline(always)]
    fn take<S: Wide>(&mut self, s: S, row: usize, _: usize, partial: Partial<'_>) {
        let sums = &mut self.sums[row * self.width..(row + 1) * self.width];
        let Some((high, total)) = self.state[row] else {
            self.state[row] = Some((partial.high, partial.total));
            sums.copy_from_slice(partial.sums);
            return;
        };
        let next = if partial.high > high { partial.high } else { high };
        let mut shifts = [0.0; LANES];
        (shifts[0], shifts[1]) = (high - next, partial.high - next);
        let factors = s.array(s.exp(s.load(&shifts)));
        self.state[row] = Some((next, total * factors[0] + partial.total * factors[1]));
        let (old, new) = (s.splat(factors[0]), s.splat(factors[1]));
        for (sum, x) in sums.iter_mut().zip(partial.sums) {
            s.store(s.fma(s.load(sum), old, s.mul(s.load(x), new)), sum);
        }
    }
}

/// Keeps the results of one chunk for later.
struct Store<'a> {
    split: &'a Split,
    shared: &'a SharedMut<'a, [f32; LANES]>,
    stride: usize,
}

impl Split {
    fn slot(&self, row: usize, chunk: usize, stride: usize) -> usize {
        self.start + (row * self.whole.chunks.len() + chunk - self.whole.chunks.start) * stride
    }
}

impl Sink for Store<'_> {
    #[inline(always)]
    fn take<S: Wide>(&mut self, _: S, row: usize, chunk: usize, partial: Partial<'_>) {
        let slot = self.split.slot(row, chunk, self.stride);
        // SAFETY: (split, row, chunk) belongs to one part, and each part is handed out once; they are read only
        // after all parts of the split are done.
        let [head, sums @ ..] = (unsafe { self.shared.slice(slot, self.stride) }) else { return };
        (head[0], head[1]) = (partial.high, partial.total);
        sums.copy_from_slice(partial.sums);
    }
}

/// Joins the chunks of a split.
struct Join<'a, E> {
    source: &'a Source<'a, E>,
    span: &'a Span<'a>,
    split: &'a Split,
    shared: &'a SharedMut<'a, [f32; LANES]>,
    stride: usize,
    joined: &'a mut Joined,
}

impl<E> WideKernel for Join<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Wide>(self, s: S) {
        let whole = &self.split.whole;
        self.joined.begin(whole.rows(), self.stride - 1);
        for row in 0..whole.rows() {
            let position = self.span.start + whole.tokens.start + row / whole.heads.len();
            for chunk in chunks(position, position, self.source.window) {
                let slot = self.split.slot(row, chunk, self.stride);
                // SAFETY: all parts of the split are done, and this thread alone joins them.
                let [head, sums @ ..] = (unsafe { self.shared.slice(slot, self.stride) }) else { return };
                self.joined.take(s, row, chunk, Partial { high: head[0], total: head[1], sums });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::kv::{KvShape, Slot};

    /// More than two chunks, and a multiple of nothing.
    const POSITIONS: usize = 599;
    const SHAPE: KvShape = KvShape { layers: 1, heads: 2, head_dim: 24, block_tokens: 32, blocks: 19 };
    const HEADS: usize = 6;
    const WIDTH: usize = HEADS * SHAPE.head_dim;

    fn noise(index: usize) -> f32 {
        ((index as u32).wrapping_mul(0x9e37_79b9).rotate_left(13).wrapping_mul(0x85eb_ca6b) >> 8) as f32 / 8e6 - 1.0
    }

    struct Data {
        q: Vec<f32>,
        k: Vec<f32>,
        v: Vec<f32>,
    }

    fn data() -> Data {
        let noise = |count: usize, salt: usize| (0..count).map(|i| noise(i * 3 + salt) * 2.0).collect();
        let kv_width = SHAPE.heads * SHAPE.head_dim;
        Data { q: noise(POSITIONS * WIDTH, 0), k: noise(POSITIONS * kv_width, 1), v: noise(POSITIONS * kv_width, 2) }
    }

    /// Attention of one query head at one position by its definition, in f64.
    fn exact(position: usize, head: usize, window: Option<usize>, data: &Data) -> Vec<f64> {
        let (dim, kv_head) = (SHAPE.head_dim, head / (HEADS / SHAPE.heads));
        let row = |x: &[f32], at: usize| -> Vec<f64> {
            x[(at * SHAPE.heads + kv_head) * dim..][..dim].iter().map(|x| f64::from(*x)).collect()
        };
        let q = &data.q[(position * HEADS + head) * dim..][..dim];
        let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
        let weight = |at: usize| -> f64 {
            (row(&data.k, at).iter().zip(q).map(|(k, q)| k * f64::from(*q)).sum::<f64>() * 0.25).exp()
        };
        let weights: Vec<f64> = (first..=position).map(weight).collect();
        let total: f64 = weights.iter().sum();
        let mut out = vec![0.0; dim];
        for (at, weight) in (first..=position).zip(weights) {
            out.iter_mut().zip(row(&data.v, at)).for_each(|(out, v)| *out += weight * v / total);
        }
        out
    }

    /// The last `tokens` of all positions as one step. What no position was written to is NaN.
    fn attend_last<E: KvElement>(
        isa: Isa,
        threads: usize,
        tokens: usize,
        window: Option<usize>,
        data: &Data,
    ) -> Vec<f32> {
        let mut pool = Pool::new(threads, |_| {}).expect("threads");
        let mut kv = KvPool::<E>::new(SHAPE).expect("a pool");
        let blocks: Vec<u32> = (0..19).map(|block| block * 7 % 19).collect();
        let slot = |position: usize| Slot { block: blocks[position / 32], offset: position % 32 };
        let leftover = vec![f32::NAN; 608 * SHAPE.heads * SHAPE.head_dim];
        kv.write(&mut pool, isa, 0, &(0..608).map(slot).collect::<Vec<_>>(), &leftover, &leftover);
        kv.write(&mut pool, isa, 0, &(0..POSITIONS).map(slot).collect::<Vec<_>>(), &data.k, &data.v);
        let start = POSITIONS - tokens;
        let mut out = vec![0.0; tokens * WIDTH];
        let spans = [Span { row: 0, tokens, start, blocks: &blocks }];
        let (queries, out_slice) = (&data.q[start * WIDTH..], &mut out[..]);
        let job =
            Attention { kv: &kv, layer: 0, heads: HEADS, scale: 0.25, window, spans: &spans, queries, out: out_slice };
        attend(&mut pool, isa, job);
        out
    }

    fn check<E: KvElement>(window: Option<usize>, tolerance: f64) {
        let data = data();
        let whole = attend_last::<E>(Isa::detect(), 2, POSITIONS, window, &data);
        // Every third row and head.
        for (at, found) in whole.chunks_exact(SHAPE.head_dim).enumerate().step_by(7) {
            for (found, exact) in found.iter().zip(exact(at / HEADS, at % HEADS, window, &data)) {
                assert!((f64::from(*found) - exact).abs() < tolerance, "{window:?} at {at}: {found}, not {exact}");
            }
        }
        for isa in Isa::available() {
            for (threads, tokens) in [(1, POSITIONS), (1, 1), (2, 1), (5, 1), (2, 3), (3, 33), (2, 300)] {
                let part = attend_last::<E>(isa, threads, tokens, window, &data);
                let same = part == whole[(POSITIONS - tokens) * WIDTH..];
                assert!(same, "{isa:?}, {window:?}, {tokens} tokens, {threads} threads");
            }
        }
    }

    #[test]
    fn it_follows_the_definition_however_a_prefill_is_cut() {
        for window in [None, Some(1), Some(17), Some(250), Some(256), Some(300), Some(1000)] {
            check::<f32>(window, 1e-5);
        }
    }

    #[test]
    fn stored_formats_round_and_change_nothing_else() {
        for window in [None, Some(270)] {
            check::<u16>(window, 2e-3);
            check::<i8>(window, 2e-2);
        }
    }
}
