// cublasLt in plain loops: the calls that cudarc makes, f32, f16 and bf16, column-major as in BLAS, bias and activation.
// A library of its own; work goes onto the streams of the fake driver. Sums run upwards over k in f32.
#include "../include/emulator/numbers.hpp"
#include <cmath>
#define BLAS extern "C" __attribute__((visibility("default"))) int

extern "C" int foreshock_emulator_submit(void* stream, int (*work)(void*), void* data, void (*drop)(void*));
extern "C" int foreshock_emulator_is_device_memory(uint64_t at, uint64_t bytes);

namespace {
enum Status { OK = 0, INVALID = 7, EXECUTION_FAILED = 13, UNSUPPORTED = 15 };
enum Type { F32 = 0, F16 = 2, BF16 = 14 };
enum LayoutAttribute { ROWS = 2, COLUMNS = 3, LEADING = 4, BATCH_COUNT = 5, BATCH_STRIDE = 6 };
enum MatmulAttribute { TRANSPOSE_A = 3, TRANSPOSE_B = 4, TRANSPOSE_C = 5, EPILOGUE = 7, BIAS_POINTER = 8, BIAS_STRIDE = 10 };
enum Epilogue { RELU = 2, BIAS_ADD = 4, GELU = 32, KNOWN = 1 | RELU | BIAS_ADD | GELU };
constexpr int ILLEGAL_ADDRESS = 700;

struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t leading;
    int32_t batch = 1;
    int64_t stride = 0;
};
struct Descriptor {
    int32_t transpose_a = 0, transpose_b = 0, transpose_c = 0, epilogue = 1;
    uint64_t bias = 0;
    int64_t bias_stride = 0;
};
struct Matrix {
    uint64_t at;
    Layout layout;
};
struct Work {
    Descriptor descriptor;
    Matrix a, b, c, d;
    float alpha, beta;
};
struct Heuristic {
    uint64_t algorithm[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

size_t width(int type) { return type == F32 ? 4 : 2; }
float load(const Matrix& m, int64_t index) {
    if (m.layout.type == F32) return reinterpret_cast<const float*>(m.at)[index];
    const uint16_t bits = reinterpret_cast<const uint16_t*>(m.at)[index];
    return m.layout.type == F16 ? emu::f16_to_f32(bits) : emu::bf16_to_f32(bits);
}
void store(const Matrix& m, int64_t index, float value) {
    if (m.layout.type == F32) {
        reinterpret_cast<float*>(m.at)[index] = value;
    } else {
        reinterpret_cast<uint16_t*>(m.at)[index] = m.layout.type == F16 ? emu::f32_to_f16(value) : emu::f32_to_bf16(value);
    }
}
/// Where element (row, column) of op(M) lies.
int64_t place(const Matrix& m, bool transposed, int64_t row, int64_t column, int64_t batch) {
    const int64_t within = transposed ? column + row * m.layout.leading : row + column * m.layout.leading;
    return batch * m.layout.stride + within;
}
bool lies_in_memory(const Matrix& m) {
    const int64_t last = place(m, false, int64_t(m.layout.rows) - 1, int64_t(m.layout.columns) - 1, m.layout.batch - 1);
    return last >= 0 && foreshock_emulator_is_device_memory(m.at, uint64_t(last + 1) * width(m.layout.type));
}
float activated(float value, int epilogue) {
    if (epilogue & RELU) return value > 0 ? value : 0;
    if (!(epilogue & GELU)) return value;
    return 0.5f * value * (1.0f + tanhf(0.7978845608f * (value + 0.044715f * value * value * value)));
}

int multiply(void* data) {
    const Work& w = *static_cast<Work*>(data);
    const int64_t rows = int64_t(w.d.layout.rows), columns = int64_t(w.d.layout.columns);
    const int64_t inner = int64_t(w.descriptor.transpose_a ? w.a.layout.rows : w.a.layout.columns);
    if (!lies_in_memory(w.a) || !lies_in_memory(w.b) || !lies_in_memory(w.d)) return ILLEGAL_ADDRESS;
    const Matrix bias{w.descriptor.bias, w.d.layout};
    for (int64_t batch = 0; batch < w.d.layout.batch; batch++) {
        for (int64_t column = 0; column < columns; column++) {
            for (int64_t row = 0; row < rows; row++) {
                float sum = 0;
                for (int64_t k = 0; k < inner; k++) {
                    sum += load(w.a, place(w.a, w.descriptor.transpose_a, row, k, batch)) *
                           load(w.b, place(w.b, w.descriptor.transpose_b, k, column, batch));
                }
                float value = w.alpha * sum;
                if (w.beta != 0) value += w.beta * load(w.c, place(w.c, false, row, column, batch));
                if (w.descriptor.epilogue & BIAS_ADD) value += load(bias, row + batch * w.descriptor.bias_stride);
                store(w.d, place(w.d, false, row, column, batch), activated(value, w.descriptor.epilogue));
            }
        }
    }
    return 0;
}
bool fits(const Layout& layout) {
    const bool known = layout.type == F32 || layout.type == F16 || layout.type == BF16;
    return known && layout.rows && layout.columns && layout.leading >= int64_t(layout.rows);
}
template <class T> int set(T& field, const void* value, size_t bytes) {
    if (bytes != sizeof(T)) return INVALID;
    memcpy(&field, value, sizeof(T));
    return OK;
}
}  // namespace

BLAS cublasLtCreate(void** out) {
    *out = new char;
    return OK;
}
BLAS cublasLtDestroy(void* handle) {
    delete static_cast<char*>(handle);
    return OK;
}
BLAS cublasLtMatrixLayoutCreate(void** out, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    *out = new Layout{type, rows, columns, leading};
    return OK;
}
BLAS cublasLtMatrixLayoutDestroy(void* layout) {
    delete static_cast<Layout*>(layout);
    return OK;
}
BLAS cublasLtMatrixLayoutSetAttribute(void* handle, int attribute, const void* value, size_t bytes) {
    auto& layout = *static_cast<Layout*>(handle);
    switch (attribute) {
        case ROWS: return set(layout.rows, value, bytes);
        case COLUMNS: return set(layout.columns, value, bytes);
        case LEADING: return set(layout.leading, value, bytes);
        case BATCH_COUNT: return set(layout.batch, value, bytes);
        case BATCH_STRIDE: return set(layout.stride, value, bytes);
        default: return UNSUPPORTED;
    }
}
BLAS cublasLtMatmulDescCreate(void** out, int, int) {
    *out = new Descriptor;
    return OK;
}
BLAS cublasLtMatmulDescDestroy(void* descriptor) {
    delete static_cast<Descriptor*>(descriptor);
    return OK;
}
BLAS cublasLtMatmulDescSetAttribute(void* handle, int attribute, const void* value, size_t bytes) {
    auto& descriptor = *static_cast<Descriptor*>(handle);
    switch (attribute) {
        case TRANSPOSE_A: return set(descriptor.transpose_a, value, bytes);
        case TRANSPOSE_B: return set(descriptor.transpose_b, value, bytes);
        case TRANSPOSE_C: return set(descriptor.transpose_c, value, bytes);
        case EPILOGUE: return set(descriptor.epilogue, value, bytes);
        case BIAS_POINTER: return set(descriptor.bias, value, bytes);
        case BIAS_STRIDE: return set(descriptor.bias_stride, value, bytes);
        default: return UNSUPPORTED;
    }
}
BLAS cublasLtMatmulPreferenceCreate(void** out) {
    *out = new char;
    return OK;
}
BLAS cublasLtMatmulPreferenceDestroy(void* preference) {
    delete static_cast<char*>(preference);
    return OK;
}
BLAS cublasLtMatmulPreferenceSetAttribute(void*, int, const void*, size_t) { return OK; }
BLAS cublasLtMatmulAlgoGetHeuristic(void*, void*, void* a, void* b, void* c, void* d, void*, int wanted, Heuristic* out, int* found) {
    const void* layouts[] = {a, b, c, d};
    *found = 0;
    for (const void* layout : layouts) {
        if (!fits(*static_cast<const Layout*>(layout))) return UNSUPPORTED;
    }
    if (wanted < 1) return INVALID;
    *out = Heuristic{};
    *found = 1;
    return OK;
}
BLAS cublasLtMatmul(void*, void* descriptor, const float* alpha, uint64_t a, void* a_layout, uint64_t b, void* b_layout,
                    const float* beta, uint64_t c, void* c_layout, uint64_t d, void* d_layout, const void*, void*, size_t, void* stream) {
    auto* work = new Work{*static_cast<Descriptor*>(descriptor),
                          {a, *static_cast<Layout*>(a_layout)},
                          {b, *static_cast<Layout*>(b_layout)},
                          {c, *static_cast<Layout*>(c_layout)},
                          {d, *static_cast<Layout*>(d_layout)},
                          *alpha,
                          *beta};
    const auto drop = [](void* data) { delete static_cast<Work*>(data); };
    if (work->descriptor.transpose_c || work->descriptor.epilogue & ~KNOWN) return drop(work), UNSUPPORTED;
    return foreshock_emulator_submit(stream, multiply, work, drop) ? EXECUTION_FAILED : OK;
}
BLAS cublasLtLoggerOpenFile(const char*) { return OK; }
BLAS cublasLtLoggerSetLevel(int) { return OK; }
