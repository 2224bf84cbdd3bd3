// ldmatrix and mma over a warp's fragments: gathered into plain matrices, multiplied in rows of eight, scattered again.
// The sum over k runs upwards in f32; the hardware's order and rounding are its own, so tests compare within bounds.
#include "device.hpp"

namespace emu {
namespace {
typedef float Row __attribute__((vector_size(32)));
typedef int IntRow __attribute__((vector_size(32)));

struct Load {
    const void* row;
    unsigned* registers;
    int count;
    bool transposed;
};
void run_ldmatrix(void** arguments, unsigned) {
    const int count = static_cast<Load*>(arguments[0])->count;
    const bool transposed = static_cast<Load*>(arguments[0])->transposed;
    for (int m = 0; m < count; m++) {
        uint16_t matrix[8][8];
        for (int row = 0; row < 8; row++) memcpy(matrix[row], static_cast<Load*>(arguments[m * 8 + row])->row, 16);
        for (int lane = 0; lane < 32; lane++) {
            const int row = lane / 4, column = lane % 4 * 2;
            const uint16_t low = transposed ? matrix[column][row] : matrix[row][column];
            const uint16_t high = transposed ? matrix[column + 1][row] : matrix[row][column + 1];
            static_cast<Load*>(arguments[lane])->registers[m] = unsigned(high) << 16 | low;
        }
    }
}

template <class T> struct Multiply {
    T* d;
    const unsigned* a;
    const unsigned* b;
};
float low_bf16(unsigned pair) { return bits_as<float>(pair << 16); }
float high_bf16(unsigned pair) { return bits_as<float>(pair & 0xffff0000u); }
float low_f16(unsigned pair) { return f16_to_f32(uint16_t(pair)); }
float high_f16(unsigned pair) { return f16_to_f32(uint16_t(pair >> 16)); }

template <float (*Low)(unsigned), float (*High)(unsigned)> void run_16816(void** arguments, unsigned) {
    float a[16][16];
    alignas(32) float b[16][8], d[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const auto& one = *static_cast<Multiply<float>*>(arguments[lane]);
        const int group = lane / 4, pair = lane % 4 * 2;
        for (int i = 0; i < 4; i++) {
            float* at = &a[group + i % 2 * 8][pair + i / 2 * 8];
            at[0] = Low(one.a[i]);
            at[1] = High(one.a[i]);
        }
        for (int i = 0; i < 2; i++) {
            b[pair + i * 8][group] = Low(one.b[i]);
            b[pair + i * 8 + 1][group] = High(one.b[i]);
        }
        for (int i = 0; i < 4; i++) d[group + i / 2 * 8][pair + i % 2] = one.d[i];
    }
    for (int row = 0; row < 16; row++) {
        Row sum = *reinterpret_cast<Row*>(d[row]);
        for (int k = 0; k < 16; k++) sum += a[row][k] * *reinterpret_cast<Row*>(b[k]);
        *reinterpret_cast<Row*>(d[row]) = sum;
    }
    for (int lane = 0; lane < 32; lane++) {
        const auto& one = *static_cast<Multiply<float>*>(arguments[lane]);
        for (int i = 0; i < 4; i++) one.d[i] = d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    }
}

void run_s8_16832(void** arguments, unsigned) {
    int a[16][32];
    alignas(32) int b[32][8], d[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const auto& one = *static_cast<Multiply<int>*>(arguments[lane]);
        const int group = lane / 4, first = lane % 4 * 4;
        for (int byte = 0; byte < 4; byte++) {
            for (int i = 0; i < 4; i++) a[group + i % 2 * 8][first + byte + i / 2 * 16] = int8_t(one.a[i] >> 8 * byte);
            for (int i = 0; i < 2; i++) b[first + byte + i * 16][group] = int8_t(one.b[i] >> 8 * byte);
        }
        for (int i = 0; i < 4; i++) d[group + i / 2 * 8][lane % 4 * 2 + i % 2] = one.d[i];
    }
    for (int row = 0; row < 16; row++) {
        IntRow sum = *reinterpret_cast<IntRow*>(d[row]);
        for (int k = 0; k < 32; k++) sum += a[row][k] * *reinterpret_cast<IntRow*>(b[k]);
        *reinterpret_cast<IntRow*>(d[row]) = sum;
    }
    for (int lane = 0; lane < 32; lane++) {
        const auto& one = *static_cast<Multiply<int>*>(arguments[lane]);
        for (int i = 0; i < 4; i++) one.d[i] = d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    }
}

const WarpOperation LDMATRIX{"ldmatrix", run_ldmatrix};
const WarpOperation MMA_BF16{"mma.m16n8k16 bf16", run_16816<low_bf16, high_bf16>};
const WarpOperation MMA_F16{"mma.m16n8k16 f16", run_16816<low_f16, high_f16>};
const WarpOperation MMA_S8{"mma.m16n8k32 s8", run_s8_16832};
constexpr unsigned ALL = 0xffffffffu;

void need_whole_warp(const char* name) {
    if (current->warp->lanes != ALL) fault(Fault::LaunchFailed, "%s in a warp of fewer than 32 lanes", name);
}
}  // namespace

void ldmatrix(unsigned* registers, int count, const void* row, bool transposed) {
    need_whole_warp("ldmatrix");
    if (int(current->lane) < count * 8) {
        if (uintptr_t(row) % 16) fault(Fault::Misaligned, "ldmatrix: lane %u gives row %p, not aligned to 16 bytes", current->lane, row);
        if (!in_shared(row, 16)) fault(Fault::IllegalAddress, "ldmatrix: lane %u gives row %p, not in shared memory", current->lane, row);
    }
    Load arguments{row, registers, count, transposed};
    collective(ALL, LDMATRIX, &arguments);
}
void mma_bf16_16816(float* d, const unsigned* a, const unsigned* b) {
    need_whole_warp("mma");
    Multiply<float> arguments{d, a, b};
    collective(ALL, MMA_BF16, &arguments);
}
void mma_f16_16816(float* d, const unsigned* a, const unsigned* b) {
    need_whole_warp("mma");
    Multiply<float> arguments{d, a, b};
    collective(ALL, MMA_F16, &arguments);
}
void mma_s8_16832(int* d, const unsigned* a, const unsigned* b) {
    need_whole_warp("mma");
    Multiply<int> arguments{d, a, b};
    collective(ALL, MMA_S8, &arguments);
}
}  // namespace emu
