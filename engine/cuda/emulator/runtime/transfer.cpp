// Allocation calls, copies and fills. Copies from and to memory that the driver does not know take effect before the call
// returns, as a real driver stages them; with registered memory they are as late as any other work.
#include "api.hpp"
#include <cstring>

namespace emu {
namespace {
int copy_to_device(Address to, const void* from, size_t bytes, void* stream) {
    const Guarded guard;
    if (guard.error) return guard.error;
    if (!is_device_memory(to, bytes)) return INVALID_VALUE;
    counters.copies++;
    if (is_pinned(from, bytes)) {
        return submit(stream, [=] {
            memcpy(reinterpret_cast<void*>(to), from, bytes);
            return SUCCESS;
        });
    }
    if (is_capturing(stream)) return CAPTURE_UNSUPPORTED;
    const auto* begin = static_cast<const char*>(from);
    return submit(stream, [to, staged = std::vector<char>(begin, begin + bytes)] {
        memcpy(reinterpret_cast<void*>(to), staged.data(), staged.size());
        return SUCCESS;
    });
}
int copy_to_host(void* to, Address from, size_t bytes, void* stream) {
    const Guarded guard;
    if (guard.error) return guard.error;
    if (!is_device_memory(from, bytes)) return INVALID_VALUE;
    counters.copies++;
    const auto work = [=] {
        memcpy(to, reinterpret_cast<void*>(from), bytes);
        return SUCCESS;
    };
    if (is_pinned(to, bytes)) return submit(stream, work);
    if (is_capturing(stream)) return CAPTURE_UNSUPPORTED;
    const int error = submit(stream, work);
    return error ? error : drain(stream);
}
int copy_on_device(Address to, Address from, size_t bytes, void* stream) {
    const Guarded guard;
    if (guard.error) return guard.error;
    if (!is_device_memory(to, bytes) || !is_device_memory(from, bytes)) return INVALID_VALUE;
    counters.copies++;
    return submit(stream, [=] {
        memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes);
        return SUCCESS;
    });
}
template <class T> int fill(Address at, T value, size_t count, void* stream) {
    const Guarded guard;
    if (guard.error) return guard.error;
    if (!is_device_memory(at, count * sizeof(T))) return INVALID_VALUE;
    return submit(stream, [=] {
        T* begin = reinterpret_cast<T*>(at);
        for (size_t i = 0; i < count; i++) begin[i] = value;
        return SUCCESS;
    });
}
/// A call that a capture does not allow, since it could wait for the work that is captured.
int outside_captures(int (*work)(Address*, size_t), Address* out, size_t bytes) {
    const Guarded guard;
    if (guard.error) return guard.error;
    return is_any_capturing() ? CAPTURE_UNSUPPORTED : work(out, bytes);
}
int synchronously(int error) { return error ? error : drain_all(); }
}  // namespace

API cuMemAlloc_v2(Address* out, size_t bytes) { return outside_captures(allocate, out, bytes); }
API cuMemAllocAsync(Address* out, size_t bytes, void* stream) {
    const Guarded guard;
    if (guard.error) return guard.error;
    return is_capturing(stream) ? NOT_SUPPORTED : allocate(out, bytes);
}
API cuMemFree_v2(Address at) {
    const Guarded guard;
    if (guard.error) return guard.error;
    if (is_any_capturing()) return CAPTURE_UNSUPPORTED;
    const int error = drain_all();
    return error ? error : release(at);
}
API cuMemFreeAsync(Address at, void* stream) {
    const Guarded guard;
    if (guard.error) return guard.error;
    return is_capturing(stream) ? NOT_SUPPORTED : submit(stream, [at] { return release(at); });
}
API cuMemGetInfo_v2(size_t* free, size_t* total) {
    const Guarded guard;
    if (guard.error) return guard.error;
    *total = settings.memory_bytes;
    *free = settings.memory_bytes - memory_used();
    return SUCCESS;
}
API cuMemHostAlloc(void** out, size_t bytes, unsigned) {
    const Guarded guard;
    return guard.error ? guard.error : allocate_host(out, bytes);
}
API cuMemAllocHost_v2(void** out, size_t bytes) { return cuMemHostAlloc(out, bytes, 0); }
API cuMemFreeHost(void* at) {
    const Guarded guard;
    const int error = drain_all();
    return error ? error : release_host(at);
}
API cuMemHostRegister_v2(void* at, size_t bytes, unsigned) {
    const Guarded guard;
    return guard.error ? guard.error : register_host(at, bytes);
}
API cuMemHostUnregister(void* at) {
    const Guarded guard;
    const int error = drain_all();
    return error ? error : unregister_host(at);
}
API cuMemHostGetDevicePointer_v2(Address* out, void* at, unsigned) {
    const Guarded guard;
    if (guard.error) return guard.error;
    if (!is_pinned(at, 1)) return INVALID_VALUE;
    *out = Address(at);
    return SUCCESS;
}

API cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, void* stream) { return copy_to_device(to, from, bytes, stream); }
API cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, void* stream) { return copy_to_host(to, from, bytes, stream); }
API cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void* stream) { return copy_on_device(to, from, bytes, stream); }
API cuMemcpyHtoD_v2(Address to, const void* from, size_t bytes) {
    const Guarded guard;
    return synchronously(copy_to_device(to, from, bytes, nullptr));
}
API cuMemcpyDtoH_v2(void* to, Address from, size_t bytes) {
    const Guarded guard;
    return synchronously(copy_to_host(to, from, bytes, nullptr));
}
API cuMemcpyDtoD_v2(Address to, Address from, size_t bytes) {
    const Guarded guard;
    return synchronously(copy_on_device(to, from, bytes, nullptr));
}
API cuMemsetD8Async(Address at, unsigned char value, size_t count, void* stream) { return fill(at, value, count, stream); }
API cuMemsetD16Async(Address at, unsigned short value, size_t count, void* stream) { return fill(at, value, count, stream); }
API cuMemsetD32Async(Address at, unsigned value, size_t count, void* stream) { return fill(at, value, count, stream); }
API cuMemsetD8_v2(Address at, unsigned char value, size_t count) { return fill(at, value, count, nullptr); }
API cuMemsetD32_v2(Address at, unsigned value, size_t count) { return fill(at, value, count, nullptr); }
}  // namespace emu
