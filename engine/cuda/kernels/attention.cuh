// Attention over paged keys and values, causal, with or without a sliding window.
//
// One arithmetic for prefill and decode. Keys are cut into splits of 256 at fixed absolute positions. Inside a split, tiles
// of 32 positions follow each other by online softmax (Milakov and Gimelshein 2018; Dao et al. 2022) in f32; splits are merged in order.
// Prefill walks through the splits in a row, decode gives each to a warp and merges afterwards: the same operations on the
// same numbers, and what a token does not see changes no bit. So the bits depend neither on batch nor on chunks.
//
// Rows of the mma are pairs of a token and a query head of the kv head's group, 16 together, so that grouped queries share each key
// that is read. Scores and weights are bf16 products summed in f32; weights are rounded before they are summed.
//
// Decode: bound by memory: 4 * head_dim bytes (2 in fp8) per position and kv head, once; 64 * head_dim operations per position
// of the tensor cores, of which 16 / rows are of use. Partial results: 4 * head_dim bytes per row and 256 positions.
// Prefill: bound by the tensor cores: 4 * head_dim operations per row and position; 64 rows share what is read.
#pragma once
#include "activations.cuh"
#include "kv.cuh"

struct Span {
    int row;      // of its first token in the batch
    int tokens;
    int start;    // position of the first token
    int blocks;   // where its block table begins
};
struct Item {
    int span;     // negative: padding
    int row;      // first of 16 * WARPS rows, counted in the span
};
struct AttendArgs {
    const u16* queries;   // tokens x heads x head_dim
    const int* blocks;
    const Span* spans;
    const Item* items;
    float* partial;       // null: walk through the splits. Else items x kv heads x splits x kept_rows x head_dim
    float* marks;         // the same without head_dim: (largest score, sum of weights)
    Activations to;
    KvPool pool;
    int heads;
    int splits;           // of a grid by splits
    int kept_rows;        // of 16, the most that an item has
    int window;           // latest tokens that a token sees, itself included; 0 for all
    float scale;          // of scores, times log2(e)
};

constexpr int SPLIT = 256, TILE = 32;

// Numbers of a page as B fragments, by index of 32 lanes' shares.
struct Wide {
    static constexpr int BYTES = 2;
    static __device__ __forceinline__ Quad load(const u8* base, int share) { return load16(base + share * 16); }
};
struct Fp8 {
    static constexpr int BYTES = 1;
    static __device__ __forceinline__ Quad load(const u8* base, int share) {
        const Pair bytes = load8(base + share * 8);
        return {fp8x2_to_bf16x2(bytes.x), fp8x2_to_bf16x2(bytes.x >> 16), fp8x2_to_bf16x2(bytes.y), fp8x2_to_bf16x2(bytes.y >> 16)};
    }
};

// What the rows of an item see: positions [from, to).
struct Seen {
    int from, to;
    __device__ __forceinline__ int first_split() const { return from / SPLIT; }
    __device__ __forceinline__ int splits() const { return (to - 1) / SPLIT - from / SPLIT + 1; }
};
__device__ __forceinline__ Seen seen_by(const AttendArgs& args, const Span& span, int row, int rows) {
    const int group = args.heads / args.pool.heads, last = smaller(row + rows, span.tokens * group) - 1;
    const int from = args.window ? larger(0, span.start + row / group + 1 - args.window) : 0;
    return {from, span.start + last / group + 1};
}

// How two running softmaxes become one: factors of both.
struct Merge {
    float m, a, b;
    __device__ __forceinline__ Merge(float m0, float m1) {
        m = fmaxf(m0, m1);
        const float least = m == minus_infinity() ? 0.0f : m;
        a = exp2f(m0 - least), b = exp2f(m1 - least);
    }
    __device__ __forceinline__ float of(float x, float y) const { return fmaf(x, a, times(y, b)); }
};

// State of a warp's 16 rows; a lane has rows g and g + 8.
template <int HD>
struct Running {
    float o[HD / 8][4], m[2], l[2];
    __device__ __forceinline__ void clear() {
        m[0] = m[1] = minus_infinity(), l[0] = l[1] = 0.0f;
#pragma unroll
        for (int n = 0; n < HD / 8; ++n) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0.0f;
    }
};

// One tile: scores, online softmax, values. `pages`: two pages. `at`: the tile's first position; `see`: of either row, the
// first and the last position that it sees. `q` gives the A operand of 32 numbers of the head.
template <int HD, class KV, class Queries>
__device__ __forceinline__ void attend_tile(const u8* pages, int lane, int at, const int (&see)[2][2], float scale, const Queries& q,
                                            Running<HD>& run) {
    constexpr int HALF = PAGE * HD * KV::BYTES;
    float s[4][4] = {};
#pragma unroll
    for (int block = 0; block < HD / 32; ++block) {
        u32 a[2][4];
        q.load(block, a);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const Quad k = KV::load(pages + j / 2 * 2 * HALF, (block * 2 + j % 2) * 32 + lane);
            mma_bf16_16816(s[j], a[0], k.x, k.y);
            mma_bf16_16816(s[j], a[1], k.z, k.w);
        }
    }
    u32 weights[2][4];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        float high = minus_infinity();
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int position = at + j / 2 * PAGE + lane % 4 * 4 + j % 2 * 2 + i;
                float& x = s[j][2 * row + i];
                x = position >= see[row][0] && position <= see[row][1] ? times(x, scale) : minus_infinity();
                high = fmaxf(high, x);
            }
        high = fmaxf(high, __shfl_xor_sync(ALL_LANES, high, 1));
        high = fmaxf(high, __shfl_xor_sync(ALL_LANES, high, 2));
        const float m = fmaxf(run.m[row], high), least = m == minus_infinity() ? 0.0f : m;
        const float before = exp2f(run.m[row] - least);
        run.m[row] = m;
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const u32 pair = to_bf16x2(exp2f(s[j][2 * row] - least), exp2f(s[j][2 * row + 1] - least));
            weights[j / 2][row + 2 * (j % 2)] = pair;
            sum += low_bf16(pair) + high_bf16(pair);
        }
        run.l[row] = fmaf(run.l[row], before, sum);
#pragma unroll
        for (int n = 0; n < HD / 8; ++n) {
            float* o = &run.o[n][2 * row];
            o[0] = times(o[0], before), o[1] = times(o[1], before);
        }
    }
#pragma unroll
    for (int n = 0; n < HD / 16; ++n)
#pragma unroll
        for (int page = 0; page < 2; ++page) {
            const Quad v = KV::load(pages + (page * 2 + 1) * HALF, n * 32 + lane);
            mma_bf16_16816(run.o[2 * n], weights[page], v.x, v.y);
            mma_bf16_16816(run.o[2 * n + 1], weights[page], v.z, v.w);
        }
}

// The A operand of queries: in registers, or read each time where a head is too wide for that.
template <int HD>
struct QueryRows {
    static constexpr bool KEPT = HD <= 128;
    const u16* row0;
    const u16* row1;  // of rows g and g + 8, at the lane's 4 numbers
    u32 kept[KEPT ? HD / 16 : 1][4];

    __device__ __forceinline__ void read(int step, u32 (&a)[4]) const {
        const Pair x = load8(row0 + step * 16), y = load8(row1 + step * 16);
        a[0] = x.x, a[1] = y.x, a[2] = x.y, a[3] = y.y;
    }
    __device__ __forceinline__ QueryRows(const u16* row0, const u16* row1) : row0(row0), row1(row1) {
#pragma unroll
        for (int step = 0; step < (KEPT ? HD / 16 : 0); ++step) read(step, kept[step]);
    }
    __device__ __forceinline__ void load(int block, u32 (&a)[2][4]) const {
#pragma unroll
        for (int step = 0; step < 2; ++step) {
            if constexpr (KEPT) {
#pragma unroll
                for (int i = 0; i < 4; ++i) a[step][i] = kept[block * 2 + step][i];
            } else {
                read(block * 2 + step, a[step]);
            }
        }
    }
};

// A tile's two pages to shared memory, by the whole block. Pages that nobody sees may be gone: the first of the pool stands in, whose
// numbers are finite and have no weight.
template <int HD, class KV, int WARPS>
__device__ __forceinline__ void copy_tile(u8* to, const AttendArgs& args, const Span& span, const Seen& seen, int tile, int head) {
    constexpr int BYTES = 2 * PAGE * HD * KV::BYTES;
    const int block_tokens = args.pool.pages_per_block * PAGE;
#pragma unroll
    for (int page = 0; page < 2; ++page) {
        const int at = tile * TILE + page * PAGE;
        const bool visible = at + PAGE > seen.from && at < seen.to;
        const int block = visible ? args.blocks[span.blocks + at / block_tokens] : 0;
        const u8* from = page_at(args.pool, block, visible ? at % block_tokens : 0, head);
        for (int byte = threadIdx.x * 16; byte < BYTES; byte += WARPS * 512) cp_async16(to + page * BYTES + byte, from + byte);
    }
}

// Writes a split's result for the merge to come.
template <int HD>
__device__ __forceinline__ void keep_partial(const AttendArgs& args, const Running<HD>& run, int item, int head, int split, int rows) {
    const int lane = threadIdx.x % 32;
    const long long base = (((long long)item * args.pool.heads + head) * args.splits + split) * args.kept_rows;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = lane / 4 + half * 8;
        if (row >= rows) continue;
        float* at = args.partial + (base + row) * HD + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < HD / 8; ++n) at[n * 8] = run.o[n][2 * half], at[n * 8 + 1] = run.o[n][2 * half + 1];
        if (lane % 4 == 0) args.marks[(base + row) * 2] = run.m[half], args.marks[(base + row) * 2 + 1] = run.l[half];
    }
}

// Tiles on the way and under way: two where they are so large that three would not fit into the shared memory of smaller devices.
template <int HD, class KV>
struct Stages {
    static constexpr int COUNT = HD * KV::BYTES >= 512 ? 2 : 3;
};

// Grid: (kv heads, items, splits or 1), 32 * WARPS threads. Shared memory: stages of 4 * 16 * HD numbers, and WARPS * 16 * HD floats.
template <int HD, class KV, int WARPS>
__device__ __forceinline__ void attend(const AttendArgs& args) {
    DYNAMIC_SHARED(shared);
    constexpr int STAGES = Stages<HD, KV>::COUNT, STAGE = 4 * PAGE * HD * KV::BYTES;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.x;
    const Item item = args.items[blockIdx.y];
    if (item.span < 0) return;
    const Span span = args.spans[item.span];
    const int group = args.heads / args.pool.heads, rows = span.tokens * group;
    const Seen seen = seen_by(args, span, item.row, WARPS * 16);
    if ((int)blockIdx.z >= seen.splits()) return;
    // Tiles to walk through: all, or those of one split.
    const int split = seen.first_split() + blockIdx.z;
    const int from = args.partial ? larger(split * SPLIT, seen.from) : seen.from;
    const int to = args.partial ? smaller((split + 1) * SPLIT, seen.to) : seen.to;
    const int first_tile = from / TILE, end_tile = (to + TILE - 1) / TILE;

    const int first_row = item.row + warp * 16;
    int see[2][2], query[2];
    for (int half = 0; half < 2; ++half) {
        const int row = smaller(first_row + lane / 4 + half * 8, rows - 1);
        see[half][1] = span.start + row / group;
        see[half][0] = args.window ? see[half][1] + 1 - args.window : 0;
        query[half] = ((span.row + row / group) * args.heads + head * group + row % group) * HD + lane % 4 * 4;
    }
    const QueryRows<HD> queries(args.queries + query[0], args.queries + query[1]);
    Running<HD> run;
    run.clear();
    float* total = (float*)(shared + STAGES * STAGE) + warp * 16 * HD;
    float total_m[2] = {minus_infinity(), minus_infinity()}, total_l[2] = {};
    auto mine = [&](int n, int i) -> float& { return total[(lane / 4 + i / 2 * 8) * HD + n * 8 + lane % 4 * 2 + i % 2]; };
#pragma unroll
    for (int n = 0; n < HD / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) mine(n, i) = 0.0f;

    for (int stage = 0; stage < STAGES - 1; ++stage) {
        if (first_tile + stage < end_tile) copy_tile<HD, KV, WARPS>(shared + stage * STAGE, args, span, seen, first_tile + stage, head);
        cp_async_commit();
    }
    for (int tile = first_tile; tile < end_tile; ++tile) {
        const int index = tile - first_tile;
        cp_async_wait<STAGES - 2>();
        __syncthreads();
        const int next = tile + STAGES - 1;
        if (next < end_tile)
            copy_tile<HD, KV, WARPS>(shared + (index + STAGES - 1) % STAGES * STAGE, args, span, seen, next, head);
        cp_async_commit();
        attend_tile<HD, KV>(shared + index % STAGES * STAGE, lane, tile * TILE, see, args.scale, queries, run);
        if ((tile + 1) % (SPLIT / TILE) && tile + 1 < end_tile) continue;
        // The split ends.
        for (int half = 0; half < 2; ++half) {
            run.l[half] += __shfl_xor_sync(ALL_LANES, run.l[half], 1);
            run.l[half] += __shfl_xor_sync(ALL_LANES, run.l[half], 2);
        }
        if (args.partial) {
            keep_partial<HD>(args, run, blockIdx.y, head, blockIdx.z, rows - item.row);
            return;
        }
        for (int half = 0; half < 2; ++half) {
            const Merge merge(total_m[half], run.m[half]);
            total_m[half] = merge.m, total_l[half] = merge.of(total_l[half], run.l[half]);
#pragma unroll
            for (int n = 0; n < HD / 8; ++n)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; ++i) mine(n, i) = merge.of(mine(n, i), run.o[n][i]);
        }
        run.clear();
    }
    __syncwarp();
    for (int row = 0; row < 16; ++row) {
        const float l = __shfl_sync(ALL_LANES, total_l[row / 8], row % 8 * 4);
        const int at = first_row + row;
        if (at >= rows) continue;
        for (int d = lane; d < HD; d += 32)
            store_activation(args.to, span.row + at / group, (head * group + at % group) * HD + d, total[row * HD + d] / l);
    }
}

// Grid: (kv heads, items), 256 threads: a warp has 32 numbers of a row at a time.
__device__ __forceinline__ void merge(const AttendArgs& args) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.x, dim = args.pool.head_dim;
    const Item item = args.items[blockIdx.y];
    if (item.span < 0) return;
    const Span span = args.spans[item.span];
    const int group = args.heads / args.pool.heads, rows = smaller(16, span.tokens * group - item.row), pieces = dim / 32;
    const int splits = seen_by(args, span, item.row, 16).splits();
    const long long first = ((long long)blockIdx.y * args.pool.heads + head) * args.splits;
    for (int work = warp; work < rows * pieces; work += 8) {
        const int row = work / pieces, d = work % pieces * 32 + lane, at = item.row + row;
        float m = minus_infinity(), l = 0.0f, o = 0.0f;
        for (int split = 0; split < splits; ++split) {
            const long long here = (first + split) * args.kept_rows + row;
            const Merge merge(m, args.marks[here * 2]);
            m = merge.m, l = merge.of(l, args.marks[here * 2 + 1]), o = merge.of(o, args.partial[here * dim + d]);
        }
        store_activation(args.to, span.row + at / group, (head * group + at % group) * dim + d, o / l);
    }
}
