// How weights lie on the device: tiles of 16 rows, in units of 64 columns (256 in the K formats), each unit contiguous,
// the units of a tile one after the other. A warp reads a unit as one stream, and each lane finds in it, in 16-byte
// pieces, exactly its share of the mma's A operand. `src/pack` writes this from ggml's formats, value for value: the
// bytes are as many as there (K formats with a minimum: 3% more), only their order differs.
//
// A lane (4 g + t) has of 32 columns (block b) rows g and g + 8, of each the columns 4 t + j and 16 + 4 t + j (j < 4),
// counted v = 4 s + j. Numbers become the integers that they are (exact in bf16); their scale, common to 16 or 32
// columns, is applied to the sum of products in f32. So no weight is rounded.
//
// Where bits lie, by lane: nibbles: 16 bytes, word 2 b + half, value v at nibble v / 2 + 4 (v % 2). A fifth bit: 4
// bytes, pair q = 4 (2 b + half) + v / 2 at bit q + 16 (v % 2). Two upper bits: 8 bytes, word b, pair q = 4 half + v / 2 at
// bit 2 q + 16 (v % 2). Bytes: 16 bytes per b, word 2 half + v / 4, byte (v / 2) % 2 + 2 (v % 2), two's complement.
#pragma once
#include "dev.cuh"

// bf16's 128, whose lower mantissa bits count in ones.
constexpr u32 ONES = 0x43004300u;

struct Fragments {
    u32 a[2][4];  // by k-step of 16 columns: the mma's A operand
};
struct Scales {
    float d0, d1;  // rows g and g + 8
    float m0, m1;
};

// --- integers of 4, 5, 6 and 8 bits as fragments ---

// `HIGH` more bits than four; `OFFSET` is subtracted.
template <int HIGH, int OFFSET>
struct Packed {
    static constexpr int TERMS = 1;
    static constexpr int TILE_BYTES = 512 + 128 * HIGH;

    // `low` and `high`: what the planes hold of 64 columns.
    static __device__ __forceinline__ void unpack(const u8* low, const u8* high, int block, int lane, Fragments& out) {
        Pair words = load8(low + lane * 16 + block * 8);
        u32 upper = HIGH == 1 ? load4(high + lane * 4) : HIGH == 2 ? load4(high + lane * 8 + block * 4) : 0;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            u32 word = half ? words.y : words.x;
#pragma unroll
            for (int pair = 0; pair < 4; ++pair) {
                u32 bits = (word >> (4 * pair)) & 0x000f000fu;
                if (HIGH == 1) bits |= ((upper >> (4 * (2 * block + half) + pair)) & 0x00010001u) << 4;
                if (HIGH == 2) bits |= ((upper >> (2 * (4 * half + pair))) & 0x00030003u) << 4;
                constexpr u32 BIAS = 0x4300u + OFFSET;
                out.a[pair / 2][half + 2 * (pair % 2)] = sub_bf16x2(bits | ONES, BIAS << 16 | BIAS);
            }
        }
    }
};

struct Bytes {
    static constexpr int TERMS = 1;
    static constexpr int TILE_BYTES = 1024;

    static __device__ __forceinline__ void unpack(const u8* low, const u8*, int block, int lane, Fragments& out) {
        Quad words = load16(low + block * 512 + lane * 16);
        u32 word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int pair = 0; pair < 4; ++pair) {
                u32 bytes = word[2 * half + pair / 2] >> (8 * (pair % 2));
                // 128 + the lower seven bits, less 128 or, by the sign, 256.
                u32 value = sub_bf16x2((bytes & 0x007f007fu) | ONES, (bytes & 0x00800080u) | ONES);
                out.a[pair / 2][half + 2 * (pair % 2)] = value;
            }
    }
};

// --- scales ---

// f16 for 32 columns, and a minimum if `MIN`. Stored [block][g]{d, d'}{m, m'}, the prime for row g + 8.
template <bool MIN>
struct Halves32 {
    static constexpr int GROUP = 32;
    static constexpr bool MINIMUM = MIN;
    static constexpr int BYTES = 64 * (MIN ? 2 : 1);
    static __device__ __forceinline__ Scales load(const u8* scales, int group, int lane) {
        const u8* at = scales + (group * 8 + lane / 4) * (MIN ? 8 : 4);
        u32 d = load4(at), m = MIN ? load4(at + 4) : 0;
        return {low_f16(d), high_f16(d), low_f16(m), high_f16(m)};
    }
};

// Bytes for each group of columns times f16 for 256: scale and subtracted minimum. [group][g]{s, m, s', m'}, then
// [g]{d, dmin, d', dmin'}.
template <int COLUMNS>
struct SuperMinimum {
    static constexpr int GROUP = COLUMNS;
    static constexpr bool MINIMUM = true;
    static constexpr int BYTES = 256 / COLUMNS * 32 + 64;
    static __device__ __forceinline__ Scales load(const u8* scales, int group, int lane) {
        int g = lane / 4;
        u32 small = load4(scales + (group * 8 + g) * 4);
        Pair super = load8(scales + 256 / COLUMNS * 32 + g * 8);
        float s0 = (float)(small & 255), m0 = (float)(small >> 8 & 255);
        float s1 = (float)(small >> 16 & 255), m1 = (float)(small >> 24);
        return {times(low_f16(super.x), s0), times(low_f16(super.y), s1), -times(high_f16(super.x), m0), -times(high_f16(super.y), m1)};
    }
};

// Signed bytes for 16 columns times f16 for 256. [group][g]{s, s'}, then [g]{d, d'}.
struct SuperSigned {
    static constexpr int GROUP = 16;
    static constexpr bool MINIMUM = false;
    static constexpr int BYTES = 256 + 32;
    static __device__ __forceinline__ Scales load(const u8* scales, int group, int lane) {
        int g = lane / 4;
        u16 small = load2(scales + (group * 8 + g) * 2);
        u32 super = load4(scales + 256 + g * 4);
        float s0 = (float)(signed char)(small & 255), s1 = (float)(signed char)(small >> 8);
        return {times(low_f16(super), s0), times(high_f16(super), s1), 0.0f, 0.0f};
    }
};

// --- formats ---

// Planes of a unit lie one after the other: low bits of all its tiles, high bits of all, scales.
template <class Q, class S, int UNIT, int LOW>
struct Quantised {
    static constexpr int COLS = UNIT, TILES = UNIT / 64, TERMS = 1;
    static constexpr int LOW_BYTES = LOW, HIGH = Q::TILE_BYTES - LOW;
    static constexpr int GROUP = S::GROUP;
    static constexpr bool SCALED = true, MINIMUM = S::MINIMUM;
    static constexpr int BYTES = TILES * Q::TILE_BYTES + S::BYTES;

    // Block of 32 columns of the unit.
    static __device__ __forceinline__ void fragments(const u8* unit, int block, int lane, Fragments (&out)[1]) {
        int tile = block / 2;
        Q::unpack(unit + tile * LOW, unit + TILES * LOW + tile * HIGH, block % 2, lane, out[0]);
    }
    // Group of `GROUP` columns of the unit.
    static __device__ __forceinline__ Scales scales(const u8* unit, int group, int lane) {
        return S::load(unit + TILES * Q::TILE_BYTES, group, lane);
    }
};

typedef Quantised<Packed<0, 8>, Halves32<false>, 64, 512> Q4_0;
typedef Quantised<Packed<0, 0>, Halves32<true>, 64, 512> Q4_1;
typedef Quantised<Packed<1, 16>, Halves32<false>, 64, 512> Q5_0;
typedef Quantised<Packed<1, 0>, Halves32<true>, 64, 512> Q5_1;
typedef Quantised<Bytes, Halves32<false>, 64, 1024> Q8_0;
typedef Quantised<Packed<0, 0>, SuperMinimum<16>, 256, 512> Q2_K;
typedef Quantised<Packed<0, 4>, SuperSigned, 256, 512> Q3_K;
typedef Quantised<Packed<0, 0>, SuperMinimum<32>, 256, 512> Q4_K;
typedef Quantised<Packed<1, 0>, SuperMinimum<32>, 256, 512> Q5_K;
typedef Quantised<Packed<2, 32>, SuperSigned, 256, 512> Q6_K;

// What plain formats share: no scale, and numbers as a sum of bf16 numbers, each the rest of those before.
template <int PARTS, int BYTES_EACH>
struct Plain {
    static constexpr int COLS = 64, TILES = 1, TERMS = PARTS, GROUP = 32;
    static constexpr bool SCALED = false, MINIMUM = false;
    static constexpr int BYTES = 1024 * BYTES_EACH;
    static __device__ __forceinline__ Scales scales(const u8*, int, int) { return {1.0f, 1.0f, 0.0f, 0.0f}; }
};

// Fragments as they are: [block][step][lane] 16 bytes.
struct Bf16 : Plain<1, 2> {
    static __device__ __forceinline__ void fragments(const u8* unit, int block, int lane, Fragments (&out)[1]) {
#pragma unroll
        for (int step = 0; step < 2; ++step) {
            Quad four = load16(unit + ((block * 2 + step) * 32 + lane) * 16);
            out[0].a[step][0] = four.x, out[0].a[step][1] = four.y, out[0].a[step][2] = four.z, out[0].a[step][3] = four.w;
        }
    }
};

template <int PARTS>
__device__ __forceinline__ void split_bf16(float low, float high, Fragments (&out)[PARTS], int step, int place) {
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
        u32 pair = to_bf16x2(low, high);
        out[part].a[step][place] = pair;
        low -= low_bf16(pair), high -= high_bf16(pair);
    }
}

// The same order in f16, whose 11 bits are two bf16 numbers.
struct F16 : Plain<2, 2> {
    static __device__ __forceinline__ void fragments(const u8* unit, int block, int lane, Fragments (&out)[2]) {
#pragma unroll
        for (int step = 0; step < 2; ++step) {
            Quad four = load16(unit + ((block * 2 + step) * 32 + lane) * 16);
            u32 word[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (int i = 0; i < 4; ++i) split_bf16<2>(low_f16(word[i]), high_f16(word[i]), out, step, i);
        }
    }
};

// [block][step][half][lane] 16 bytes: columns 4 t to 4 t + 3 of one row. Three bf16 numbers hold all 24 bits.
struct F32 : Plain<3, 4> {
    static __device__ __forceinline__ void fragments(const u8* unit, int block, int lane, Fragments (&out)[3]) {
#pragma unroll
        for (int step = 0; step < 2; ++step)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                Quad four = load16(unit + (((block * 2 + step) * 2 + half) * 32 + lane) * 16);
                split_bf16<3>(from_bits(four.x), from_bits(four.y), out, step, half);
                split_bf16<3>(from_bits(four.z), from_bits(four.w), out, step, half + 2);
            }
    }
};
