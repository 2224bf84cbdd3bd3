// Plain kernels, for tests of the driver around them.

extern "C" __global__ void add_one(float* out, const float* in, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = in[i] + 1.0f;
}

extern "C" __global__ void __launch_bounds__(64) doubled(float* at) { at[threadIdx.x] *= 2.0f; }

extern "C" __global__ void fill_dynamic(float* out, int n) {
    extern __shared__ __align__(16) float room[];
    for (int i = threadIdx.x; i < n; i += blockDim.x) room[i] = float(i);
    __syncthreads();
    if (threadIdx.x == 0) out[0] = room[n - 1];
}
