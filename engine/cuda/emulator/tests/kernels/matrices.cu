// Fragments: registers in memory order, lane by lane, go through one instruction and back.
#include "device.cuh"

extern "C" __global__ void mma_bf16(float* d, const unsigned* a, const unsigned* b) {
    const int lane = threadIdx.x;
    float sum[4];
    unsigned left[4];
    for (int i = 0; i < 4; i++) sum[i] = d[lane * 4 + i], left[i] = a[lane * 4 + i];
    mma_bf16_16816(sum, left, b[lane * 2], b[lane * 2 + 1]);
    for (int i = 0; i < 4; i++) d[lane * 4 + i] = sum[i];
}

extern "C" __global__ void mma_f16(float* d, const unsigned* a, const unsigned* b) {
    const int lane = threadIdx.x;
    float sum[4];
    unsigned left[4];
    for (int i = 0; i < 4; i++) sum[i] = d[lane * 4 + i], left[i] = a[lane * 4 + i];
    mma_f16_16816(sum, left, b[lane * 2], b[lane * 2 + 1]);
    for (int i = 0; i < 4; i++) d[lane * 4 + i] = sum[i];
}

extern "C" __global__ void mma_s8(int* d, const unsigned* a, const unsigned* b) {
    const int lane = threadIdx.x;
    int sum[4];
    unsigned left[4];
    for (int i = 0; i < 4; i++) sum[i] = d[lane * 4 + i], left[i] = a[lane * 4 + i];
    mma_s8_16832(sum, left, b[lane * 2], b[lane * 2 + 1]);
    for (int i = 0; i < 4; i++) d[lane * 4 + i] = sum[i];
}

// Four 8x8 matrices, one after the other, with rows of 16 bytes; `transposed` or not.
extern "C" __global__ void load_matrices(unsigned* out, const unsigned short* in, int transposed) {
    __shared__ __align__(16) unsigned short tile[4][8][8];
    const int lane = threadIdx.x;
    for (int i = lane; i < 256; i += 32) tile[i / 64][i / 8 % 8][i % 8] = in[i];
    __syncwarp();
    unsigned r[4];
    if (transposed) {
        ldmatrix_x4_trans(r, tile[lane / 8][lane % 8]);
    } else {
        ldmatrix_x4(r, tile[lane / 8][lane % 8]);
    }
    for (int i = 0; i < 4; i++) out[lane * 4 + i] = r[i];
}

// Two 8x8 matrices: only the first 16 lanes give addresses.
extern "C" __global__ void load_two_matrices(unsigned* out, const unsigned short* in) {
    __shared__ __align__(16) unsigned short tile[2][8][8];
    const int lane = threadIdx.x;
    for (int i = lane; i < 128; i += 32) tile[i / 64][i / 8 % 8][i % 8] = in[i];
    __syncwarp();
    unsigned r[2];
    ldmatrix_x2(r, lane < 16 ? tile[lane / 8][lane % 8] : tile[0][0]);
    for (int i = 0; i < 2; i++) out[lane * 2 + i] = r[i];
}
