// ldmatrix and mma.sync, with the layouts of fragments that the PTX manual gives ("Matrix fragments for mma.m16n8k16 with
// floating point type", "... mma.m16n8k32", "Warp-level matrix load instruction: ldmatrix").
#pragma once
#include "warp.hpp"

namespace emu {
/// `count` 8x8 matrices of 16-bit elements; lane 8i + j gives the address of row j of matrix i, 16 bytes in shared memory.
/// Lane l receives of each matrix the elements 2 (l % 4) and the next of row l / 4; transposed, of column l / 4.
void ldmatrix(unsigned* registers, int count, const void* row, bool transposed);
/// D = A B + D, A 16x16 row-major, B 16x8 column-major, bf16 or f16 in, f32 accumulators.
void mma_bf16_16816(float* d, const unsigned* a, const unsigned* b);
void mma_f16_16816(float* d, const unsigned* a, const unsigned* b);
/// D = A B + D, A 16x32 row-major, B 32x8 column-major, signed bytes in, s32 accumulators.
void mma_s8_16832(int* d, const unsigned* a, const unsigned* b);
}  // namespace emu
