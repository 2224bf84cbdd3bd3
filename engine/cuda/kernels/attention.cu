// Attention: the entries, by width of a head, KV's numbers, and warps that share KV. See attention.cuh.
#include "attention.cuh"

extern "C" __global__ void __launch_bounds__(32, 1) decode_bf16_32(AttendArgs args) { attend<32, Wide, 1>(args); }
extern "C" __global__ void __launch_bounds__(128, 1) prefill_bf16_32(AttendArgs args) { attend<32, Wide, 4>(args); }
extern "C" __global__ void __launch_bounds__(32, 1) decode_fp8_32(AttendArgs args) { attend<32, Fp8, 1>(args); }
extern "C" __global__ void __launch_bounds__(128, 1) prefill_fp8_32(AttendArgs args) { attend<32, Fp8, 4>(args); }
extern "C" __global__ void __launch_bounds__(32, 1) decode_bf16_64(AttendArgs args) { attend<64, Wide, 1>(args); }
extern "C" __global__ void __launch_bounds__(128, 1) prefill_bf16_64(AttendArgs args) { attend<64, Wide, 4>(args); }
extern "C" __global__ void __launch_bounds__(32, 1) decode_fp8_64(AttendArgs args) { attend<64, Fp8, 1>(args); }
extern "C" __global__ void __launch_bounds__(128, 1) prefill_fp8_64(AttendArgs args) { attend<64, Fp8, 4>(args); }
extern "C" __global__ void __launch_bounds__(32, 1) decode_bf16_96(AttendArgs args) { attend<96, Wide, 1>(args); }
extern "C" __global__ void __launch_bounds__(128, 1) prefill_bf16_96(AttendArgs args) { attend<96, Wide, 4>(args); }
extern "C" __global__ void __launch_bounds__(32, 1) decode_fp8_96(AttendArgs args) { attend<96, Fp8, 1>(args); }
extern "C" __global__ void __launch_bounds__(128, 1) prefill_fp8_96(AttendArgs args) { attend<96, Fp8, 4>(args); }
extern "C" __global__ void __launch_bounds__(32, 1) decode_bf16_128(AttendArgs args) { attend<128, Wide, 1>(args); }
extern "C" __global__ void __launch_bounds__(128, 1) prefill_bf16_128(AttendArgs args) { attend<128, Wide, 4>(args); }
extern "C" __global__ void __launch_bounds__(32, 1) decode_fp8_128(AttendArgs args) { attend<128, Fp8, 1>(args); }
extern "C" __global__ void __launch_bounds__(128, 1) prefill_fp8_128(AttendArgs args) { attend<128, Fp8, 4>(args); }
extern "C" __global__ void __launch_bounds__(32, 1) decode_bf16_256(AttendArgs args) { attend<256, Wide, 1>(args); }
extern "C" __global__ void __launch_bounds__(128, 1) prefill_bf16_256(AttendArgs args) { attend<256, Wide, 4>(args); }
extern "C" __global__ void __launch_bounds__(32, 1) decode_fp8_256(AttendArgs args) { attend<256, Fp8, 1>(args); }
extern "C" __global__ void __launch_bounds__(128, 1) prefill_fp8_256(AttendArgs args) { attend<256, Fp8, 4>(args); }

extern "C" __global__ void __launch_bounds__(256, 1) merge_splits(AttendArgs args) { merge(args); }
