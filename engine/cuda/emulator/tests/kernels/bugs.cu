// Planted bugs, each beside what would be right. tests/bugs.rs says how each is caught.

// Right: `__syncthreads()` between writing and reading.
extern "C" __global__ void missing_barrier(float* out, int right) {
    __shared__ float value[64];
    value[threadIdx.x] = float(threadIdx.x);
    if (right) __syncthreads();
    out[threadIdx.x] = value[63 - threadIdx.x];
}

// Right: lane 8 i + j points to row j of matrix i.
extern "C" __global__ void wrong_ldmatrix_lane(unsigned* out, int right) {
    __shared__ __align__(16) unsigned short tile[4][8][8];
    const int lane = threadIdx.x;
    for (int i = lane; i < 256; i += 32) tile[i / 64][i / 8 % 8][i % 8] = (unsigned short)i;
    __syncwarp();
    unsigned r[4];
    ldmatrix_x4(r, right ? tile[lane / 8][lane % 8] : tile[lane % 4][lane / 4]);
    for (int i = 0; i < 4; i++) out[lane * 4 + i] = r[i];
}

// Right: `i < n`.
extern "C" __global__ void read_past_the_end(float* out, const float* in, int n, int right) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < n + (right ? 0 : 1); i += blockDim.x) sum += in[i];
    out[threadIdx.x] = sum;
}

extern "C" __global__ void write_before_the_beginning(float* out, int right) { out[int(threadIdx.x) - (right ? 0 : 1)] = 1.0f; }

// Right: every element is written before it is read.
extern "C" __global__ void uninitialised_shared_memory(float* out, int right) {
    __shared__ float value[64];
    if (right || threadIdx.x < 63) value[threadIdx.x] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = value[threadIdx.x];
}

extern "C" __global__ void uninitialised_device_memory(float* out, const float* never_written) { out[threadIdx.x] = never_written[threadIdx.x] * 2.0f; }

// Right: wait before the barrier.
extern "C" __global__ void missing_copy_wait(float* out, const float* in, int right) {
    __shared__ __align__(16) float stage[128];
    cp_async16(&stage[threadIdx.x * 4], in + threadIdx.x * 4);
    cp_async_commit();
    if (right) cp_async_wait<0>();
    __syncthreads();
    for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = stage[threadIdx.x * 4 + i];
}

// Right: a barrier behind the wait, since each thread waits for its own copies alone.
extern "C" __global__ void missing_barrier_after_copy(float* out, const float* in, int right) {
    __shared__ __align__(16) float stage[256];
    cp_async16(&stage[threadIdx.x * 4], in + threadIdx.x * 4);
    cp_async_commit();
    cp_async_wait<0>();
    if (right) __syncthreads();
    out[threadIdx.x] = stage[(63 - threadIdx.x) * 4];
}

// Right: a source within the mask.
extern "C" __global__ void shuffle_from_inactive_lane(int* out, int right) {
    if (threadIdx.x >= 16) return;
    out[threadIdx.x] = __shfl_sync(0x0000ffffu, int(threadIdx.x), right ? 3 : 20);
}

// Right: lanes leave after the shuffle.
extern "C" __global__ void shuffle_with_lanes_that_left(int* out, int right) {
    if (!right && threadIdx.x >= 16) return;
    out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, int(threadIdx.x), 1);
}

// Right: the smallest is taken with an atomic operation.
extern "C" __global__ void race_of_orders(int* out, int right) {
    __shared__ int winner;
    if (threadIdx.x == 0) winner = 1 << 30;
    __syncthreads();
    if (right) {
        atomicMin(&winner, int(threadIdx.x));
    } else {
        winner = int(threadIdx.x);
    }
    __syncthreads();
    out[threadIdx.x] = winner;
}

// Right: one barrier for all.
extern "C" __global__ void divergent_barrier(int* out, int right) {
    if (right) {
        __syncthreads();
    } else if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        out[threadIdx.x] = 0;
        __syncthreads();
    }
    out[threadIdx.x] = 1;
}

// Right: nobody leaves before a barrier.
extern "C" __global__ void barrier_after_some_left(int* out, int right) {
    if (!right && threadIdx.x >= 48) return;
    __syncthreads();
    out[threadIdx.x] = 1;
}

extern "C" __global__ void write_past_shared_array(float* out, int right) {
    __shared__ float value[32];
    value[threadIdx.x + (right ? 0 : 1)] = 1.0f;
    out[threadIdx.x] = 1.0f;
}

extern "C" __global__ void write_past_dynamic_memory(float* out, int right) {
    extern __shared__ __align__(16) float all[];
    all[threadIdx.x + (right ? 0 : 1)] = 1.0f;
    out[threadIdx.x] = 1.0f;
}

// Right: an address that is a multiple of 16.
extern "C" __global__ void misaligned_load(float* out, const float* in, int right) {
    const float4 four = *reinterpret_cast<const float4*>(in + (right ? 4 : 1));
    out[threadIdx.x] = four.x;
}

// Lanes of a warp at two operations at once.
extern "C" __global__ void diverged_warp(int* out, int right) {
    const int lane = threadIdx.x;
    if (right || lane < 16) {
        out[lane] = __shfl_sync(0xffffffffu, lane, 0);
    } else {
        out[lane] = int(__ballot_sync(0xffffffffu, 1));
    }
}

extern "C" __global__ void endless_recursion(int* out, int right) {
    struct Deeper {
        static __attribute__((noinline)) int call(volatile int* at, int depth) {
            volatile char room[256];
            room[depth % 256] = char(depth);
            return depth == 0 ? 0 : call(at, depth - 1) + room[depth % 256];
        }
    };
    out[threadIdx.x] = Deeper::call(out, right ? 3 : 1 << 20);
}

extern "C" __global__ void division_by_zero(int* out, int right) { out[threadIdx.x] = 100 / (right ? 5 : out[threadIdx.x] - 20); }
