// RMSNorm (Zhang and Sennrich 2019) of the residual stream, with what comes before it: adding a branch that has a norm of
// its own (Gemma 3). The result is the input of a product.
//
// Bound by memory: reads 4 * width bytes a token (twice, the second time from the caches), 8 more with a branch, and writes 2 * width
// per plane; some 6 operations a number. One block of 256 threads a token; sums are added in one order.
#include "activations.cuh"

struct NormArgs {
    float* x;                    // tokens x width
    const float* branch;         // the same, added after its own norm; or null
    const float* branch_weight;
    const float* weight;         // null: only the branch is added
    const int* rows;             // which row of x each token of `to` is; null for all in order
    Activations to;
    int width;
    float epsilon;
};

__device__ __forceinline__ float rms_factor(const float* x, int width, float epsilon, float* scratch) {
    float squares = 0.0f;
    for (int i = threadIdx.x; i < width; i += 256) squares = fmaf(x[i], x[i], squares);
    return 1.0f / sqrtf(block_sum<8>(squares, scratch) / (float)width + epsilon);
}

// Grid: tokens, 256 threads.
extern "C" __global__ void __launch_bounds__(256, 1) rms_norm(NormArgs args) {
    __shared__ float scratch[8];
    const int token = blockIdx.x, row = args.rows ? args.rows[token] : token;
    float* x = args.x + (long long)row * args.width;
    if (args.branch) {
        const float* branch = args.branch + (long long)row * args.width;
        const float factor = rms_factor(branch, args.width, args.epsilon, scratch);
        for (int i = threadIdx.x; i < args.width; i += 256) x[i] = fmaf(branch[i] * factor, args.branch_weight[i], x[i]);
        __syncthreads();
    }
    if (!args.weight) return;
    const float factor = rms_factor(x, args.width, args.epsilon, scratch);
    for (int i = threadIdx.x; i < args.to.stride; i += 256)
        store_activation(args.to, token, i, i < args.width ? x[i] * factor * args.weight[i] : 0.0f);
}
