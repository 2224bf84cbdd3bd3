// From rows as a file stores them to the layout of formats.cuh: the same numbers in another order. So weights are copied to the
// device as they are, and packed there, as fast as they come.
//
// Bound by the bus that brings them (64 GB/s and less): this reads and writes each byte once, at some 10 operations a weight.
#pragma once
#include "formats.cuh"
#include "stored.cuh"

struct PackArgs {
    const u8* stored;   // the first of `rows` rows
    u8* out;            // the tile of the first row
    long long row_bytes;
    int rows, cols;     // as stored; what makes tiles and units whole becomes zero
    int units;          // of a tile
};

// A thread's place: lane of a tile of 64 columns of a unit.
struct Lane {
    int lane, tile, unit, row, column;  // row: of half 0; column: first of the tile
    __device__ __forceinline__ Lane(int unit_columns) {
        lane = threadIdx.x % 32, tile = threadIdx.x / 32, unit = blockIdx.x;
        row = blockIdx.y * 16 + lane / 4, column = blockIdx.x * unit_columns + tile * 64;
    }
    // Column of number v of a block of 32.
    __device__ __forceinline__ int in_block(int v) const { return v / 4 * 16 + lane % 4 * 4 + v % 4; }
};

template <class S>
__device__ __forceinline__ const u8* block_of(const PackArgs& args, int row, int column) {
    return args.stored + row * args.row_bytes + (long long)(column / S::COLUMNS) * S::BYTES;
}

// Scales of a unit, by all its threads: group by group, row by row.
template <class F, class S>
__device__ __forceinline__ void pack_scales(const PackArgs& args, u8* scales) {
    constexpr bool SUPER = S::COLUMNS == 256;
    constexpr int GROUPS = F::COLS / F::GROUP;
    for (int at = threadIdx.x; at < (GROUPS + (SUPER ? 1 : 0)) * 16; at += F::TILES * 32) {
        const int group = at / 16, g = at % 8, half = at / 8 % 2, row = blockIdx.y * 16 + half * 8 + g;
        const int column = blockIdx.x * F::COLS + (group < GROUPS ? group * F::GROUP : 0);
        const bool there = row < args.rows && column < args.cols;
        const u8* block = there ? block_of<S>(args, row, column) : nullptr;
        if (!SUPER) {
            u16* to = (u16*)(scales + (group * 8 + g) * (F::MINIMUM ? 8 : 4));
            to[half] = there ? S::d(block) : 0;
            if (F::MINIMUM) to[2 + half] = there ? S::m(block) : 0;
        } else if (group < GROUPS) {
            const u16 small = there ? S::small(block, group) : 0;
            if (F::MINIMUM)
                ((u16*)(scales + (group * 8 + g) * 4))[half] = small;
            else
                scales[(group * 8 + g) * 2 + half] = (u8)small;
        } else {
            u16* to = (u16*)(scales + GROUPS * (F::MINIMUM ? 32 : 16) + g * (F::MINIMUM ? 8 : 4));
            to[half * (F::MINIMUM ? 2 : 1)] = there ? S::d(block) : 0;
            if (F::MINIMUM) to[half * 2 + 1] = there ? S::m(block) : 0;
        }
    }
}

// Grid: (units of a tile, tiles), 32 threads per 64 columns of a unit.
template <class F, class S>
__device__ __forceinline__ void pack(const PackArgs& args) {
    constexpr int LOW = F::LOW_BYTES, HIGH = F::HIGH;
    const Lane at(F::COLS);
    u8* unit = args.out + ((long long)blockIdx.y * args.units + at.unit) * F::BYTES;
    u8* low = unit + at.tile * LOW;
    u32 high[2] = {0, 0};
    for (int b = 0; b < 2; ++b)
        for (int half = 0; half < 2; ++half) {
            const int row = at.row + half * 8, column = at.column + b * 32;
            u32 word[2] = {0, 0};
            if (row < args.rows && column < args.cols) {
                const u8* block = block_of<S>(args, row, column);
                for (int v = 0; v < 8; ++v) {
                    const u32 value = S::quant(block, column % S::COLUMNS / 32, at.in_block(v));
                    if (LOW == 1024)
                        word[v / 4] |= value << (8 * (v / 2 % 2 + 2 * (v % 2)));
                    else
                        word[0] |= (value & 15) << (4 * (v / 2 + 4 * (v % 2)));
                    if (HIGH == 128) high[0] |= value >> 4 << (4 * (2 * b + half) + v / 2 + 16 * (v % 2));
                    if (HIGH == 256) high[b] |= value >> 4 << (2 * (4 * half + v / 2) + 16 * (v % 2));
                }
            }
            if (LOW == 1024)
                *(Pair*)(low + b * 512 + at.lane * 16 + half * 8) = {word[0], word[1]};
            else
                *(u32*)(low + at.lane * 16 + (2 * b + half) * 4) = word[0];
        }
    u8* upper = unit + F::TILES * LOW + at.tile * HIGH;
    if (HIGH == 128) *(u32*)(upper + at.lane * 4) = high[0];
    if (HIGH == 256) *(Pair*)(upper + at.lane * 8) = {high[0], high[1]};
    pack_scales<F, S>(args, unit + F::TILES * (LOW + HIGH));
}

// bf16 and f16. Grid: (units of a tile, tiles), 32 threads.
__device__ __forceinline__ void pack_halves(const PackArgs& args) {
    const Lane at(64);
    u8* unit = args.out + ((long long)blockIdx.y * args.units + at.unit) * 2048;
    for (int step = 0; step < 4; ++step) {
        u32 word[4] = {0, 0, 0, 0};
        for (int i = 0; i < 8; ++i) {
            // Registers of the A operand: rows g, g + 8, then the same of the other two columns.
            const int half = i / 4, j = i % 4, row = at.row + half * 8;
            const int column = at.column + step * 16 + at.lane % 4 * 4 + j;
            if (row >= args.rows || column >= args.cols) continue;
            const u32 x = ((const u16*)(args.stored + row * args.row_bytes))[column];
            word[half + j / 2 * 2] |= x << (16 * (j % 2));
        }
        *(Quad*)(unit + (step * 32 + at.lane) * 16) = {word[0], word[1], word[2], word[3]};
    }
}

// f32. Grid: (units of a tile, tiles), 32 threads.
__device__ __forceinline__ void pack_words(const PackArgs& args) {
    const Lane at(64);
    u8* unit = args.out + ((long long)blockIdx.y * args.units + at.unit) * 4096;
    for (int step = 0; step < 4; ++step)
        for (int half = 0; half < 2; ++half) {
            u32 word[4] = {0, 0, 0, 0};
            for (int j = 0; j < 4; ++j) {
                const int row = at.row + half * 8, column = at.column + step * 16 + at.lane % 4 * 4 + j;
                if (row < args.rows && column < args.cols) word[j] = ((const u32*)(args.stored + row * args.row_bytes))[column];
            }
            *(Quad*)(unit + ((step * 2 + half) * 32 + at.lane) * 16) = {word[0], word[1], word[2], word[3]};
        }
}
