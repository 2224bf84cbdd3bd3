// What kernels use of the device beyond plain C++: every piece of inline PTX stands here, beside its host version for
// the emulator (FORESHOCK_EMULATOR), whose header brings threads, barriers, shuffles, cp.async and mma themselves.
//
// bf16, f16 and fp8 numbers are kept as their bits (`u16`, pairs in `u32`, the lower half first): kernels need no CUDA
// header, and both compilers round them by the same rules.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef FORESHOCK_EMULATOR
#include "emulator.hpp"
#else
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) u8 name[]

// 16 bytes to shared memory without passing through registers; past the first-level cache, since weights and KV are read once.
__device__ __forceinline__ void cp_async16(void* shared, const void* global) {
    u32 address = (u32)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(address), "l"(global) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Until all but the latest N groups have landed.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}
// d += a * b on one warp: a is 16 x 16 (rows by k), b is 16 x 8, both bf16; d is 16 x 8 in f32.
__device__ __forceinline__ void mma_bf16_16816(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

constexpr u32 ALL_LANES = 0xffffffffu;
constexpr float LOG2_E = 1.4426950408889634f;

__device__ __forceinline__ float from_bits(u32 bits) {
#ifdef FORESHOCK_EMULATOR
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return x;
#else
    return __uint_as_float(bits);
#endif
}
__device__ __forceinline__ u32 to_bits(float x) {
#ifdef FORESHOCK_EMULATOR
    u32 bits;
    __builtin_memcpy(&bits, &x, 4);
    return bits;
#else
    return __float_as_uint(x);
#endif
}
// A product that no compiler fuses with an addition: for what two kernels must compute to the same bits.
__device__ __forceinline__ float times(float a, float b) {
#ifdef FORESHOCK_EMULATOR
    return a * b;
#else
    return __fmul_rn(a, b);
#endif
}
__device__ __forceinline__ float minus_infinity() { return from_bits(0xff800000u); }

// --- bf16 ---

__device__ __forceinline__ float from_bf16(u16 x) { return from_bits((u32)x << 16); }
__device__ __forceinline__ float low_bf16(u32 pair) { return from_bits(pair << 16); }
__device__ __forceinline__ float high_bf16(u32 pair) { return from_bits(pair & 0xffff0000u); }

// To nearest, ties to even. Not a number stays one.
__device__ __forceinline__ u16 to_bf16(float x) {
    u32 bits = to_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (u16)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}
__device__ __forceinline__ u32 to_bf16x2(float low, float high) {
#ifdef FORESHOCK_EMULATOR
    return (u32)to_bf16(low) | ((u32)to_bf16(high) << 16);
#else
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#endif
}
// a - b of two pairs, as a fused multiply-add since only that is there before sm_90.
__device__ __forceinline__ u32 sub_bf16x2(u32 a, u32 b) {
#ifdef FORESHOCK_EMULATOR
    return to_bf16x2(low_bf16(a) - low_bf16(b), high_bf16(a) - high_bf16(b));
#else
    u32 d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;\n" : "=r"(d) : "r"(a), "r"(0x3f803f80u), "r"(b ^ 0x80008000u));
    return d;
#endif
}
// a * b of two pairs.
__device__ __forceinline__ u32 mul_bf16x2(u32 a, u32 b) {
#ifdef FORESHOCK_EMULATOR
    return to_bf16x2(low_bf16(a) * low_bf16(b), high_bf16(a) * high_bf16(b));
#else
    u32 d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;\n" : "=r"(d) : "r"(a), "r"(b), "r"(0x80008000u));
    return d;
#endif
}

// --- f16 ---

__device__ __forceinline__ float from_f16(u16 x) {
#ifdef FORESHOCK_EMULATOR
    u32 sign = (u32)(x & 0x8000u) << 16, rest = (u32)(x & 0x7fffu) << 13;
    if ((x & 0x7c00u) == 0x7c00u) return from_bits(sign | 0x7f800000u | rest);
    // The exponent's bias is put right by a multiplication, which takes subnormal numbers with it.
    return from_bits(sign | to_bits(from_bits(rest) * from_bits(0x77800000u)));
#else
    float y;
    asm("cvt.f32.f16 %0, %1;\n" : "=f"(y) : "h"(x));
    return y;
#endif
}
__device__ __forceinline__ float low_f16(u32 pair) { return from_f16((u16)pair); }
__device__ __forceinline__ float high_f16(u32 pair) { return from_f16((u16)(pair >> 16)); }

// --- fp8 e4m3, by integer arithmetic: the instructions begin with sm_89 ---

// Saturating, to nearest, ties to even.
__device__ __forceinline__ u8 to_fp8(float x) {
    u32 bits = to_bits(x);
    u8 sign = (u8)((bits >> 24) & 0x80u);
    u32 magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return sign | 0x7f;
    if (magnitude >= 0x43e00000u) return sign | 0x7e;  // 448 and more
    if (magnitude < 0x3c800000u) {
        // Below 2^-6: multiples of 2^-9.
        float steps = from_bits(magnitude) * 512.0f;
        u32 whole = (u32)steps;
        float rest = steps - (float)whole;
        whole += rest > 0.5f || (rest == 0.5f && (whole & 1));
        return sign | (u8)whole;
    }
    u32 rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1);
    u32 code = (rounded >> 20) - (120u << 3);
    return sign | (u8)(code > 0x7e ? 0x7e : code);
}
// Two numbers in the low half of `pair`, as bf16: the bits moved into place, and the bias of the exponent made good.
__device__ __forceinline__ u32 fp8x2_to_bf16x2(u32 pair) {
    u32 spread = (pair & 0xffu) | ((pair & 0xff00u) << 8);
    u32 moved = ((spread & 0x00800080u) << 8) | ((spread & 0x007f007fu) << 4);
    return mul_bf16x2(moved, 0x7b807b80u);  // 2^120
}

// --- memory ---

struct __align__(8) Pair { u32 x, y; };
struct __align__(16) Quad { u32 x, y, z, w; };

__device__ __forceinline__ Quad load16(const void* at) { return *(const Quad*)at; }
__device__ __forceinline__ Pair load8(const void* at) { return *(const Pair*)at; }
__device__ __forceinline__ u32 load4(const void* at) { return *(const u32*)at; }
__device__ __forceinline__ u16 load2(const void* at) { return *(const u16*)at; }

// --- warps ---

// The same on all lanes, added in one order.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int distance = 16; distance; distance >>= 1) x += __shfl_xor_sync(ALL_LANES, x, distance);
    return x;
}

__device__ __forceinline__ int smaller(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ int larger(int a, int b) { return a > b ? a : b; }

// Sum over a block of 32 * WARPS threads, the same on all of them, added in one order. `scratch` holds WARPS numbers
// and is free again at the next barrier.
template <int WARPS>
__device__ __forceinline__ float block_sum(float x, float* scratch) {
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) sum += scratch[warp];
    return sum;
}
