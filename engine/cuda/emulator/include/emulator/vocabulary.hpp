// Words of CUDA C++ that are no words of C++: qualifiers, vector types.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))
// Left over where the build's scanner could not read a declaration: the compiler then stops at this name.
#define __shared__ shared_memory_that_the_scanner_of_the_emulator_could_not_read

#define EMULATOR_VECTOR2(T, name, align)                                            \
    struct alignas(align) name {                                                    \
        T x, y;                                                                     \
    };                                                                              \
    inline name make_##name(T x, T y) { return {x, y}; }
#define EMULATOR_VECTOR3(T, name)                                                   \
    struct name {                                                                   \
        T x, y, z;                                                                  \
    };                                                                              \
    inline name make_##name(T x, T y, T z) { return {x, y, z}; }
#define EMULATOR_VECTOR4(T, name, align)                                            \
    struct alignas(align) name {                                                    \
        T x, y, z, w;                                                               \
    };                                                                              \
    inline name make_##name(T x, T y, T z, T w) { return {x, y, z, w}; }

EMULATOR_VECTOR2(float, float2, 8)
EMULATOR_VECTOR3(float, float3)
EMULATOR_VECTOR4(float, float4, 16)
EMULATOR_VECTOR2(int, int2, 8)
EMULATOR_VECTOR3(int, int3)
EMULATOR_VECTOR4(int, int4, 16)
EMULATOR_VECTOR2(unsigned, uint2, 8)
EMULATOR_VECTOR3(unsigned, uint3)
EMULATOR_VECTOR4(unsigned, uint4, 16)
EMULATOR_VECTOR2(short, short2, 4)
EMULATOR_VECTOR4(short, short4, 8)
EMULATOR_VECTOR2(unsigned short, ushort2, 4)
EMULATOR_VECTOR4(unsigned short, ushort4, 8)
EMULATOR_VECTOR2(signed char, char2, 2)
EMULATOR_VECTOR4(signed char, char4, 4)
EMULATOR_VECTOR2(unsigned char, uchar2, 2)
EMULATOR_VECTOR4(unsigned char, uchar4, 4)
EMULATOR_VECTOR2(long long, longlong2, 16)
EMULATOR_VECTOR2(unsigned long long, ulonglong2, 16)
EMULATOR_VECTOR2(double, double2, 16)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
constexpr int warpSize = 32;
