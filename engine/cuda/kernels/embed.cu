// Rows of the embedding matrix as the residual stream. Bound by memory: one row of weights read and 4 * width bytes written
// for each token; a number takes some ten operations to decode.
#include "embed.cuh"

extern "C" __global__ void __launch_bounds__(256, 1) embed_f32(EmbedArgs args) { embed<F32>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) embed_f16(EmbedArgs args) { embed<F16>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) embed_bf16(EmbedArgs args) { embed<Bf16>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) embed_q4_0(EmbedArgs args) { embed<Q4_0>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) embed_q4_1(EmbedArgs args) { embed<Q4_1>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) embed_q5_0(EmbedArgs args) { embed<Q5_0>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) embed_q5_1(EmbedArgs args) { embed<Q5_1>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) embed_q8_0(EmbedArgs args) { embed<Q8_0>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) embed_q2_k(EmbedArgs args) { embed<Q2_K>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) embed_q3_k(EmbedArgs args) { embed<Q3_K>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) embed_q4_k(EmbedArgs args) { embed<Q4_K>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) embed_q5_k(EmbedArgs args) { embed<Q5_K>(args); }
extern "C" __global__ void __launch_bounds__(256, 1) embed_q6_k(EmbedArgs args) { embed<Q6_K>(args); }
