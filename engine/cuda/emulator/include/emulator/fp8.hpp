// FP8 in the format e4m3 (4 bits of exponent, bias 7; 3 of fraction; no infinities, NaN is 0x7f and 0xff; largest 448).
#pragma once
#include "numbers.hpp"

namespace emu {
inline float e4m3_to_f32(uint8_t bits) {
    const int exponent = bits >> 3 & 15, fraction = bits & 7;
    if ((bits & 0x7f) == 0x7f) return bits_as<float>(0x7fffffffu);
    const float size = exponent == 0 ? ldexpf(float(fraction), -9) : ldexpf(float(8 + fraction), exponent - 10);
    return bits & 0x80 ? -size : size;
}
/// To the nearest, ties to even; what is larger than 448 becomes 448 (saturation), NaN stays NaN.
inline uint8_t f32_to_e4m3(float value) {
    const uint8_t sign = bits_as<uint32_t>(value) >> 31 ? 0x80 : 0;
    const float size = fabsf(value);
    if (value != value) return uint8_t(sign | 0x7f);
    if (size >= 448.0f) return uint8_t(sign | 0x7e);
    // Below 2^-6, the smallest normal number, neighbours are 2^-9 apart; one step more is that number, and so is its code.
    if (size < 0.015625f) return uint8_t(sign | int(nearbyintf(ldexpf(size, 9))));
    int exponent = 0;
    frexpf(size, &exponent);  // size = m * 2^exponent, m in [0.5, 1)
    const int step = exponent - 4;
    const float steps = nearbyintf(ldexpf(size, -step));  // 8 to 16, exact
    const int carry = steps == 16.0f;
    const int fraction = carry ? 0 : int(steps) - 8;
    return uint8_t(sign | (step + 10 + carry) << 3 | fraction);
}
}  // namespace emu

enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };
typedef unsigned char __nv_fp8_storage_t;
typedef unsigned short __nv_fp8x2_storage_t;
struct __half_raw {
    unsigned short x;
};

struct __nv_fp8_e4m3 {
    __nv_fp8_storage_t __x;
    __nv_fp8_e4m3() = default;
    explicit __nv_fp8_e4m3(float value) : __x(emu::f32_to_e4m3(value)) {}
    explicit __nv_fp8_e4m3(__nv_bfloat16 value) : __x(emu::f32_to_e4m3(float(value))) {}
    explicit __nv_fp8_e4m3(__half value) : __x(emu::f32_to_e4m3(float(value))) {}
    explicit operator float() const { return emu::e4m3_to_f32(__x); }
};
inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float value, __nv_saturation_t, __nv_fp8_interpretation_t) {
    return emu::f32_to_e4m3(value);
}
inline __nv_fp8x2_storage_t __nv_cvt_float2_to_fp8x2(float2 v, __nv_saturation_t, __nv_fp8_interpretation_t) {
    return __nv_fp8x2_storage_t(emu::f32_to_e4m3(v.x) | emu::f32_to_e4m3(v.y) << 8);
}
inline __half_raw __nv_cvt_fp8_to_halfraw(__nv_fp8_storage_t v, __nv_fp8_interpretation_t) {
    return {emu::f32_to_f16(emu::e4m3_to_f32(v))};
}
