// The driver's beginnings: start, devices and what they can do, contexts, names of errors.
#include "api.hpp"

namespace emu {
namespace {
/// For a process that no test runs in, see `driver_folder` in src/lib.rs.
Settings from_environment() {
    Settings out;
    if (const char* bytes = getenv("FORESHOCK_EMULATOR_MEMORY")) out.memory_bytes = strtoull(bytes, nullptr, 10);
    if (const char* lose = getenv("FORESHOCK_EMULATOR_LOSE_DEVICE")) {
        char* end = nullptr;
        out.fail_launch_in = strtoull(lose, &end, 10);
        out.fail_launch_with = *end == ':' ? atoi(end + 1) : int(Fault::LaunchFailed);
    }
    return out;
}
}  // namespace

Settings settings = from_environment();
Counters counters;

std::recursive_mutex& driver_lock() {
    static std::recursive_mutex lock;
    return lock;
}
unsigned most_dynamic_shared() {
    const int capability = settings.capability_major * 10 + settings.capability_minor;
    if (capability == 86 || capability == 89 || capability >= 120) return 99 << 10;
    return capability < 90 ? 163 << 10 : 227 << 10;
}
bool strikes(uint64_t& in) { return in && --in == 0; }
int stick(int error) {
    // After these, CUDA answers every call in the process with the same error.
    const bool lost = error == ILLEGAL_ADDRESS || error == int(Fault::LaunchTimeout) || error == int(Fault::Misaligned) ||
                      error == int(Fault::LaunchFailed) || error == settings.fail_launch_with;
    if (error && lost) settings.sticky = error;
    return error;
}

namespace {
bool started = false;
thread_local void* current_context = nullptr;
char primary, other;
constexpr int COMPUTE_CAPABILITY_MAJOR = 75, COMPUTE_CAPABILITY_MINOR = 76;

int attribute(int number) {
    switch (number) {
        case 1: return 1024;           // threads in a block
        case 2: case 3: return 1024;   // a block's x and y
        case 4: return 64;             // a block's z
        case 5: return 2147483647;     // a grid's x
        case 6: case 7: return 65535;  // a grid's y and z
        case 8: return 48 << 10;       // shared memory of a block, by default
        case 10: return 32;            // warp size
        case 12: return 65536;         // registers of a block
        case 13: return 1000000;       // kHz
        case 16: return 4;             // multiprocessors: few, so that tests reach many blocks for each
        case 36: return 1000000;       // kHz of memory
        case 37: return 1024;          // bits of its bus
        case 38: return 1 << 20;       // bytes of L2
        case 39: return 2048;          // threads of a multiprocessor
        case 41: return 1;             // unified addressing
        case 81: return int(most_dynamic_shared() + (1 << 10));  // shared memory of a multiprocessor
        case 97: return int(most_dynamic_shared());              // shared memory of a block, on request
        case 102: return 1;            // virtual memory calls
        case 115: return 1;            // memory pools
        case COMPUTE_CAPABILITY_MAJOR: return settings.capability_major;
        case COMPUTE_CAPABILITY_MINOR: return settings.capability_minor;
        default: return 0;
    }
}

struct Name {
    int error;
    const char *name, *text;
};
constexpr Name NAMES[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {702, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
    {716, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};
const Name& name_of(int error) {
    for (const Name& one : NAMES) {
        if (one.error == error) return one;
    }
    return NAMES[sizeof NAMES / sizeof *NAMES - 1];
}
}  // namespace

API cuInit(unsigned) {
    const Guarded guard;
    if (settings.devices == 0) return NO_DEVICE;
    started = true;
    return SUCCESS;
}
API cuDriverGetVersion(int* out) {
    *out = settings.driver_version;
    return SUCCESS;
}
API cuDeviceGetCount(int* out) {
    *out = settings.devices;
    return started ? SUCCESS : NOT_INITIALIZED;
}
API cuDeviceGet(int* out, int ordinal) {
    *out = ordinal;
    return ordinal >= 0 && ordinal < settings.devices ? SUCCESS : INVALID_DEVICE;
}
API cuDeviceGetName(char* out, int bytes, int) {
    snprintf(out, size_t(bytes), "emulated GPU");
    return SUCCESS;
}
API cuDeviceGetUuid_v2(unsigned char* out, int device) {
    for (int i = 0; i < 16; i++) out[i] = (unsigned char)(device + 1);
    return SUCCESS;
}
API cuDeviceGetUuid(unsigned char* out, int device) { return cuDeviceGetUuid_v2(out, device); }
API cuDeviceTotalMem_v2(size_t* out, int) {
    *out = settings.memory_bytes;
    return SUCCESS;
}
API cuDeviceGetAttribute(int* out, int number, int) {
    *out = attribute(number);
    return SUCCESS;
}
API cuDevicePrimaryCtxRetain(void** out, int device) {
    const Guarded guard;
    if (guard.error) return guard.error;
    *out = device == 0 ? &primary : &other;
    return started ? SUCCESS : NOT_INITIALIZED;
}
API cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API cuCtxSetCurrent(void* context) {
    current_context = context;
    const Guarded guard;
    return guard.error;
}
API cuCtxGetCurrent(void** out) {
    *out = current_context;
    return SUCCESS;
}
API cuCtxSynchronize() {
    const Guarded guard;
    if (guard.error) return guard.error;
    if (is_any_capturing()) return CAPTURE_UNSUPPORTED;
    counters.synchronisations++;
    return drain_all();
}
API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0;
    *greatest = -5;
    return SUCCESS;
}
API cuCtxSetFlags(unsigned) { return SUCCESS; }
API cuCtxSetLimit(int, size_t) { return SUCCESS; }
API cuCtxGetLimit(size_t* out, int) {
    *out = 0;
    return SUCCESS;
}
API cuProfilerStart() { return SUCCESS; }
API cuProfilerStop() { return SUCCESS; }
API cuGetErrorName(int error, const char** out) {
    *out = name_of(error).name;
    return SUCCESS;
}
API cuGetErrorString(int error, const char** out) {
    *out = name_of(error).text;
    return SUCCESS;
}
}  // namespace emu
