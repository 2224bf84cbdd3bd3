// Gated activations: SwiGLU and GeGLU (Shazeer 2020), the latter with the tanh form of GELU (Hendrycks and Gimpel 2016). The result is
// the input of a product.
//
// Bound by memory: 8 * width bytes read a token and 2 * width per plane written; some 12 operations a number.
#include "activations.cuh"

struct GateArgs {
    const float* gate_up;   // tokens x 2 width: gate, then up
    Activations to;
    int width;
    int gelu;
};

__device__ __forceinline__ float gated(float gate, float up, int gelu) {
    // 0.5 (1 + tanh u) = 1 / (1 + e^-2u), with u = sqrt(2 / pi) (x + 0.044715 x^3).
    const float logit = gelu ? 1.5957691f * fmaf(0.044715f, gate * gate * gate, gate) : gate;
    return gate / (1.0f + exp2f(-logit * LOG2_E)) * up;
}

// Grid: (256 columns, tokens), 256 threads.
extern "C" __global__ void __launch_bounds__(256, 1) gate_times_up(GateArgs args) {
    const int column = blockIdx.x * 256 + threadIdx.x, token = blockIdx.y;
    if (column >= args.to.stride) return;  // whole warps: the stride is a multiple of 64
    const float* row = args.gate_up + (long long)token * 2 * args.width;
    store_activation(args.to, token, column, column < args.width ? gated(row[column], row[args.width + column], args.gelu) : 0.0f);
}
