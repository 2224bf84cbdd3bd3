// Weights from a file's order to the kernels': the entries, by format. See pack.cuh.
#include "pack.cuh"

extern "C" __global__ void __launch_bounds__(32, 1) pack_f32(PackArgs args) { pack_words(args); }
extern "C" __global__ void __launch_bounds__(32, 1) pack_f16(PackArgs args) { pack_halves(args); }
extern "C" __global__ void __launch_bounds__(32, 1) pack_bf16(PackArgs args) { pack_halves(args); }
extern "C" __global__ void __launch_bounds__(32, 1) pack_q4_0(PackArgs args) { pack<Q4_0, StoredQ4_0>(args); }
extern "C" __global__ void __launch_bounds__(32, 1) pack_q4_1(PackArgs args) { pack<Q4_1, StoredQ4_1>(args); }
extern "C" __global__ void __launch_bounds__(32, 1) pack_q5_0(PackArgs args) { pack<Q5_0, StoredQ5_0>(args); }
extern "C" __global__ void __launch_bounds__(32, 1) pack_q5_1(PackArgs args) { pack<Q5_1, StoredQ5_1>(args); }
extern "C" __global__ void __launch_bounds__(32, 1) pack_q8_0(PackArgs args) { pack<Q8_0, StoredQ8_0>(args); }
extern "C" __global__ void __launch_bounds__(128, 1) pack_q2_k(PackArgs args) { pack<Q2_K, StoredQ2_K>(args); }
extern "C" __global__ void __launch_bounds__(128, 1) pack_q3_k(PackArgs args) { pack<Q3_K, StoredQ3_K>(args); }
extern "C" __global__ void __launch_bounds__(128, 1) pack_q4_k(PackArgs args) { pack<Q4_K, StoredQ4_K>(args); }
extern "C" __global__ void __launch_bounds__(128, 1) pack_q5_k(PackArgs args) { pack<Q5_K, StoredQ5_K>(args); }
extern "C" __global__ void __launch_bounds__(128, 1) pack_q6_k(PackArgs args) { pack<Q6_K, StoredQ6_K>(args); }
