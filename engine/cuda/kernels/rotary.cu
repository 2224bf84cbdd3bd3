// Between the product of queries, keys and values and attention: norms of heads (Qwen3, Gemma 3), rotary embedding (Su et
// al. 2021), queries as bf16, keys and values into their pages.
//
// Bound by memory: 4 bytes read and 2 written for each number of the three; some 30 operations, most of them sine and cosine. One warp
// a head and token.
#include "kv.cuh"

struct RotaryArgs {
    const float* qkv;          // tokens x (heads + 2 kv heads) x head_dim
    u16* queries;              // tokens x heads x head_dim
    const int* positions;
    const int* slots;          // block * tokens of a block + offset; negative: the token is padding and leaves nothing
    const float* frequencies;  // of head_dim / 2 pairs
    const float* q_norm;       // of head_dim, or null
    const float* k_norm;
    KvPool pool;
    int heads;
    int halves;                // pairs (i, i + half), else (2 i, 2 i + 1)
    float position_scale;      // positions are divided by it
    float epsilon;
};

// Padding of a page is multiplied by zero later: whatever stands there must be finite.
__device__ __forceinline__ float kept_finite(float x) {
    if (!(x == x)) return 0.0f;
    return fminf(fmaxf(x, -3.0e38f), 3.0e38f);
}

__device__ __forceinline__ void store_kv(const RotaryArgs& args, u8* page, int place, float x) {
    x = kept_finite(x);
    if (args.pool.fp8)
        page[place] = to_fp8(x);
    else
        ((u16*)page)[place] = to_bf16(x);
}

// Number d of a normed and rotated head.
struct Head {
    const float* x;
    const float* norm;
    float factor, angle_scale;
    const float* frequencies;
    int half, halves;

    __device__ __forceinline__ float normed(int d) const { return norm ? x[d] * factor * norm[d] : x[d]; }
    __device__ __forceinline__ float rotated(int d) const {
        const int pair = halves ? d % half : d / 2;
        const bool first = halves ? d < half : d % 2 == 0;
        const int other = halves ? (first ? d + half : d - half) : d ^ 1;
        const float angle = angle_scale * frequencies[pair];
        const float c = cosf(angle), s = sinf(angle);
        return first ? fmaf(normed(d), c, -(normed(other) * s)) : fmaf(normed(d), c, normed(other) * s);
    }
};

// Grid: (heads + 2 kv heads, tokens), 32 threads.
extern "C" __global__ void __launch_bounds__(32, 1) rotate_and_keep(RotaryArgs args) {
    const int index = blockIdx.x, token = blockIdx.y, dim = args.pool.head_dim, kv_heads = args.pool.heads;
    const float* x = args.qkv + ((long long)token * (args.heads + 2 * kv_heads) + index) * dim;
    const int slot = args.slots[token], block_tokens = args.pool.pages_per_block * PAGE;
    const bool is_query = index < args.heads, is_value = index >= args.heads + kv_heads;
    const int kv_head = is_value ? index - args.heads - kv_heads : index - args.heads;
    const int offset = slot % block_tokens, place = offset % PAGE;
    if (!is_query && slot < 0) return;
    u8* page = is_query ? nullptr : page_at(args.pool, slot / block_tokens, offset, kv_head);
    if (is_value) {
        page += page_bytes(args.pool) / 2;
        for (int d = threadIdx.x; d < dim; d += 32) store_kv(args, page, value_place(place, d), x[d]);
        return;
    }
    const float* norm = is_query ? args.q_norm : args.k_norm;
    float squares = 0.0f;
    for (int d = threadIdx.x; d < dim; d += 32) squares = fmaf(x[d], x[d], squares);
    const float factor = 1.0f / sqrtf(warp_sum(squares) / (float)dim + args.epsilon);
    const Head head = {x, norm, factor, (float)args.positions[token] / args.position_scale, args.frequencies, dim / 2, args.halves};
    for (int d = threadIdx.x; d < dim; d += 32) {
        const float y = head.rotated(d);
        if (is_query)
            args.queries[((long long)token * args.heads + index) * dim + d] = to_bf16(y);
        else
            store_kv(args, page, key_place(place, d), y);
    }
}

struct CopyArgs {
    u8* pages;               // of all layers
    const int* pairs;        // from, to
    long long layer_bytes;   // from one layer to the next
    long long block_bytes;   // of one layer
};

// Copies whole KV blocks in every layer. Bound by memory: each byte is read and written once. Grid: (pairs, layers), 256 threads.
extern "C" __global__ void __launch_bounds__(256, 1) copy_blocks(CopyArgs args) {
    u8* layer = args.pages + blockIdx.y * args.layer_bytes;
    const Quad* from = (const Quad*)(layer + args.pairs[2 * blockIdx.x] * args.block_bytes);
    Quad* to = (Quad*)(layer + args.pairs[2 * blockIdx.x + 1] * args.block_bytes);
    for (long long at = threadIdx.x; at < args.block_bytes / 16; at += 256) to[at] = from[at];
}
