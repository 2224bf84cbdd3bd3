// Shuffles, votes, reductions: what each lane receives.

// out[kind][lane] for values 100 + lane: sources and widths as the test knows them.
extern "C" __global__ void shuffles(int* out, int width, int by) {
    const int lane = threadIdx.x, value = 100 + lane;
    out[lane] = __shfl_sync(0xffffffffu, value, by, width);
    out[32 + lane] = __shfl_up_sync(0xffffffffu, value, by, width);
    out[64 + lane] = __shfl_down_sync(0xffffffffu, value, by, width);
    out[96 + lane] = __shfl_xor_sync(0xffffffffu, value, by, width);
}

// Lanes below `half` and the others shuffle apart, each with its own mask.
extern "C" __global__ void halves(int* out, int half) {
    const unsigned low = (1u << half) - 1;
    const int lane = threadIdx.x;
    if (lane < half) {
        out[lane] = __shfl_sync(low, lane, 0);
    } else {
        out[lane] = __shfl_sync(~low, lane, 31);
    }
}

extern "C" __global__ void votes(unsigned* out, int limit) {
    const int lane = threadIdx.x % 32;
    const unsigned ballot = __ballot_sync(0xffffffffu, lane < limit);
    const unsigned any = __any_sync(0xffffffffu, lane == limit), all = __all_sync(0xffffffffu, lane < limit);
    const unsigned sum = __reduce_add_sync(0xffffffffu, unsigned(lane)), most = __reduce_max_sync(0xffffffffu, unsigned(lane * limit));
    if (lane == 31) {
        unsigned* at = out + threadIdx.x / 32 * 5;
        at[0] = ballot, at[1] = any, at[2] = all, at[3] = sum, at[4] = most;
    }
}

// Sum of a block's values by shuffles, shared memory and barriers; one sum for each block.
extern "C" __global__ void __launch_bounds__(256) block_sums(float* out, const float* in, int n) {
    __shared__ float part[8];
    const int i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x % 32;
    float sum = i < n ? in[i] : 0.0f;
    for (int distance = 16; distance; distance /= 2) sum += __shfl_down_sync(0xffffffffu, sum, distance);
    if (lane == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int warp = 1; warp < int(blockDim.x) / 32; warp++) sum += part[warp];
        out[blockIdx.x] = sum;
    }
}

// Barriers that count.
extern "C" __global__ void counts(int* out, int limit) {
    const bool below = int(threadIdx.x) < limit;
    const int count = __syncthreads_count(below), any = __syncthreads_or(below), all = __syncthreads_and(below);
    out[threadIdx.x] = count * 4 + any * 2 + all;
}

// One counter and one largest number for all blocks.
extern "C" __global__ void atomics(int* counter, float* sum, int* largest, unsigned* swapped) {
    atomicAdd(counter, 1);
    atomicAdd(sum, 0.5f);
    atomicMax(largest, int(blockIdx.x * 1000 + threadIdx.x));
    atomicCAS(swapped, 0u, blockIdx.x * 1000 + threadIdx.x + 1);
}
