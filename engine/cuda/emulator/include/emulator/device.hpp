// The host versions of the helpers behind which kernels/dev.cuh keeps inline PTX, under the names that kernels call.
#pragma once
#include "copy.hpp"
#include "matrix.hpp"

// Dynamic shared memory as bytes.
#define DYNAMIC_SHARED(name) unsigned char* const name = emu::dynamic<unsigned char>(#name, 16)

inline void cp_async16(void* shared, const void* global) { emu::cp_async(shared, global, 16, 16); }
/// The first `bytes` of 16 are read, the others are zero.
inline void cp_async16_zero(void* shared, const void* global, unsigned bytes) { emu::cp_async(shared, global, 16, bytes); }
inline void cp_async8(void* shared, const void* global) { emu::cp_async(shared, global, 8, 8); }
inline void cp_async4(void* shared, const void* global) { emu::cp_async(shared, global, 4, 4); }
inline void cp_async_commit() { emu::cp_async_commit(); }
template <int N> void cp_async_wait() { emu::cp_async_wait(N); }

inline void ldmatrix_x1(unsigned (&r)[1], const void* row) { emu::ldmatrix(r, 1, row, false); }
inline void ldmatrix_x2(unsigned (&r)[2], const void* row) { emu::ldmatrix(r, 2, row, false); }
inline void ldmatrix_x4(unsigned (&r)[4], const void* row) { emu::ldmatrix(r, 4, row, false); }
inline void ldmatrix_x2_trans(unsigned (&r)[2], const void* row) { emu::ldmatrix(r, 2, row, true); }
inline void ldmatrix_x4_trans(unsigned (&r)[4], const void* row) { emu::ldmatrix(r, 4, row, true); }

inline void mma_bf16_16816(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const unsigned b[2] = {b0, b1};
    emu::mma_bf16_16816(d, a, b);
}
inline void mma_f16_16816(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const unsigned b[2] = {b0, b1};
    emu::mma_f16_16816(d, a, b);
}
inline void mma_s8_16832(int (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const unsigned b[2] = {b0, b1};
    emu::mma_s8_16832(d, a, b);
}
