//! Products of the shapes of a model of 8B parameters: bytes of weights per second for few tokens, operations for many.

use crate::{Failure, Scale, tiny, yardsticks::Yardsticks};
use engine_cuda::{
    Arena,
    device::{Device, Ptr},
    format::Format,
    kernels::{Activations, Matrix, Output},
};
use engine_store::GgmlType;
use serde_json::{Value, json};

/// Rows and columns: queries, keys and values together; back from attention; gate and up; down.
const SHAPES: [(usize, usize); 4] = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)];
const EMULATED_SHAPES: [(usize, usize); 1] = [(64, 512)];
const KINDS: [GgmlType; 4] = [GgmlType::BF16, GgmlType::Q8_0, GgmlType::Q4_K, GgmlType::Q4_0];
const TOKENS: [usize; 5] = [1, 8, 32, 128, 2048];
/// Random bytes that matrices are filled with again and again.
const PIECE_BYTES: usize = 1 << 20;

pub fn all(device: &mut Device, scale: Scale, best: Yardsticks) -> Result<Vec<Value>, Failure> {
    let shapes = if scale.emulated { &EMULATED_SHAPES[..] } else { &SHAPES[..] };
    let mut rows = Vec::new();
    for kind in KINDS {
        for shape in shapes {
            for tokens in TOKENS.into_iter().filter(|tokens| !scale.emulated || *tokens <= 32) {
                rows.push(one(device, scale, best, kind, *shape, tokens)?);
            }
        }
    }
    Ok(rows)
}

fn one(
    device: &mut Device,
    scale: Scale,
    best: Yardsticks,
    kind: GgmlType,
    (rows, cols): (usize, usize),
    tokens: usize,
) -> Result<Value, Failure> {
    let format = Format::of(kind).ok_or("no kernel knows this type")?;
    let bytes = format.bytes(rows, cols);
    // Several copies in turn, so that none of them is found in the second-level cache.
    let copies = if scale.emulated { 1 } else { (256usize << 20).div_ceil(bytes).clamp(1, 32) };
    let stride = cols.next_multiple_of(64);
    let room = copies * (bytes + 4096) + tokens * (stride * 6 + rows * 4) + (16 << 20);
    let mut arena = Arena::new(&device.context, "products", room as u64)?;
    let mut matrices = Vec::new();
    for _ in 0..copies {
        let at = arena.take(bytes as u64)?;
        fill(device, at, bytes)?;
        matrices.push(Matrix { format, at, rows, cols });
    }
    let (numbers, sums) = (arena.take((tokens * stride * 2) as u64)?, arena.take((tokens * stride / 4) as u64)?);
    // SAFETY: just taken, with this room.
    unsafe {
        device.clear(numbers, (tokens * stride * 2) as u64)?;
        device.clear(sums, (tokens * stride / 4) as u64)?;
    }
    let input = Activations { numbers, sums, plane: (tokens * stride) as i64, stride: stride as i32, planes: 1 };
    let at = arena.take((tokens * rows * 4) as u64)?;
    let out = Output { at, stride: rows, bias: Ptr::NULL, accumulate: false };
    let stream = device.stream.clone();
    let mut turn = 0;
    let mut multiply = || {
        turn += 1;
        // SAFETY: the matrices, the inputs and the outputs lie in the arena, as large as told.
        unsafe { device.multiply(matrices[turn % copies], input, tokens, out, None) }.map_err(Failure::from)
    };
    let seconds = scale.seconds(&mut multiply, &|| stream.synchronize().map_err(Failure::from))?;
    let gb_per_s = bytes as f64 / seconds / 1e9;
    let tflop_per_s = 2.0 * (rows * cols * tokens) as f64 / seconds / 1e12;
    Ok(json!({
        "kind": kind.to_string(), "rows": rows, "cols": cols, "tokens": tokens, "us": seconds * 1e6,
        "weights_gb_per_s": gb_per_s, "share_of_copy": gb_per_s / best.copy_gb_per_s,
        "tflop_per_s": tflop_per_s, "share_of_matrix_rate": best.matrix_tflop_per_s.map(|most| tflop_per_s / most),
    }))
}

fn fill(device: &Device, at: Ptr, bytes: usize) -> Result<(), Failure> {
    let piece: Vec<u8> = (0..PIECE_BYTES.min(bytes)).map(|i| (tiny::noise(i).to_bits() >> 7) as u8).collect();
    for begin in (0..bytes).step_by(piece.len()) {
        let part = &piece[..piece.len().min(bytes - begin)];
        // SAFETY: within the matrix; waited for below, before the piece goes.
        unsafe { device.to_device(&device.stream, at.offset(begin as u64), part) }?;
    }
    Ok(device.wait(&device.stream)?)
}
