// Products of weights and activations: out[token][row] = sum over columns of weight[row][column] * activation[token][column].
//
// One arithmetic for every number of tokens, fixed by the weight's shape alone: columns are cut into 8 segments of
// whole units; inside a segment an mma sums 16 columns after the other, each group of columns that shares a scale being
// summed apart and then added, scaled, in f32; segments are added in order. The kernel for few tokens gives a segment to
// each of 8 warps, the kernel for many walks through them in a row: the bits agree, and so a token's results depend
// neither on its neighbours nor on how its prefill was cut.
//
// Few tokens (`few`, 8 or 32 at a time): bound by memory. Reads each weight byte once (B bits per weight: rows * columns * B / 8
// bytes) in 16-byte pieces that run several units ahead; activations come from the caches. 2 * 8 * rows * columns operations
// of the tensor cores per 8 tokens, idle but for that.
// Many tokens (`many`, 64 at a time, 128 rows a block): bound by the tensor cores: 2 * tokens * rows * columns operations;
// weights are read tokens / 64 times, mostly from the second-level cache, and unpacked once per 64 tokens; activations
// pass through shared memory once per 128 rows.
#pragma once
#include "activations.cuh"
#include "formats.cuh"

struct MatmulArgs {
    const u8* weights;
    const u16* numbers;      // activations, see activations.cuh
    const float* sums;
    float* out;              // tokens x out_stride
    const float* bias;       // of rows, or null
    long long plane;
    int rows, cols;          // cols as packed: whole units
    int tokens;
    int stride, planes;      // of activations
    int out_stride;
    int accumulate;          // whether to add to what `out` holds
};

constexpr int SEGMENTS = 8;

__device__ __forceinline__ int segment_start(int segment, int units) { return units * segment / SEGMENTS; }

__device__ __forceinline__ void store_product(const MatmulArgs& args, int token, int row, float x) {
    float* at = args.out + (long long)token * args.out_stride + row;
    if (args.bias) x += args.bias[row];
    *at = args.accumulate ? *at + x : x;
}

template <int BYTES>
__device__ __forceinline__ void copy_unit(u8* to, const u8* from, int lane) {
#pragma unroll
    for (int at = 0; at < BYTES; at += 512)
        if (at + lane * 16 < BYTES) cp_async16(to + at + lane * 16, from + at + lane * 16);
}

// Adds the products of 32 columns to those of 8 * NT tokens. `source.numbers(plane, n)` gives a lane its 16 bytes of
// activations of token tile n, `source.sum(token, group16)` a sum.
template <class F, int NT, class Source>
__device__ __forceinline__ void multiply_block(const u8* unit, int block, int lane, const Source& source, int planes,
                                               float (&acc)[NT][4]) {
    Fragments a[F::TERMS];
    F::fragments(unit, block, lane, a);
    constexpr int GROUPS = 32 / F::GROUP;
    Scales scales[GROUPS];
#pragma unroll
    for (int group = 0; group < GROUPS; ++group) scales[group] = F::scales(unit, block * GROUPS + group, lane);
#pragma unroll
    for (int n = 0; n < NT; ++n) {
        float part[GROUPS][4] = {};
        for (int plane = 0; plane < planes; ++plane) {
            Quad b = source.numbers(plane, n);
#pragma unroll
            for (int term = 0; term < F::TERMS; ++term)
#pragma unroll
                for (int step = 0; step < 2; ++step)
                    mma_bf16_16816(part[step % GROUPS], a[term].a[step], step ? b.z : b.x, step ? b.w : b.y);
        }
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
            const Scales& s = scales[group];
#pragma unroll
            for (int i = 0; i < 4; ++i) acc[n][i] = fmaf(i < 2 ? s.d0 : s.d1, part[group][i], acc[n][i]);
            if (F::MINIMUM) {
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    acc[n][i] = fmaf(i < 2 ? s.m0 : s.m1, source.template sum<F::GROUP>(n, i & 1, group), acc[n][i]);
            }
        }
    }
}

// Sum of a group of a block of 32 columns, from the sums of its halves.
template <int GROUP>
__device__ __forceinline__ float group_sum(const void* halves, int group) {
    const Pair pair = load8(halves);
    return GROUP == 32 ? from_bits(pair.x) + from_bits(pair.y) : from_bits(group ? pair.y : pair.x);
}

// Activations as they lie in memory. Offsets fit 32 bits: a step has at most 8,192 tokens.
struct FromMemory {
    const u16* row;      // of token 0, at the lane's 16 bytes of the block
    const float* sums;   // of token 0, of the block
    long long plane;
    int stride, lane, first, last;  // tokens

    __device__ __forceinline__ Quad numbers(int p, int n) const {
        const int token = smaller(first + n * 8 + lane / 4, last);
        return load16(row + p * plane + token * stride);
    }
    template <int GROUP>
    __device__ __forceinline__ float sum(int n, int odd, int group) const {
        const int token = smaller(first + n * 8 + lane % 4 * 2 + odd, last);
        return group_sum<GROUP>(sums + token * (stride / 16), group);
    }
};

template <class F>
struct FewStages {
    static constexpr int BY_SIZE = 6144 / F::BYTES;
    static constexpr int COUNT = BY_SIZE < 2 ? 2 : BY_SIZE > 8 ? 8 : BY_SIZE;
};

// Grid: (tiles of 16 rows, groups of 8 * NT tokens), 256 threads. Shared memory: 8 warps * stages * unit, and at least
// 8 warps * NT * 512 bytes.
template <class F, int NT>
__device__ __forceinline__ void few(const MatmulArgs& args) {
    DYNAMIC_SHARED(shared);
    constexpr int STAGES = FewStages<F>::COUNT;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int units = args.cols / F::COLS;
    const int first = segment_start(warp, units), count = segment_start(warp + 1, units) - first;
    const u8* stream = args.weights + ((long long)blockIdx.x * units + first) * F::BYTES;
    u8* ring = shared + warp * STAGES * F::BYTES;
    for (int stage = 0; stage < STAGES - 1; ++stage) {
        if (stage < count) copy_unit<F::BYTES>(ring + stage * F::BYTES, stream + (long long)stage * F::BYTES, lane);
        cp_async_commit();
    }
    const FromMemory source = {args.numbers + lane % 4 * 8, args.sums, args.plane, args.stride, lane,
                               (int)blockIdx.y * 8 * NT, args.tokens - 1};
    float acc[NT][4] = {};
    for (int unit = 0; unit < count; ++unit) {
        cp_async_wait<STAGES - 2>();
        __syncwarp();
        const int next = unit + STAGES - 1;
        if (next < count) copy_unit<F::BYTES>(ring + next % STAGES * F::BYTES, stream + (long long)next * F::BYTES, lane);
        cp_async_commit();
        const u8* here = ring + unit % STAGES * F::BYTES;
#pragma unroll 2
        for (int block = 0; block < F::COLS / 32; ++block) {
            const int column = (first + unit) * F::COLS + block * 32;
            FromMemory at = source;
            at.row += column, at.sums += column / 16;
            multiply_block<F, NT>(here, block, lane, at, args.planes, acc);
        }
    }
    // Segments meet in shared memory, where units no longer are: [segment][token][row].
    cp_async_wait<0>();
    __syncthreads();
    float* parts = (float*)shared;
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
            parts[((warp * NT + n) * 8 + lane % 4 * 2 + (i & 1)) * 16 + lane / 4 + i / 2 * 8] = acc[n][i];
    __syncthreads();
    for (int at = threadIdx.x; at < NT * 8 * 16; at += 256) {
        const int token = source.first + at / 16, row = blockIdx.x * 16 + at % 16;
        float total = 0.0f;
        for (int segment = 0; segment < SEGMENTS; ++segment) total += parts[segment * NT * 128 + at];
        if (token < args.tokens && row < args.rows) store_product(args, token, row, total);
    }
}

// Activations of 64 tokens and 64 columns in shared memory: [plane][block][token] 64 bytes, then the sums, [token] 16 bytes.
struct FromShared {
    const u8* tile;
    const u8* sums;
    int lane, block;

    __device__ __forceinline__ Quad numbers(int p, int n) const {
        return load16(tile + ((p * 2 + block) * 64 + n * 8 + lane / 4) * 64 + lane % 4 * 16);
    }
    template <int GROUP>
    __device__ __forceinline__ float sum(int n, int odd, int group) const {
        return group_sum<GROUP>(sums + (n * 8 + lane % 4 * 2 + odd) * 16 + block * 8, group);
    }
};

// Activations of one tile of 64 columns to shared memory, by the whole block.
template <bool SUMS>
__device__ __forceinline__ void copy_activations(u8* to, const MatmulArgs& args, int first, int column) {
    const int last = args.tokens - 1;
    for (int at = threadIdx.x; at < args.planes * 512; at += 256) {
        const int plane = at / 512, token = at / 8 % 64, piece = at % 8;
        const u16* from = args.numbers + plane * args.plane + smaller(first + token, last) * args.stride + column + piece * 8;
        cp_async16(to + ((plane * 2 + piece / 4) * 64 + token) * 64 + piece % 4 * 16, from);
    }
    if (SUMS && threadIdx.x < 64) {
        const int token = smaller(first + (int)threadIdx.x, last);
        cp_async16(to + args.planes * 8192 + threadIdx.x * 16, args.sums + token * (args.stride / 16) + column / 16);
    }
}

// Grid: (128 rows, 64 tokens), 256 threads: a warp has 16 rows. Shared memory: 3 * (8 units + planes * 8,192 + 1,024 bytes).
template <class F>
__device__ __forceinline__ void many(const MatmulArgs& args) {
    DYNAMIC_SHARED(shared);
    constexpr int STAGES = 3, NT = 8;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int units = args.cols / F::COLS, tiles = units * F::TILES, row_tiles = (args.rows + 15) / 16;
    const int row_tile = blockIdx.x * 8 + warp, first_token = blockIdx.y * 64;
    const u8* stream = args.weights + (long long)smaller(row_tile, row_tiles - 1) * units * F::BYTES;
    u8* ring = shared + warp * STAGES * F::BYTES;
    u8* activations = shared + 8 * STAGES * F::BYTES;
    const int numbers_bytes = args.planes * 8192, activation_bytes = numbers_bytes + 1024;
    auto copy = [&](int tile) {
        if (tile < tiles) {
            copy_activations<F::MINIMUM>(activations + tile % STAGES * activation_bytes, args, first_token, tile * 64);
            const int unit = tile / F::TILES;
            if (tile % F::TILES == 0) copy_unit<F::BYTES>(ring + unit % STAGES * F::BYTES, stream + (long long)unit * F::BYTES, lane);
        }
        cp_async_commit();
    };
    copy(0);
    copy(1);
    float total[NT][4] = {};
    int tile = 0;
    for (int segment = 0; segment < SEGMENTS; ++segment) {
        float acc[NT][4] = {};
        for (const int end = segment_start(segment + 1, units) * F::TILES; tile < end; ++tile) {
            cp_async_wait<1>();
            __syncthreads();
            copy(tile + 2);
            const u8* unit = ring + tile / F::TILES % STAGES * F::BYTES;
            for (int block = 0; block < 2; ++block) {
                const u8* here = activations + tile % STAGES * activation_bytes;
                const FromShared source = {here, here + numbers_bytes, lane, block};
                multiply_block<F, NT>(unit, tile % F::TILES * 2 + block, lane, source, args.planes, acc);
            }
        }
#pragma unroll
        for (int n = 0; n < NT; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) total[n][i] += acc[n][i];
    }
    if (row_tile >= row_tiles) return;
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int token = first_token + n * 8 + lane % 4 * 2 + (i & 1), row = row_tile * 16 + lane / 4 + i / 2 * 8;
            if (token < args.tokens && row < args.rows) store_product(args, token, row, total[n][i]);
        }
}
