// Choosing a token from a row of logits, as engine/runtime/src/sampling does: the draw at a position is a function of (seed, position) and
// of the logits. Temperature, top-k, top-p, min-p, draw; candidates in order of (logit descending, id ascending).
//
// Nothing is sorted: each cut, and the draw itself, is the place in that order at which a running sum (of tokens, or of
// weights) reaches a target, found by its 32-bit key, 8 bits at a time, with a histogram in shared memory. Weights are the CPU's to the bit;
// their sums are whole multiples of 2^-40, which add to the same whatever the order. The CPU adds in f32 and f64: a draw differs
// only where it falls within some 1e-7 of the border between two tokens.
//
// Bound by memory, on one multiprocessor a row: 4 * vocab bytes are read once for greedy choice, and 6 to 16 times (from the
// second-level cache) for a draw; some 20 operations a number each time. One block of 512 threads a row.
#include "dev.cuh"

struct Choice {
    u64 seed, position;
    float scale;   // 1 / temperature; 0 takes the likeliest
    float top_p, min_p;
    u32 top_k;     // 0: all
};
struct ChooseArgs {
    const float* logits;     // rows x vocab
    const Choice* choices;
    int* tokens;             // -1 where a logit is not finite
    int vocab;
};

constexpr int THREADS = 512, BINS = 256;
constexpr float ONE = 1099511627776.0f;  // 2^40

// e^x as the CPU's kernels have it (engine/runtime/src/kernels/cpu/wide.rs).
__device__ __forceinline__ float exp_of(float x) {
    x = fmaxf(-88.0f, fminf(88.0f, x));
    const float n = rintf(x * LOG2_E);
    float r = fmaf(n, -0.6933594f, x);
    r = fmaf(n, 2.1219444e-4f, r);
    float p = 1.9875691e-4f;
    p = fmaf(p, r, 1.3981999e-3f);
    p = fmaf(p, r, 8.333452e-3f);
    p = fmaf(p, r, 4.1665796e-2f);
    p = fmaf(p, r, 1.6666665e-1f);
    p = fmaf(p, r, 0.5f);
    const float square = r * r, one = r + 1.0f;
    p = fmaf(p, square, one);
    return p * from_bits((u32)((int)n + 127) << 23);
}

// SplitMix64's finaliser (Steele, Lea and Flood 2014) over both, as a number in [0, 1).
__device__ __forceinline__ u64 mix(u64 z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}
__device__ __forceinline__ double uniform(u64 seed, u64 position) {
    const u64 golden = 0x9e3779b97f4a7c15ull;
    return (double)(mix(mix(seed + golden) + golden * (position + 1)) >> 11) / 9007199254740992.0;
}

// Larger numbers have larger keys. Both zeros have one.
__device__ __forceinline__ u32 key_of(float logit) {
    const u32 bits = to_bits(logit + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// A place in the order, by key.
struct Place {
    u32 key;
    u64 before;  // what the keys above it sum up to
};

struct Row {
    const float* logits;
    int vocab;
    float high, scale, floor;  // weights below the floor are no candidates
    u32 least;                 // nor are keys below this
    bool by_id;                // the order is that of ids

    __device__ __forceinline__ u64 weight(int i) const {
        const float w = exp_of((logits[i] - high) * scale);
        return w >= floor ? (u64)(w * ONE) : 0;
    }
    __device__ __forceinline__ u32 key(int i) const { return by_id ? ~(u32)i : key_of(logits[i]); }
};

struct Scratch {
    u64 sums[BINS];
    u64 before;
    int bin;
    float highs[THREADS / 32];
    int bads[THREADS / 32];
};

// Where the running sum reaches `target`, which is at most the sum of all and at least 1. All threads call it.
template <bool COUNT>
__device__ Place reach(const Row& row, u64 target, Scratch& scratch) {
    u32 prefix = 0;
    u64 before = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        __syncthreads();
        for (int bin = threadIdx.x; bin < BINS; bin += THREADS) scratch.sums[bin] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < row.vocab; i += THREADS) {
            const u32 key = row.key(i);
            if (key < row.least || (shift < 24 && (key ^ prefix) >> (shift + 8))) continue;
            atomicAdd(&scratch.sums[key >> shift & (BINS - 1)], COUNT ? 1ull : row.weight(i));
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            u64 sum = before;
            int bin = BINS - 1;
            while (bin > 0 && sum + scratch.sums[bin] < target) sum += scratch.sums[bin--];
            scratch.before = sum, scratch.bin = bin;
        }
        __syncthreads();
        before = scratch.before, prefix |= (u32)scratch.bin << shift;
    }
    return {prefix, before};
}

// Sum of all weights of the row's candidates.
__device__ u64 total_of(const Row& row, Scratch& scratch) {
    __syncthreads();
    if (threadIdx.x == 0) scratch.before = 0;
    __syncthreads();
    u64 sum = 0;
    for (int i = threadIdx.x; i < row.vocab; i += THREADS)
        if (row.key(i) >= row.least) sum += row.weight(i);
    atomicAdd(&scratch.before, sum);
    __syncthreads();
    return scratch.before;
}

// Weight of a token with this key, whichever.
__device__ __forceinline__ u64 weight_of_key(const Row& row, u32 key) {
    const float logit = from_bits(key & 0x80000000u ? key & 0x7fffffffu : ~key);
    const float w = exp_of((logit - row.high) * row.scale);
    return w >= row.floor ? (u64)(w * ONE) : 0;
}

// The id of number `rank` (from 0) of those with a key, by ascending id. All threads call it.
__device__ int id_of(const Row& row, u32 key, u64 rank, Scratch& scratch) {
    if (row.by_id) return (int)~key;
    // Warp 0 walks through the row, 32 ids at a time.
    if (threadIdx.x < 32) {
        const int lane = threadIdx.x;
        u64 seen = 0;
        int found = -1;
        for (int first = 0; first < row.vocab && found < 0; first += 32) {
            const int i = first + lane;
            u32 same = __ballot_sync(ALL_LANES, i < row.vocab && key_of(row.logits[i < row.vocab ? i : 0]) == key);
            while (same && found < 0) {
                int lowest = 0;
                while (!(same >> lowest & 1)) ++lowest;
                if (seen++ == rank) found = first + lowest;
                same &= same - 1;
            }
        }
        if (lane == 0) scratch.bin = found;
    }
    __syncthreads();
    return scratch.bin;
}

// Largest logit, or whether any is not finite.
__device__ float highest(const Row& row, bool& bad, Scratch& scratch) {
    float high = minus_infinity();
    int wrong = 0;
    for (int i = threadIdx.x; i < row.vocab; i += THREADS) {
        const float x = row.logits[i];
        wrong |= (to_bits(x) & 0x7f800000u) == 0x7f800000u;
        high = fmaxf(high, x);
    }
#pragma unroll
    for (int distance = 16; distance; distance >>= 1) {
        high = fmaxf(high, __shfl_xor_sync(ALL_LANES, high, distance));
        wrong |= __shfl_xor_sync(ALL_LANES, wrong, distance);
    }
    if (threadIdx.x % 32 == 0) scratch.highs[threadIdx.x / 32] = high, scratch.bads[threadIdx.x / 32] = wrong;
    __syncthreads();
    for (int warp = 0; warp < THREADS / 32; ++warp) {
        high = fmaxf(high, scratch.highs[warp]);
        wrong |= scratch.bads[warp];
    }
    bad = wrong;
    return high;
}

// Draws one of the candidates that the cuts leave. All threads call it.
__device__ int draw_token(Row& row, const Choice& choice, Scratch& scratch) {
    row.by_id = choice.top_k == 0 && choice.top_p == 1.0f && choice.min_p == 0.0f;
    u64 total = 0, kept = ~0ull;
    // The sum of what a cut leaves: keys above it, and some that equal it.
    if (choice.top_k > 0 && choice.top_k < (u32)row.vocab) {
        const Place cut = reach<true>(row, choice.top_k, scratch);
        const u64 ties = choice.top_k - cut.before, each = weight_of_key(row, cut.key);
        row.least = cut.key + 1;
        const u64 above = cut.key == ~0u ? 0 : total_of(row, scratch);
        row.least = cut.key;
        kept = above + ties * each;
    }
    total = total_of(row, scratch);
    kept = kept < total ? kept : total;
    if (choice.top_p < 1.0f) {
        const double wanted = (double)choice.top_p * (double)kept;
        u64 target = (u64)wanted;
        target += (double)target < wanted;
        target = target < 1 ? 1 : target;
        const Place cut = reach<false>(row, target, scratch);
        const u64 each = weight_of_key(row, cut.key), missing = target - cut.before;
        const u64 reached = cut.before + (each ? (missing + each - 1) / each * each : 0);
        kept = reached < kept ? reached : kept;
        row.least = cut.key;
    }
    if (choice.min_p > 0.0f) {
        // Weights below the floor come last: what is left of the sum is what the others have.
        row.floor = choice.min_p;
        const u64 heavy = total_of(row, scratch);
        kept = heavy < kept ? heavy : kept;
    }
    const u64 target = (u64)(uniform(choice.seed, choice.position) * (double)kept) + 1;
    const Place place = reach<false>(row, target < kept ? target : kept, scratch);
    if (row.by_id) return id_of(row, place.key, 0, scratch);
    const u64 each = weight_of_key(row, place.key), missing = (target < kept ? target : kept) - place.before;
    return id_of(row, place.key, each ? (missing - 1) / each : 0, scratch);
}

// Grid: rows, 512 threads.
extern "C" __global__ void __launch_bounds__(512, 1) choose_tokens(ChooseArgs args) {
    __shared__ Scratch scratch;
    const Choice choice = args.choices[blockIdx.x];
    Row row = {args.logits + (long long)blockIdx.x * args.vocab, args.vocab, 0.0f, choice.scale, 0.0f, 0, false};
    bool bad;
    row.high = highest(row, bad, scratch);
    __syncthreads();
    int token = -1;
    if (!bad && (choice.scale == 0.0f || choice.top_k == 1))
        token = id_of(row, key_of(row.high), 0, scratch);
    else if (!bad)
        token = draw_token(row, choice, scratch);
    if (threadIdx.x == 0) args.tokens[blockIdx.x] = token;
}
