// Shared memory, declared and dynamic, and copies that land late.
#include "device.cuh"

// Reverses each block's elements through dynamic shared memory, with a declared array beside it.
extern "C" __global__ void reverse(float* out, const float* in) {
    extern __shared__ __align__(16) float row[];
    __shared__ float first;
    const int at = blockIdx.x * blockDim.x;
    row[threadIdx.x] = in[at + threadIdx.x];
    if (threadIdx.x == 0) first = in[at];
    __syncthreads();
    out[at + threadIdx.x] = row[blockDim.x - 1 - threadIdx.x] + first;
}

template <int N> __device__ float of_template(float value) {
    __shared__ float room[N];
    room[threadIdx.x % N] = value;
    __syncthreads();
    return room[(threadIdx.x + 1) % N];
}
// Two instances of one declaration are two arrays.
extern "C" __global__ void instances(float* out) {
    const float a = of_template<32>(float(threadIdx.x)), b = of_template<64>(100.0f + threadIdx.x);
    out[threadIdx.x] = a + 1000.0f * b;
}

// A pipeline of two stages; the last piece is read in part and filled with zeros.
extern "C" __global__ void pipeline(float* out, const float* in, int pieces, int bytes_of_last) {
    __shared__ __align__(16) float stage[2][128];
    const int t = threadIdx.x;
    const auto issue = [&](int piece) {
        if (piece < pieces) {
            const int bytes = piece == pieces - 1 ? bytes_of_last : 16;
            cp_async16_zero(&stage[piece % 2][t * 4], in + (piece * blockDim.x + t) * 4, bytes);
        }
        cp_async_commit();
    };
    issue(0);
    for (int piece = 0; piece < pieces; piece++) {
        issue(piece + 1);
        cp_async_wait<1>();
        __syncthreads();
        // What a neighbour copied.
        const int from = (t + 1) % blockDim.x;
        for (int i = 0; i < 4; i++) out[(piece * blockDim.x + t) * 4 + i] = stage[piece % 2][from * 4 + i];
        __syncthreads();
    }
}

// Where a thread is.
extern "C" __global__ void places(int* out) {
    const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    const int threads = blockDim.x * blockDim.y * blockDim.z;
    out[block * threads + thread] = block * 1000 + thread;
}
