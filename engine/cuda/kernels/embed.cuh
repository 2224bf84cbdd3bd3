// Decoding single weights from the layout of formats.cuh: what the embedding needs.
#pragma once
#include "formats.cuh"

struct EmbedArgs {
    const u8* weights;
    const int* tokens;
    float* out;          // tokens x width
    int width, cols;     // cols as packed
    float scale;
};

// One number of the tile: the lane that holds it unpacks its fragments.
template <class F>
__device__ __forceinline__ float weight_at(const u8* unit, int row, int column) {
    const int block = column / 32, in_block = column % 32, step = in_block / 16, j = in_block % 4;
    const int lane = row % 8 * 4 + in_block / 4 % 4;
    Fragments parts[F::TERMS];
    F::fragments(unit, block, lane, parts);
    float value = 0.0f;
#pragma unroll
    for (int term = F::TERMS - 1; term >= 0; --term) {
        // Selected without indexing registers by what is known only at run time.
        u32 pair = 0;
#pragma unroll
        for (int s = 0; s < 2; ++s)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (s == step && i == row / 8 + 2 * (j / 2)) pair = parts[term].a[s][i];
        value += j % 2 ? high_bf16(pair) : low_bf16(pair);
    }
    if (!F::SCALED) return value;
    const Scales s = F::scales(unit, column / F::GROUP, lane);
    return row < 8 ? fmaf(s.d0, value, s.m0) : fmaf(s.d1, value, s.m1);
}

// Grid: tokens, 256 threads.
template <class F>
__device__ __forceinline__ void embed(const EmbedArgs& args) {
    const int row = args.tokens[blockIdx.x];
    const u8* tile = args.weights + (long long)(row / 16) * (args.cols / F::COLS) * F::BYTES;
    for (int column = threadIdx.x; column < args.width; column += 256) {
        const u8* unit = tile + (long long)(column / F::COLS) * F::BYTES;
        args.out[(long long)blockIdx.x * args.width + column] =
            weight_at<F>(unit, row % 16, column % F::COLS) * args.scale;
    }
}
