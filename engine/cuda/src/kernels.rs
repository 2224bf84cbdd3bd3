//! The kernels' arguments, field by field as `kernels/*.cu` declare them, and how each kernel is run.

use crate::{
    device::{Device, Launch, Ptr},
    error::CudaError,
    format::Format,
};

/// Tokens of a page of keys and values.
pub const PAGE_TOKENS: usize = 16;
/// Positions of a split of attention.
pub const SPLIT_TOKENS: usize = 256;
/// Rows of a warp of attention: (token, query head) pairs.
pub const WARP_ROWS: usize = 16;
/// Rows of a block of prefill, whose warps share keys and values.
const WIDE_ROWS: usize = 64;

/// Inputs of products (`activations.cuh`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Activations {
    pub numbers: Ptr,
    pub sums: Ptr,
    /// Numbers from one plane to the next.
    pub plane: i64,
    pub stride: i32,
    pub planes: i32,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct MatmulArgs {
    weights: Ptr,
    numbers: Ptr,
    sums: Ptr,
    out: Ptr,
    bias: Ptr,
    plane: i64,
    rows: i32,
    cols: i32,
    tokens: i32,
    stride: i32,
    planes: i32,
    out_stride: i32,
    accumulate: i32,
}

/// A matrix on the device.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    pub format: Format,
    pub at: Ptr,
    pub rows: usize,
    pub cols: usize,
}

/// Packing of rows as a file stores them (`pack.cuh`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct PackArgs {
    stored: Ptr,
    out: Ptr,
    row_bytes: i64,
    rows: i32,
    cols: i32,
    units: i32,
}

/// Where products go: f32, one row per token.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    pub at: Ptr,
    /// Numbers from one token to the next.
    pub stride: usize,
    /// Of the rows, or null.
    pub bias: Ptr,
    /// Whether to add to what is there.
    pub accumulate: bool,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct EmbedArgs {
    weights: Ptr,
    tokens: Ptr,
    out: Ptr,
    width: i32,
    cols: i32,
    scale: f32,
}

/// RMSNorm (`norm.cu`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct NormArgs {
    pub x: Ptr,
    pub branch: Ptr,
    pub branch_weight: Ptr,
    pub weight: Ptr,
    pub rows: Ptr,
    pub to: Activations,
    pub width: i32,
    pub epsilon: f32,
}

/// Gated activation (`gate.cu`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct GateArgs {
    pub gate_up: Ptr,
    pub to: Activations,
    pub width: i32,
    pub gelu: i32,
}

/// One layer's keys and values (`kv.cuh`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct KvPool {
    pub pages: Ptr,
    pub pages_per_block: i32,
    pub heads: i32,
    pub head_dim: i32,
    pub fp8: i32,
}

impl KvPool {
    /// Bytes of a block of one layer.
    pub fn block_bytes(&self) -> u64 {
        let number = if self.fp8 != 0 { 1 } else { 2 };
        let page = 2 * PAGE_TOKENS as u64 * self.head_dim as u64 * number;
        page * self.heads as u64 * self.pages_per_block as u64
    }
}

/// Rotary embedding and the way into the pool (`rotary.cu`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct RotaryArgs {
    pub qkv: Ptr,
    pub queries: Ptr,
    pub positions: Ptr,
    pub slots: Ptr,
    pub frequencies: Ptr,
    pub q_norm: Ptr,
    pub k_norm: Ptr,
    pub pool: KvPool,
    pub heads: i32,
    pub halves: i32,
    pub position_scale: f32,
    pub epsilon: f32,
}

/// Attention (`attention.cuh`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct AttendArgs {
    pub queries: Ptr,
    pub blocks: Ptr,
    pub spans: Ptr,
    pub items: Ptr,
    pub partial: Ptr,
    pub marks: Ptr,
    pub to: Activations,
    pub pool: KvPool,
    pub heads: i32,
    pub splits: i32,
    pub kept_rows: i32,
    pub window: i32,
    pub scale: f32,
}

/// Copies of blocks (`rotary.cu`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct CopyArgs {
    pub pages: Ptr,
    pub pairs: Ptr,
    pub layer_bytes: i64,
    pub block_bytes: i64,
}

/// How one row's token is chosen (`sample.cu`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ChoiceArgs {
    pub seed: u64,
    pub position: u64,
    /// 1 / temperature; 0 takes the likeliest.
    pub scale: f32,
    pub top_p: f32,
    pub min_p: f32,
    pub top_k: u32,
}

/// Choices of many rows (`sample.cu`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ChooseArgs {
    pub logits: Ptr,
    pub choices: Ptr,
    pub tokens: Ptr,
    pub vocab: i32,
}

/// Shared memory of a block of attention (`attend` in attention.cuh).
fn attend_shared_bytes(pool: &KvPool, warps: usize) -> usize {
    let (dim, number) = (pool.head_dim as usize, if pool.fp8 != 0 { 1 } else { 2 });
    let stages = if dim * number >= 512 { 2 } else { 3 };
    stages * 4 * PAGE_TOKENS * dim * number + warps * WARP_ROWS * dim * 4
}

fn launch(grid: [usize; 3], threads: u32, shared_bytes: usize) -> Launch {
    Launch { grid: grid.map(|size| size as u32), threads, shared_bytes: shared_bytes as u32 }
}

/// # Safety
/// Of all: every address must hold what the kernel's head comment says, for as many tokens as are told.
impl Device {
    /// Products of a matrix and `tokens` rows of activations. `form` overrides the choice by number of tokens, for tests:
    /// results do not depend on it.
    pub unsafe fn multiply(
        &mut self,
        matrix: Matrix,
        input: Activations,
        tokens: usize,
        out: Output,
        form: Option<Form>,
    ) -> Result<(), CudaError> {
        let format = matrix.format;
        let args = MatmulArgs {
            weights: matrix.at,
            numbers: input.numbers,
            sums: input.sums,
            out: out.at,
            bias: out.bias,
            plane: input.plane,
            rows: matrix.rows as i32,
            cols: format.packed_cols(matrix.cols) as i32,
            tokens: tokens as i32,
            stride: input.stride,
            planes: input.planes,
            out_stride: out.stride as i32,
            accumulate: i32::from(out.accumulate),
        };
        let (unit, bands) = (format.unit_bytes(), matrix.rows.div_ceil(16));
        let few = |width: usize| launch([bands, tokens.div_ceil(width), 1], 256, 8 * few_stages(unit) * unit);
        let shared = 3 * (8 * unit + input.planes as usize * 8192 + 1024);
        let (name, launch) = match form.unwrap_or(Form::of(tokens)) {
            Form::Few8 => ("few8", few(8)),
            // Also where a block of the form for many does not fit into a small device.
            form if form == Form::Few32 || shared > self.context.shared_bytes as usize => ("few32", few(32)),
            _ => ("many", launch([bands.div_ceil(8), tokens.div_ceil(64), 1], 256, shared)),
        };
        // SAFETY: the caller's word.
        unsafe { self.launch(&format!("{name}_{}", format.suffix), launch, &args) }
    }

    /// Packs `rows` rows, from the matrix's row `first` on (a multiple of 16), that lie at `stored` as in a file; on the
    /// upload stream.
    pub unsafe fn pack(&mut self, matrix: Matrix, first: usize, rows: usize, stored: Ptr) -> Result<(), CudaError> {
        let (format, cols) = (matrix.format, matrix.cols);
        let units = format.packed_cols(cols) / format.unit_cols;
        let args = PackArgs {
            stored,
            out: matrix.at.offset((first / 16 * format.band_bytes(cols)) as u64),
            row_bytes: format.kind.bytes(cols as u64).unwrap_or(0) as i64,
            rows: rows as i32,
            cols: cols as i32,
            units: units as i32,
        };
        let launch = launch([units, rows.div_ceil(16), 1], 32 * format.tiles() as u32, 0);
        let (name, stream) = (format!("pack_{}", format.suffix), self.upload.clone());
        // SAFETY: the caller's word.
        unsafe { self.launch_on(&stream, &name, launch, &args) }
    }

    /// Rows of the embedding, times `scale`.
    pub unsafe fn embed(
        &mut self,
        matrix: Matrix,
        ids: Ptr,
        tokens: usize,
        scale: f32,
        out: Ptr,
    ) -> Result<(), CudaError> {
        let cols = matrix.format.packed_cols(matrix.cols) as i32;
        let args = EmbedArgs { weights: matrix.at, tokens: ids, out, width: matrix.cols as i32, cols, scale };
        // SAFETY: the caller's word.
        unsafe { self.launch(&format!("embed_{}", matrix.format.suffix), launch([tokens, 1, 1], 256, 0), &args) }
    }

    pub unsafe fn norm(&mut self, args: NormArgs, tokens: usize) -> Result<(), CudaError> {
        // SAFETY: the caller's word.
        unsafe { self.launch("rms_norm", launch([tokens, 1, 1], 256, 0), &args) }
    }

    pub unsafe fn gate(&mut self, args: GateArgs, tokens: usize) -> Result<(), CudaError> {
        let grid = [(args.to.stride as usize).div_ceil(256), tokens, 1];
        // SAFETY: the caller's word.
        unsafe { self.launch("gate_times_up", launch(grid, 256, 0), &args) }
    }

    pub unsafe fn rotate(&mut self, args: RotaryArgs, tokens: usize) -> Result<(), CudaError> {
        let heads = (args.heads + 2 * args.pool.heads) as usize;
        // SAFETY: the caller's word.
        unsafe { self.launch("rotate_and_keep", launch([heads, tokens, 1], 32, 0), &args) }
    }

    /// Rows of an item of [`Device::attend_wide`]: as many as share keys and values in the shared memory of this device.
    pub fn wide_rows(&self, pool: &KvPool) -> usize {
        let fits = attend_shared_bytes(pool, WIDE_ROWS / WARP_ROWS) <= self.context.shared_bytes as usize;
        if fits { WIDE_ROWS } else { WARP_ROWS }
    }

    /// Attention of items of [`Device::wide_rows`] rows, which walk through the splits in a row.
    pub unsafe fn attend_wide(&mut self, args: AttendArgs, items: usize) -> Result<(), CudaError> {
        let args = AttendArgs { partial: Ptr::NULL, ..args };
        let warps = self.wide_rows(&args.pool) / WARP_ROWS;
        // SAFETY: the caller's word.
        unsafe { self.attend(if warps == 1 { "decode" } else { "prefill" }, warps, args, [items, 1]) }
    }

    /// Attention of items of [`WARP_ROWS`] rows: by splits, if `args` tells where partial results go, or in a row.
    pub unsafe fn attend_narrow(&mut self, args: AttendArgs, items: usize) -> Result<(), CudaError> {
        let splits = if args.partial == Ptr::NULL { 1 } else { args.splits as usize };
        // SAFETY: the caller's word.
        unsafe { self.attend("decode", 1, args, [items, splits]) }?;
        if args.partial == Ptr::NULL {
            return Ok(());
        }
        // SAFETY: the caller's word.
        unsafe { self.launch("merge_splits", launch([args.pool.heads as usize, items, 1], 256, 0), &args) }
    }

    unsafe fn attend(
        &mut self,
        name: &str,
        warps: usize,
        args: AttendArgs,
        [items, splits]: [usize; 2],
    ) -> Result<(), CudaError> {
        let (dim, kind) = (args.pool.head_dim, if args.pool.fp8 != 0 { "fp8" } else { "bf16" });
        let shared = attend_shared_bytes(&args.pool, warps);
        let launch = launch([args.pool.heads as usize, items, splits], 32 * warps as u32, shared);
        // SAFETY: the caller's word.
        unsafe { self.launch(&format!("{name}_{kind}_{dim}"), launch, &args) }
    }

    pub unsafe fn choose(&mut self, args: ChooseArgs, rows: usize) -> Result<(), CudaError> {
        // SAFETY: the caller's word.
        unsafe { self.launch("choose_tokens", launch([rows, 1, 1], 512, 0), &args) }
    }

    pub unsafe fn copy_blocks(&mut self, args: CopyArgs, pairs: usize, layers: usize) -> Result<(), CudaError> {
        // SAFETY: the caller's word.
        unsafe { self.launch("copy_blocks", launch([pairs, layers, 1], 256, 0), &args) }
    }
}

/// Which kernel multiplies. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Few8,
    Few32,
    Many,
}

impl Form {
    fn of(tokens: usize) -> Self {
        match tokens {
            0..=8 => Self::Few8,
            9..=32 => Self::Few32,
            _ => Self::Many,
        }
    }
}

/// Units that a warp has on the way (`FewStages` in matmul.cuh).
fn few_stages(unit_bytes: usize) -> usize {
    (6144 / unit_bytes).clamp(2, 8)
}
