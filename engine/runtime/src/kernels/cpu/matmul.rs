//! Matrix products over the thread pool. Work is cut by output rows and tokens only, never along a sum.

use super::{
    integer,
    matrix::{GROUP, Matrix},
    pool::{Pool, SharedMut},
    quant::Quantised,
    real,
    simd::Isa,
};

/// Activations of a step: `tokens` rows, in f32 and, where integer kernels are wanted, in int8 too.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    pub tokens: usize,
    pub real: &'a [f32],
    pub quantised: Option<&'a Quantised>,
}

/// `out[token][row] (+)= matrix[row] . input[token]`, `out` being `tokens` x `matrix.rows`.
pub struct Job<'a> {
    pub matrix: &'a Matrix,
    pub out: &'a mut [f32],
    /// Add to what is there (a residual connection) instead of replacing it.
    pub accumulate: bool,
}

/// Tokens per pass over the weights: their activations should stay in the second-level cache.
const TOKENS_PER_PASS: usize = 128;
/// Row groups per item: enough to make an item worth its hand-out, few enough to balance the threads.
const GROUPS_PER_ITEM_ONE: usize = 6;
const GROUPS_PER_ITEM_MANY: usize = 2;

struct Part<'a> {
    matrix: &'a Matrix,
    out: SharedMut<'a, f32>,
    accumulate: bool,
    items: usize,
}

/// Runs several products of the same input as one parallel region.
pub fn multiply(pool: &mut Pool, isa: Isa, input: Input<'_>, jobs: Vec<Job<'_>>) {
    let per_item = if input.tokens == 1 { GROUPS_PER_ITEM_ONE } else { GROUPS_PER_ITEM_MANY };
    let parts: Vec<Part<'_>> = jobs.into_iter().map(|job| part(job, input.tokens, per_item)).collect();
    let items_per_pass: usize = parts.iter().map(|part| part.items).sum();
    let passes = input.tokens.div_ceil(TOKENS_PER_PASS);
    pool.run(passes * items_per_pass, &|item| {
        let first = item / items_per_pass * TOKENS_PER_PASS;
        let tokens = first..(first + TOKENS_PER_PASS).min(input.tokens);
        let mut rest = item % items_per_pass;
        for part in &parts {
            if rest < part.items {
                let groups = rest * per_item..((rest + 1) * per_item).min(part.matrix.groups());
                return run_item(isa, part, groups, input, tokens);
            }
            rest -= part.items;
        }
    });
}

fn part<'a>(job: Job<'a>, tokens: usize, per_item: usize) -> Part<'a> {
    assert_eq!(job.out.len(), tokens * job.matrix.rows, "output of a product has the wrong size");
    Part {
        matrix: job.matrix,
        out: SharedMut::new(job.out),
        accumulate: job.accumulate,
        items: job.matrix.groups().div_ceil(per_item),
    }
}

fn run_item(
    isa: Isa,
    part: &Part<'_>,
    groups: std::ops::Range<usize>,
    input: Input<'_>,
    tokens: std::ops::Range<usize>,
) {
    let rows = part.matrix.rows;
    let sink = |token: usize, group: usize, values: &[f32; GROUP]| {
        let row = group * GROUP;
        // SAFETY: an item is handed out once, and each (token, group) belongs to one item, so nobody else
        // touches these elements.
        let out = unsafe { part.out.slice(token * rows + row, GROUP.min(rows - row)) };
        for (out, value) in out.iter_mut().zip(values) {
            *out = if part.accumulate { *out + value } else { *value };
        }
    };
    match input.quantised.filter(|_| part.matrix.is_integer()) {
        Some(quantised) => integer::multiply(isa, part.matrix, groups, quantised, tokens, sink),
        None => real::multiply(isa, part.matrix, groups, input.real, tokens, sink),
    }
}
