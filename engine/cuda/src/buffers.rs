//! What a step needs beside weights and KV: activations of one piece, its layout, results. Sized once, at fixed
//! addresses, so that captured graphs stay valid.

use crate::{
    arena::Arena,
    device::{Device, Ptr},
    error::CudaError,
    kernels::{Activations, ChoiceArgs},
    plan::{Map, Room},
};
use engine_store::ModelConfig;

/// Most rows of logits that are computed at once.
pub(crate) const LOGIT_ROWS: usize = 64;
/// Partial results of attention by splits, bytes; what needs more walks through the splits in a row.
const PARTIAL_BYTES: u64 = 64 << 20;

/// Addresses of a step's buffers.
#[derive(Debug)]
pub(crate) struct Buffers {
    /// f32, the residual stream.
    pub(crate) x: Ptr,
    /// f32, what a branch adds to it before its norm.
    pub(crate) branch: Ptr,
    pub(crate) normed: Activations,
    /// f32: queries, keys and values of a token side by side.
    pub(crate) qkv: Ptr,
    /// bf16.
    pub(crate) queries: Ptr,
    pub(crate) attended: Activations,
    /// f32: gate, then up.
    pub(crate) gate_up: Ptr,
    pub(crate) gated: Activations,
    /// Of rows whose logits are wanted.
    pub(crate) wanted: Activations,
    /// f32.
    pub(crate) logits: Ptr,
    /// [`crate::kernels::ChoiceArgs`] of those rows, and the i32 tokens chosen.
    pub(crate) choices: Ptr,
    pub(crate) chosen: Ptr,
    /// f32: attention by splits, see [`crate::kernels::AttendArgs`].
    pub(crate) partial: Ptr,
    pub(crate) marks: Ptr,
    /// Numbers that `partial` holds.
    pub(crate) partial_room: usize,
    /// i32, by [`Map`].
    pub(crate) layout: Ptr,
    _arena: Arena,
}

impl Buffers {
    pub(crate) fn new(
        device: &Device,
        config: &ModelConfig,
        room: Room,
        map: Map,
        planes: usize,
    ) -> Result<Self, CudaError> {
        let (tokens, width) = (room.tokens, config.width);
        let (q, kv, ffn) = (config.q_width(), config.kv_width(), config.ffn_width);
        let mut arena = Arena::new(&device.context, "activations", 64 << 30)?;
        let mut take = |numbers: usize, bytes: usize| arena.take((numbers * bytes) as u64);
        let mut activations = |tokens: usize, cols: usize| -> Result<Activations, CudaError> {
            let stride = cols.next_multiple_of(64);
            let numbers = take(planes * tokens * stride, 2)?;
            let sums = take(tokens * stride / 16, 4)?;
            Ok(Activations {
                numbers,
                sums,
                plane: (tokens * stride) as i64,
                stride: stride as i32,
                planes: planes as i32,
            })
        };
        let (normed, attended) = (activations(tokens, width)?, activations(tokens, q)?);
        let (gated, wanted) = (activations(tokens, ffn)?, activations(LOGIT_ROWS, width)?);
        let partial_room = PARTIAL_BYTES as usize / 4;
        let out = Self {
            x: take(tokens * width, 4)?,
            branch: take(tokens * width, 4)?,
            normed,
            qkv: take(tokens * (q + 2 * kv), 4)?,
            queries: take(tokens * q, 2)?,
            attended,
            gate_up: take(tokens * 2 * ffn, 4)?,
            gated,
            wanted,
            logits: take(LOGIT_ROWS * config.vocab, 4)?,
            choices: take(LOGIT_ROWS, size_of::<ChoiceArgs>())?,
            chosen: take(LOGIT_ROWS, 4)?,
            partial: take(partial_room, 4)?,
            // A row has at least 32 numbers.
            marks: take(partial_room / 32 * 2, 4)?,
            partial_room,
            layout: take(map.len, 4)?,
            _arena: arena,
        };
        // Columns that only make rows whole are never written again.
        for part in [out.normed, out.attended, out.gated, out.wanted] {
            // SAFETY: as many bytes as were taken above.
            unsafe { device.clear(part.numbers, 2 * part.plane as u64 * planes as u64) }?;
        }
        Ok(out)
    }
}
