// bfloat16 and half, written from their definitions: 8 and 5 bits of exponent, 7 and 10 of fraction, ties to even.
// Arithmetic on them is done in f32 and rounded once, as the hardware's is for one operation.
#pragma once
#include "vocabulary.hpp"

namespace emu {
template <class To, class From> To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "only sizes that are equal can be seen as each other");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline float bf16_to_f32(uint16_t bits) { return bits_as<float>(uint32_t(bits) << 16); }
inline uint16_t f32_to_bf16(float value) {
    if (value != value) return 0x7fff;
    const uint32_t bits = bits_as<uint32_t>(value);
    return uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}
inline float f16_to_f32(uint16_t bits) { return float(bits_as<_Float16>(bits)); }
inline uint16_t f32_to_f16(float value) {
    if (value != value) return 0x7fff;
    return bits_as<uint16_t>(static_cast<_Float16>(value));
}
}  // namespace emu

#define EMULATOR_NUMBER(name, pair, to_f32, from_f32)                                                      \
    struct alignas(2) name {                                                                               \
        uint16_t bits;                                                                                     \
        name() = default;                                                                                  \
        name(float value) : bits(emu::from_f32(value)) {}                                                  \
        name(double value) : bits(emu::from_f32(float(value))) {}                                          \
        name(int value) : bits(emu::from_f32(float(value))) {}                                             \
        operator float() const { return emu::to_f32(bits); }                                               \
    };                                                                                                     \
    struct alignas(4) pair {                                                                               \
        name x, y;                                                                                         \
        pair() = default;                                                                                  \
        pair(name x, name y) : x(x), y(y) {}                                                               \
    };                                                                                                     \
    inline name operator+(name a, name b) { return name(float(a) + float(b)); }                            \
    inline name operator-(name a, name b) { return name(float(a) - float(b)); }                            \
    inline name operator*(name a, name b) { return name(float(a) * float(b)); }                            \
    inline name operator/(name a, name b) { return name(float(a) / float(b)); }                            \
    inline name operator-(name a) { return name(-float(a)); }                                              \
    inline name __hadd(name a, name b) { return a + b; }                                                   \
    inline name __hsub(name a, name b) { return a - b; }                                                   \
    inline name __hmul(name a, name b) { return a * b; }                                                   \
    inline name __hmax(name a, name b) { return name(fmaxf(float(a), float(b))); }                         \
    inline name __hmin(name a, name b) { return name(fminf(float(a), float(b))); }                         \
    inline name __hneg(name a) { return -a; }                                                              \
    inline name __hfma(name a, name b, name c) {                                                           \
        return name(fmaf(float(a), float(b), float(c)));                                                   \
    }                                                                                                      \
    inline pair __hadd2(pair a, pair b) { return {a.x + b.x, a.y + b.y}; }                                 \
    inline pair __hsub2(pair a, pair b) { return {a.x - b.x, a.y - b.y}; }                                 \
    inline pair __hmul2(pair a, pair b) { return {a.x * b.x, a.y * b.y}; }                                 \
    inline pair __hfma2(pair a, pair b, pair c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }

EMULATOR_NUMBER(__nv_bfloat16, __nv_bfloat162, bf16_to_f32, f32_to_bf16)
EMULATOR_NUMBER(__half, __half2, f16_to_f32, f32_to_f16)
using half = __half;
using half2 = __half2;

inline __nv_bfloat16 __float2bfloat16(float v) { return __nv_bfloat16(v); }
inline __nv_bfloat16 __float2bfloat16_rn(float v) { return __nv_bfloat16(v); }
inline float __bfloat162float(__nv_bfloat16 v) { return float(v); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__nv_bfloat16(x), __nv_bfloat16(y)}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return __floats2bfloat162_rn(v.x, v.y); }
inline __nv_bfloat162 __float2bfloat162_rn(float v) { return __floats2bfloat162_rn(v, v); }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {float(v.x), float(v.y)}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) { return {x, x}; }
inline float __low2float(__nv_bfloat162 v) { return float(v.x); }
inline float __high2float(__nv_bfloat162 v) { return float(v.y); }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 v) { return v.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return emu::bits_as<__nv_bfloat16>(uint16_t(bits)); }

inline __half __float2half(float v) { return __half(v); }
inline __half __float2half_rn(float v) { return __half(v); }
inline float __half2float(__half v) { return float(v); }
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline __half2 __float22half2_rn(float2 v) { return __floats2half2_rn(v.x, v.y); }
inline __half2 __float2half2_rn(float v) { return __floats2half2_rn(v, v); }
inline float2 __half22float2(__half2 v) { return {float(v.x), float(v.y)}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __half2half2(__half x) { return {x, x}; }
inline float __low2float(__half2 v) { return float(v.x); }
inline float __high2float(__half2 v) { return float(v.y); }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }
inline unsigned short __half_as_ushort(__half v) { return v.bits; }
inline __half __ushort_as_half(unsigned short bits) { return emu::bits_as<__half>(uint16_t(bits)); }
