// Conversions. Not for the hardware: its headers define these names by the rules that are tested here.

// The three formats there and back.
extern "C" __global__ void round_trips(float* bf16, float* f16, float* fp8, const float* in, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    bf16[i] = __bfloat162float(__float2bfloat16(in[i]));
    f16[i] = __half2float(__float2half(in[i]));
    fp8[i] = float(__nv_fp8_e4m3(in[i]));
}

extern "C" __global__ void fp8_values(float* out) {
    __nv_fp8_e4m3 number;
    number.__x = (unsigned char)threadIdx.x;
    out[threadIdx.x] = float(number);
}
