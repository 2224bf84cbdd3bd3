// How keys and values lie: pages of 16 tokens of one layer and head, keys then values, in the order in which lanes want
// them as the B operand of an mma, so that attention reads both in whole pieces and transposes nothing.
//
// Keys: token p, number d of the head: [d / 32][p / 2 % 2][p / 4 * 2 + p % 2][d / 4 % 4][d / 16 % 2][d % 4].
// Values: [d / 16][d % 8][p / 4][d / 8 % 2][p % 4].
#pragma once
#include "dev.cuh"

constexpr int PAGE = 16;

__device__ __forceinline__ int key_place(int p, int d) {
    return (((d / 32 * 2 + p / 2 % 2) * 8 + p / 4 * 2 + p % 2) * 4 + d / 4 % 4) * 8 + d / 16 % 2 * 4 + d % 4;
}
__device__ __forceinline__ int value_place(int p, int d) {
    return ((d / 16 * 8 + d % 8) * 4 + p / 4) * 8 + d / 8 % 2 * 4 + p % 4;
}

// A layer's pool.
struct KvPool {
    u8* pages;             // blocks x pages of a block x heads x (keys, values)
    int pages_per_block;   // tokens of a block / 16
    int heads, head_dim;
    int fp8;               // one byte a number, else two
};

__device__ __forceinline__ long long page_bytes(const KvPool& pool) {
    return (long long)2 * PAGE * pool.head_dim * (pool.fp8 ? 1 : 2);
}
// The page of a token's position in its block.
__device__ __forceinline__ u8* page_at(const KvPool& pool, int block, int offset, int head) {
    long long page = (long long)block * pool.pages_per_block + offset / PAGE;
    return pool.pages + (page * pool.heads + head) * page_bytes(pool);
}
