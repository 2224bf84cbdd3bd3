// Products of weights and activations: the entries, by format and number of tokens. See matmul.cuh.
#include "matmul.cuh"

extern "C" __global__ void __launch_bounds__(256, 1) few8_f32(MatmulArgs args) { few<F32, 1>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) few32_f32(MatmulArgs args) { few<F32, 4>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) many_f32(MatmulArgs args) { many<F32>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) few8_f16(MatmulArgs args) { few<F16, 1>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) few32_f16(MatmulArgs args) { few<F16, 4>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) many_f16(MatmulArgs args) { many<F16>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) few8_bf16(MatmulArgs args) { few<Bf16, 1>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) few32_bf16(MatmulArgs args) { few<Bf16, 4>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) many_bf16(MatmulArgs args) { many<Bf16>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) few8_q4_0(MatmulArgs args) { few<Q4_0, 1>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) few32_q4_0(MatmulArgs args) { few<Q4_0, 4>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) many_q4_0(MatmulArgs args) { many<Q4_0>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) few8_q4_1(MatmulArgs args) { few<Q4_1, 1>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) few32_q4_1(MatmulArgs args) { few<Q4_1, 4>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) many_q4_1(MatmulArgs args) { many<Q4_1>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) few8_q5_0(MatmulArgs args) { few<Q5_0, 1>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) few32_q5_0(MatmulArgs args) { few<Q5_0, 4>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) many_q5_0(MatmulArgs args) { many<Q5_0>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) few8_q5_1(MatmulArgs args) { few<Q5_1, 1>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) few32_q5_1(MatmulArgs args) { few<Q5_1, 4>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) many_q5_1(MatmulArgs args) { many<Q5_1>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) few8_q8_0(MatmulArgs args) { few<Q8_0, 1>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) few32_q8_0(MatmulArgs args) { few<Q8_0, 4>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) many_q8_0(MatmulArgs args) { many<Q8_0>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) few8_q2_k(MatmulArgs args) { few<Q2_K, 1>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) few32_q2_k(MatmulArgs args) { few<Q2_K, 4>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) many_q2_k(MatmulArgs args) { many<Q2_K>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) few8_q3_k(MatmulArgs args) { few<Q3_K, 1>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) few32_q3_k(MatmulArgs args) { few<Q3_K, 4>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) many_q3_k(MatmulArgs args) { many<Q3_K>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) few8_q4_k(MatmulArgs args) { few<Q4_K, 1>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) few32_q4_k(MatmulArgs args) { few<Q4_K, 4>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) many_q4_k(MatmulArgs args) { many<Q4_K>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) few8_q5_k(MatmulArgs args) { few<Q5_K, 1>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) few32_q5_k(MatmulArgs args) { few<Q5_K, 4>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) many_q5_k(MatmulArgs args) { many<Q5_K>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) few8_q6_k(MatmulArgs args) { few<Q6_K, 1>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) few32_q6_k(MatmulArgs args) { few<Q6_K, 4>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) many_q6_k(MatmulArgs args) { many<Q6_K>(args); }
