// How activations lie that matrix products read: bf16, one row per token, in the order in which a warp's lanes want
// them as the B operand of an mma, with their sums beside them.
//
// Order: inside 32 columns, column 16 s + 4 t + j stands at 8 t + 4 s + j (s < 2, t < 4, j < 4). So lane t of a quad
// finds both k-steps of its token in one load of 16 bytes, and the mma's k runs over 16 neighbouring columns.
//
// Planes: a number may be kept as the sum of several bf16 numbers, each what the ones before left over. One plane is
// the usual 8 bits of precision, two are 16. Products take the planes one after the other.
//
// Sums: of each 16 columns, over all planes, in f32, for formats whose weights have a minimum.
#pragma once
#include "dev.cuh"

struct Activations {
    u16* numbers;       // planes x tokens x stride
    float* sums;        // tokens x stride / 16
    long long plane;    // numbers from one plane to the next
    int stride;         // columns in memory, a multiple of 64; those past the matrix's own are zero
    int planes;
};

__device__ __forceinline__ int fragment_place(int column) {
    int in_block = column & 31;
    return (column & ~31) | ((in_block >> 2) & 3) << 3 | (in_block >> 4) << 2 | (in_block & 3);
}

// Stores one number a lane; a whole warp calls this with 32 neighbouring columns, the first a multiple of 32.
__device__ __forceinline__ void store_activation(const Activations& to, int token, int column, float x) {
    u16* at = to.numbers + (long long)token * to.stride + fragment_place(column);
    float kept = 0.0f;
    for (int plane = 0; plane < to.planes; ++plane) {
        u16 rounded = to_bf16(x);
        float value = from_bf16(rounded);
        at[plane * to.plane] = rounded;
        x -= value;
        kept += value;
    }
#pragma unroll
    for (int distance = 8; distance; distance >>= 1) kept += __shfl_xor_sync(ALL_LANES, kept, distance);
    if (column % 16 == 0) to.sums[(long long)token * (to.stride / 16) + column / 16] = kept;
}
