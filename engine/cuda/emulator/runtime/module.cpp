// Modules and launches. Any image is accepted: the kernels are those that were compiled into this library, found by name.
#include "api.hpp"
#include <algorithm>
#include <cstring>
#include <map>

namespace emu {
namespace {
constexpr int MOST_DYNAMIC_ATTRIBUTE = 8;
constexpr unsigned DEFAULT_DYNAMIC = 48 << 10;
struct Function {
    const Kernel* kernel;
    unsigned dynamic_allowed = DEFAULT_DYNAMIC;
};
std::map<std::string, Function>& functions() {
    static std::map<std::string, Function> table;
    return table;
}

bool grid_is_valid(dim3 grid, dim3 size) {
    const bool any_is_zero = !grid.x || !grid.y || !grid.z || !size.x || !size.y || !size.z;
    return !any_is_zero && grid.x <= 2147483647u && grid.y <= 65535 && grid.z <= 65535 && size.x <= 1024 && size.y <= 1024 &&
           size.z <= 64 && size.x * size.y * size.z <= 1024;
}

/// A launch with its arguments' values, as CUDA takes them when it is called.
struct Prepared {
    const Kernel* kernel;
    dim3 grid, size;
    unsigned dynamic_bytes;
    std::vector<std::vector<char>> values;
};
int check(const Function& function, const Prepared& launch) {
    const Kernel& kernel = *launch.kernel;
    if (!grid_is_valid(launch.grid, launch.size) || launch.dynamic_bytes > function.dynamic_allowed) return INVALID_VALUE;
    if (launch.size.x * launch.size.y * launch.size.z > kernel.most_threads) return OUT_OF_RESOURCES;
    return SUCCESS;
}
/// Pointers are looked at when the kernel runs: memory may be mapped after a graph was captured.
int check_pointers(const Prepared& launch) {
    for (size_t i = 0; i < launch.values.size(); i++) {
        if (!launch.kernel->parameters[i].is_pointer) continue;
        Address at = 0;
        memcpy(&at, launch.values[i].data(), sizeof at);
        if (is_known_pointer(at)) continue;
        set_fault("argument " + std::to_string(i) + " of kernel " + launch.kernel->name + " points to no device memory" +
                  describe_address(reinterpret_cast<void*>(at)));
        return ILLEGAL_ADDRESS;
    }
    return SUCCESS;
}
/// Eight bytes of the arguments laid end to end, each from a multiple of eight on; 0 past their end.
Address word_of(const Prepared& launch, size_t word) {
    for (const auto& value : launch.values) {
        const size_t words = (value.size() + 7) / 8;
        Address out = 0;
        if (word < words) return memcpy(&out, value.data() + word * 8, std::min<size_t>(8, value.size() - word * 8)), out;
        word -= words;
    }
    return 0;
}
void corrupt_if_asked(const Prepared& launch) {
    if (settings.corrupt_kernel != launch.kernel->name || !strikes(settings.corrupt_in)) return;
    const Address at = word_of(launch, size_t(settings.corrupt_argument));
    if (is_device_memory(at, settings.corrupt_bytes)) memset(reinterpret_cast<void*>(at), 0xff, settings.corrupt_bytes);
}
int run(const Prepared& launch) {
    counters.launches++;
    if (strikes(settings.fail_launch_in)) return settings.fail_launch_with;
    if (const int error = check_pointers(launch)) return error;
    std::vector<void*> arguments;
    for (const auto& value : launch.values) arguments.push_back(const_cast<char*>(value.data()));
    const int error = run_kernel({launch.kernel, launch.grid, launch.size, launch.dynamic_bytes, arguments.data()});
    if (!error) corrupt_if_asked(launch);
    return error;
}
}  // namespace

void forget_functions() {
    // Handles stay valid, as modules of an earlier test may still be there.
    for (auto& [name, function] : functions()) function.dynamic_allowed = DEFAULT_DYNAMIC;
}

API cuModuleLoadData(void** out, const void* image) {
    const Guarded guard;
    if (guard.error) return guard.error;
    if (!image) return INVALID_VALUE;
    *out = &functions();
    return SUCCESS;
}
API cuModuleLoadDataEx(void** out, const void* image, unsigned, void*, void*) { return cuModuleLoadData(out, image); }
API cuModuleLoad(void** out, const char* path) { return cuModuleLoadData(out, path); }
API cuModuleUnload(void*) { return SUCCESS; }
API cuModuleGetFunction(void** out, void* module, const char* name) {
    const Guarded guard;
    if (guard.error) return guard.error;
    if (!module || !name) return INVALID_VALUE;
    const Kernel* kernel = find_kernel(name);
    if (!kernel) return NOT_FOUND;
    *out = &functions().try_emplace(name, Function{kernel}).first->second;
    return SUCCESS;
}
API cuModuleGetGlobal_v2(Address*, size_t*, void*, const char*) { return NOT_FOUND; }
API cuFuncSetAttribute(void* handle, int attribute, int value) {
    const Guarded guard;
    if (guard.error) return guard.error;
    if (attribute != MOST_DYNAMIC_ATTRIBUTE) return SUCCESS;
    if (value < 0 || unsigned(value) > most_dynamic_shared()) return INVALID_VALUE;
    static_cast<Function*>(handle)->dynamic_allowed = unsigned(value);
    return SUCCESS;
}
API cuFuncSetCacheConfig(void*, int) { return SUCCESS; }
API cuFuncGetAttribute(int* out, int attribute, void* handle) {
    const auto* function = static_cast<Function*>(handle);
    *out = attribute == 0 ? int(function->kernel->most_threads) : attribute == MOST_DYNAMIC_ATTRIBUTE ? int(function->dynamic_allowed) : 0;
    return SUCCESS;
}
API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* out, void*, int, size_t) {
    *out = 1;
    return SUCCESS;
}
API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* out, void*, int, size_t, unsigned) {
    *out = 1;
    return SUCCESS;
}
API cuLaunchKernel(void* handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned dynamic_bytes,
                   void* stream, void** arguments, void** extra) {
    const Guarded guard;
    if (guard.error) return guard.error;
    const auto* function = static_cast<Function*>(handle);
    if (!function || extra) return INVALID_VALUE;
    Prepared launch{function->kernel, {gx, gy, gz}, {bx, by, bz}, dynamic_bytes, {}};
    if (const int error = check(*function, launch)) return error;
    for (size_t i = 0; i < launch.kernel->parameters.size(); i++) {
        const char* value = static_cast<const char*>(arguments[i]);
        launch.values.emplace_back(value, value + launch.kernel->parameters[i].bytes);
    }
    return submit(stream, [launch = std::move(launch)] { return run(launch); });
}
}  // namespace emu
