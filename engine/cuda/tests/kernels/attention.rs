//! Keys and values into their pages, and attention over them, in all its forms.

use crate::{bench::Bench, tiny};
use engine_cuda::{
    device::Ptr,
    kernels::{AttendArgs, CopyArgs, KvPool, RotaryArgs, SPLIT_TOKENS},
};
use half::bf16;

const KV_HEADS: usize = 2;
const BLOCKS: usize = 80;

/// What is computed: sequences of (cached tokens, new tokens).
#[derive(Clone, Copy)]
struct Case {
    dim: usize,
    group: usize,
    fp8: bool,
    pages_per_block: usize,
    window: usize,
    sequences: &'static [(usize, usize)],
}

/// e4m3 by its definition: sign, four bits of exponent with a bias of 7, three of mantissa.
fn fp8(x: f64) -> f64 {
    let all = (0..127u32).map(|code| {
        let (exponent, mantissa) = (code >> 3, f64::from(code & 7) / 8.0);
        if exponent == 0 { mantissa * 2f64.powi(-6) } else { (1.0 + mantissa) * 2f64.powi(exponent as i32 - 7) }
    });
    let (magnitude, sign) = (x.abs(), x.signum());
    let nearest = all.enumerate().min_by(|(i, a), (j, b)| {
        // Of two that are as near, the even one.
        (a - magnitude).abs().total_cmp(&(b - magnitude).abs()).then((i % 2).cmp(&(j % 2)))
    });
    nearest.expect("codes").1 * sign
}

impl Case {
    fn heads(&self) -> usize {
        KV_HEADS * self.group
    }

    fn rounded(&self, x: f32) -> f64 {
        if self.fp8 { fp8(f64::from(x)) } else { f64::from(bf16::from_f32(x).to_f32()) }
    }

    fn block_tokens(&self) -> usize {
        self.pages_per_block * 16
    }

    /// Queries, keys and values of a token, by sequence and position.
    fn qkv(&self, sequence: usize, position: usize) -> Vec<f32> {
        let count = (self.heads() + 2 * KV_HEADS) * self.dim;
        (0..count).map(|i| 2.0 * tiny::noise((sequence * 1000 + position) * 4096 + i)).collect()
    }

    /// Block tables: scattered, and no block twice.
    fn tables(&self) -> Vec<Vec<usize>> {
        let mut next = 0;
        let sequences = self.sequences.iter();
        sequences
            .map(|(cached, new)| {
                let count = (cached + new).div_ceil(self.block_tokens());
                next += count;
                assert!(next <= BLOCKS);
                (next - count..next).map(|index| (index * 37 + 11) % BLOCKS).collect()
            })
            .collect()
    }

    /// One row of attention, in f64 on the rounded numbers.
    fn expected(&self, sequence: usize, position: usize, head: usize) -> Vec<f64> {
        let dim = self.dim;
        let q = self.qkv(sequence, position)[head * dim..][..dim].to_vec();
        let kv_head = head / self.group;
        let first = if self.window > 0 { (position + 1).saturating_sub(self.window) } else { 0 };
        let scale = 1.0 / (dim as f64).sqrt();
        let mut scores = Vec::new();
        let mut values = Vec::new();
        for other in first..=position {
            let all = self.qkv(sequence, other);
            let at = |part: usize| &all[(self.heads() + part * KV_HEADS + kv_head) * dim..][..dim];
            let products = q.iter().zip(at(0)).map(|(q, k)| f64::from(bf16::from_f32(*q).to_f32()) * self.rounded(*k));
            scores.push(products.sum::<f64>() * scale);
            values.push(at(1).iter().map(|v| self.rounded(*v)).collect::<Vec<f64>>());
        }
        let high = scores.iter().copied().fold(f64::MIN, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - high).exp()).collect();
        let total: f64 = weights.iter().sum();
        (0..dim).map(|d| weights.iter().zip(&values).map(|(w, v)| w * v[d]).sum::<f64>() / total).collect()
    }
}

/// A pool that holds the case's keys and values, and the queries of its new tokens.
struct Filled {
    bench: Bench,
    pool: KvPool,
    queries: Ptr,
    blocks: Ptr,
    spans: Ptr,
}

fn fill(case: Case) -> Filled {
    let mut bench = Bench::new();
    let number = if case.fp8 { 1 } else { 2 };
    let bytes = BLOCKS * case.pages_per_block * KV_HEADS * 2 * 16 * case.dim * number;
    let pool = KvPool {
        // Whatever a former sequence left there, as long as it is finite.
        pages: bench.upload(&vec![0x55u8; bytes]),
        pages_per_block: case.pages_per_block as i32,
        heads: KV_HEADS as i32,
        head_dim: case.dim as i32,
        fp8: i32::from(case.fp8),
    };
    let tables = case.tables();
    let (mut qkv, mut slots, mut positions) = (Vec::new(), Vec::new(), Vec::new());
    let mut push = |sequence: usize, position: usize| {
        qkv.extend(case.qkv(sequence, position));
        let block = tables[sequence][position / case.block_tokens()];
        slots.push((block * case.block_tokens() + position % case.block_tokens()) as i32);
        positions.push(position as i32);
    };
    // New tokens first, in batch order, so that their queries stand where attention looks for them.
    for (sequence, (cached, new)) in case.sequences.iter().enumerate() {
        (*cached..cached + new).for_each(|position| push(sequence, position));
    }
    for (sequence, (cached, _)) in case.sequences.iter().enumerate() {
        (0..*cached).for_each(|position| push(sequence, position));
    }
    let tokens = positions.len();
    let queries = bench.take(2 * tokens * case.heads() * case.dim);
    let args = RotaryArgs {
        qkv: bench.upload(&qkv),
        queries,
        positions: bench.upload(&positions),
        slots: bench.upload(&slots),
        // No pair turns.
        frequencies: bench.upload(&vec![0f32; case.dim / 2]),
        q_norm: Ptr::NULL,
        k_norm: Ptr::NULL,
        pool,
        heads: case.heads() as i32,
        halves: 1,
        position_scale: 1.0,
        epsilon: 1e-5,
    };
    // SAFETY: all sizes as laid out above.
    unsafe { bench.device.rotate(args, tokens) }.expect("a launch");
    let (mut spans, mut blocks, mut row) = (Vec::new(), Vec::new(), 0);
    for ((cached, new), table) in case.sequences.iter().zip(&tables) {
        spans.extend([row, *new, *cached, blocks.len()].map(|x| x as i32));
        blocks.extend(table.iter().map(|block| *block as i32));
        row += new;
    }
    // Blocks that nothing in the window lies in are gone.
    if case.window > 0 {
        for (span, (cached, _)) in spans.chunks(4).zip(case.sequences) {
            let gone = (cached + 1).saturating_sub(case.window) / case.block_tokens();
            blocks[span[3] as usize..][..gone].fill(-1);
        }
    }
    let (blocks, spans) = (bench.upload(&blocks), bench.upload(&spans));
    Filled { bench, pool, queries, blocks, spans }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Wide,
    InARow,
    BySplits,
}

fn attend(case: Case, filled: &mut Filled, form: Form) -> Vec<f64> {
    let rows_of = if form == Form::Wide { filled.bench.device.wide_rows(&filled.pool) } else { 16 };
    let mut items = Vec::new();
    for (index, (_, new)) in case.sequences.iter().enumerate() {
        (0..new * case.group).step_by(rows_of).for_each(|first| items.extend([index as i32, first as i32]));
    }
    // Padding in between, as graphs have it at the end.
    items.extend([-1, 0]);
    let count = items.len() / 2;
    let tokens: usize = case.sequences.iter().map(|(_, new)| new).sum();
    let longest = case.sequences.iter().map(|(cached, new)| cached + new).max().expect("sequences");
    let (splits, bench) = (longest.div_ceil(SPLIT_TOKENS) + 1, &mut filled.bench);
    let to = bench.activations(tokens, case.heads() * case.dim, 2);
    let partials = count * KV_HEADS * splits * 16;
    let args = AttendArgs {
        queries: filled.queries,
        blocks: filled.blocks,
        spans: filled.spans,
        items: bench.upload(&items),
        partial: if form == Form::BySplits { bench.take(4 * partials * case.dim) } else { Ptr::NULL },
        marks: bench.take(8 * partials),
        to,
        pool: filled.pool,
        heads: case.heads() as i32,
        splits: splits as i32,
        kept_rows: 16,
        window: case.window as i32,
        scale: std::f32::consts::LOG2_E / (case.dim as f32).sqrt(),
    };
    // SAFETY: all sizes as laid out above.
    unsafe {
        match form {
            Form::Wide => bench.device.attend_wide(args, count),
            Form::InARow | Form::BySplits => bench.device.attend_narrow(args, count),
        }
    }
    .expect("a launch");
    bench.read(to, tokens, case.heads() * case.dim).0
}

fn check(case: Case) {
    let gpu = engine_cuda_emulator::load().unwrap_or_else(|error| panic!("{error}"));
    let width = case.heads() * case.dim;
    let mut first: Option<Vec<f64>> = None;
    gpu.in_each_order(|order| {
        let mut filled = fill(case);
        for form in [Form::Wide, Form::InARow, Form::BySplits] {
            let found = attend(case, &mut filled, form);
            if let Some(first) = &first {
                assert!(found == *first, "{}, {form:?}, {order:?}: other bits", case.dim);
                continue;
            }
            let mut token = 0;
            for (sequence, (cached, new)) in case.sequences.iter().enumerate() {
                for position in *cached..cached + new {
                    for head in 0..case.heads() {
                        let expected = case.expected(sequence, position, head);
                        for (d, expected) in expected.iter().enumerate() {
                            let found = found[token * width + head * case.dim + d];
                            // Weights are rounded to bf16, values are within 2.
                            let name = format!("{}: {sequence}, {position}, {head}, {d}", case.dim);
                            assert!((found - expected).abs() < 8e-3, "{name}: {found}, {expected}");
                        }
                    }
                    token += 1;
                }
            }
            first = Some(found);
        }
    });
    assert_eq!(gpu.fault(), "");
}

const CASE: Case = Case {
    dim: 64,
    group: 3,
    fp8: false,
    pages_per_block: 1,
    window: 0,
    sequences: &[(0, 37), (530, 2), (255, 1), (0, 1)],
};

#[test]
fn every_width_of_a_head() {
    check(CASE);
    check(Case { dim: 32, group: 1, sequences: &[(256, 30), (3, 4)], ..CASE });
    check(Case { dim: 96, group: 2, sequences: &[(40, 3), (0, 9)], ..CASE });
    check(Case { dim: 128, group: 4, sequences: &[(290, 1), (0, 18)], ..CASE });
    check(Case { dim: 256, group: 4, sequences: &[(260, 1), (0, 6)], ..CASE });
}

#[test]
fn windows_and_blocks_of_several_pages() {
    check(Case { window: 100, ..CASE });
    check(Case { window: 16, pages_per_block: 3, ..CASE });
    check(Case { window: 300, pages_per_block: 2, sequences: &[(700, 1), (0, 20)], ..CASE });
}

#[test]
fn keys_and_values_in_fp8() {
    check(Case { fp8: true, ..CASE });
    check(Case { fp8: true, dim: 128, group: 4, window: 50, sequences: &[(70, 1), (0, 18)], ..CASE });
    check(Case { fp8: true, dim: 256, group: 1, sequences: &[(260, 1)], ..CASE });
    check(Case { fp8: true, dim: 32, group: 2, sequences: &[(60, 5)], ..CASE });
    check(Case { fp8: true, dim: 96, group: 2, sequences: &[(60, 5)], ..CASE });
}

#[test]
fn blocks_are_copied_whole_in_every_layer() {
    let gpu = engine_cuda_emulator::load().unwrap_or_else(|error| panic!("{error}"));
    let mut bench = Bench::new();
    let (layers, blocks, block_bytes) = (3, 5, 2048);
    let bytes: Vec<u8> = (0..layers * blocks * block_bytes).map(|i| (i * 31 / 7) as u8).collect();
    let args = CopyArgs {
        pages: bench.upload(&bytes),
        pairs: bench.upload(&[4i32, 0, 1, 2]),
        layer_bytes: (blocks * block_bytes) as i64,
        block_bytes: block_bytes as i64,
    };
    // SAFETY: all sizes as laid out above.
    unsafe { bench.device.copy_blocks(args, 2, layers) }.expect("a launch");
    let mut expected = bytes;
    for layer in expected.chunks_mut(blocks * block_bytes) {
        layer.copy_within(4 * block_bytes..5 * block_bytes, 0);
        layer.copy_within(block_bytes..2 * block_bytes, 2 * block_bytes);
    }
    assert_eq!(bench.download::<u8>(args.pages, expected.len()), expected);
    assert_eq!(gpu.fault(), "");
}
