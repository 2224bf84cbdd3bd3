// ggml's quantised formats (ggml-quants.c) as files store them, taken apart 32 columns at a time: whole numbers and scales, nothing
// multiplied out.
//
// `quant`: column i of block j, unsigned before the format's offset is subtracted (two's complement in Q8_0). `d`, `m`: f16 scale and
// minimum, or the scale of minima. `small`: scale and minimum of a group of columns, in formats that have such.
#pragma once
#include "dev.cuh"

__device__ __forceinline__ u16 stored_half(const u8* at) { return (u16)(at[0] | at[1] << 8); }

// Low nibbles are columns 0 to 15, high nibbles 16 to 31.
__device__ __forceinline__ u8 small_nibble(const u8* quants, int i) { return quants[i % 16] >> (i / 16 * 4) & 15; }
__device__ __forceinline__ u8 fifth_bit(const u8* bits, int i) { return (bits[i / 8] >> (i % 8) & 1) << 4; }

template <int SIZE, int WIDTH>
struct Blocks {
    static constexpr int BYTES = SIZE, COLUMNS = WIDTH;
    static __device__ __forceinline__ u16 d(const u8* block) { return stored_half(block); }
    static __device__ __forceinline__ u16 m(const u8* block) { return stored_half(block + 2); }
    static __device__ __forceinline__ u16 small(const u8*, int) { return 0; }
};

struct StoredQ4_0 : Blocks<18, 32> {
    static __device__ __forceinline__ u8 quant(const u8* block, int, int i) { return small_nibble(block + 2, i); }
};
struct StoredQ4_1 : Blocks<20, 32> {
    static __device__ __forceinline__ u8 quant(const u8* block, int, int i) { return small_nibble(block + 4, i); }
};
struct StoredQ5_0 : Blocks<22, 32> {
    static __device__ __forceinline__ u8 quant(const u8* block, int, int i) {
        return small_nibble(block + 6, i) | fifth_bit(block + 2, i);
    }
};
struct StoredQ5_1 : Blocks<24, 32> {
    static __device__ __forceinline__ u8 quant(const u8* block, int, int i) {
        return small_nibble(block + 8, i) | fifth_bit(block + 4, i);
    }
};
struct StoredQ8_0 : Blocks<34, 32> {
    static __device__ __forceinline__ u8 quant(const u8* block, int, int i) { return block[2 + i]; }
};

// Six-bit scale and minimum of 32 columns, packed in twelve bytes (`get_scale_min_k4`): scale in the lower byte.
__device__ __forceinline__ u16 scale_min(const u8* scales, int j) {
    if (j < 4) return (u16)((scales[j] & 63) | (scales[j + 4] & 63) << 8);
    const int scale = (scales[j + 4] & 15) | scales[j - 4] >> 6 << 4, minimum = scales[j + 4] >> 4 | scales[j] >> 6 << 4;
    return (u16)(scale | minimum << 8);
}

struct StoredQ4_K : Blocks<144, 256> {
    static __device__ __forceinline__ u8 quant(const u8* block, int j, int i) { return block[16 + j / 2 * 32 + i] >> (j % 2 * 4) & 15; }
    static __device__ __forceinline__ u16 small(const u8* block, int group) { return scale_min(block + 4, group); }
};
struct StoredQ5_K : Blocks<176, 256> {
    static __device__ __forceinline__ u8 quant(const u8* block, int j, int i) {
        return (block[48 + j / 2 * 32 + i] >> (j % 2 * 4) & 15) | (block[16 + i] >> j & 1) << 4;
    }
    static __device__ __forceinline__ u16 small(const u8* block, int group) { return scale_min(block + 4, group); }
};
struct StoredQ6_K : Blocks<210, 256> {
    static __device__ __forceinline__ u8 quant(const u8* block, int j, int i) {
        const int n = j / 4, k = j % 4;
        return (block[64 * n + 32 * (k % 2) + i] >> (k / 2 * 4) & 15) | (block[128 + 32 * n + i] >> (2 * k) & 3) << 4;
    }
    static __device__ __forceinline__ u16 d(const u8* block) { return stored_half(block + 208); }
    static __device__ __forceinline__ u16 small(const u8* block, int group) { return block[192 + group]; }
};
struct StoredQ3_K : Blocks<110, 256> {
    static __device__ __forceinline__ u8 quant(const u8* block, int j, int i) {
        const int n = j / 4, k = j % 4;
        return (block[32 + 32 * n + i] >> (2 * k) & 3) | (block[i] >> j & 1) << 2;
    }
    static __device__ __forceinline__ u16 d(const u8* block) { return stored_half(block + 108); }
    static __device__ __forceinline__ u16 small(const u8* block, int group) {
        const u8* scales = block + 96;
        const int low = group < 8 ? scales[group] & 15 : scales[group - 8] >> 4;
        const int high = scales[8 + group % 4] >> (group / 4 * 2) & 3;
        return (u8)((low | high << 4) - 32);
    }
};
struct StoredQ2_K : Blocks<84, 256> {
    static __device__ __forceinline__ u8 quant(const u8* block, int j, int i) { return block[16 + 32 * (j / 4) + i] >> (2 * (j % 4)) & 3; }
    static __device__ __forceinline__ u16 d(const u8* block) { return stored_half(block + 80); }
    static __device__ __forceinline__ u16 m(const u8* block) { return stored_half(block + 82); }
    static __device__ __forceinline__ u16 small(const u8* block, int group) {
        return (u16)((block[group] & 15) | (block[group] >> 4) << 8);
    }
};
