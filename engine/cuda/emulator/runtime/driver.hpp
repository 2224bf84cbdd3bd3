// What the parts of the fake driver share: error numbers, device memory, streams, settings of the tests.
#pragma once
#include "device.hpp"
#include <functional>
#include <mutex>

namespace emu {
using Address = unsigned long long;
/// CUDA's numbers of those errors that the fake driver answers with.
enum Result : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    ALREADY_MAPPED = 208,
    NOT_MAPPED = 211,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    OUT_OF_RESOURCES = 701,
    HOST_MEMORY_ALREADY_REGISTERED = 712,
    HOST_MEMORY_NOT_REGISTERED = 713,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_UNMATCHED = 903,
    CAPTURE_UNJOINED = 904,
};

/// All state of the driver is changed under this lock, kernels included: one at a time.
std::recursive_mutex& driver_lock();

// Memory (memory.cpp).
int allocate(Address* out, size_t bytes);
int release(Address at);
bool is_device_memory(Address at, size_t bytes);
/// Device memory, its end, or host memory that was made known to the device.
bool is_known_pointer(Address at);
bool is_pinned(const void* at, size_t bytes);
int register_host(void* at, size_t bytes);
int unregister_host(void* at);
int allocate_host(void** out, size_t bytes);
int release_host(void* at);
size_t memory_used();
size_t live_allocations();
void forget_memory();

// Streams (stream.cpp). An operation runs at once, or when something waits for it if submission is deferred.
struct Stream;
using Operation = std::function<int()>;
int submit(void* stream, Operation operation);
/// Runs everything that is queued.
int drain_all();
int drain(void* stream);
bool is_capturing(void* stream);
bool is_any_capturing();
void forget_streams();
void set_submission(bool deferred, uint64_t seed);

/// Functions ask for no more shared memory than they have unasked (module.cpp).
void forget_functions();

/// What tests set and what they read, see control.cpp.
struct Settings {
    uint64_t memory_bytes = 4ull << 30;
    int devices = 1, capability_major = 9, capability_minor = 0, driver_version = 13000;
    /// The error that a lost device answers to everything, 0 while there is none.
    int sticky = 0;
    uint64_t fail_allocation_in = 0, fail_launch_in = 0;
    int fail_allocation_with = 0, fail_launch_with = 0;
    std::string corrupt_kernel;
    uint64_t corrupt_in = 0, corrupt_bytes = 0;
    int corrupt_argument = 0;
};
struct Counters {
    uint64_t launches = 0, graph_launches = 0, synchronisations = 0, copies = 0;
};
/// Dynamic shared memory that a block may ask for on a device of the set compute capability, bytes.
unsigned most_dynamic_shared();
extern Settings settings;
extern Counters counters;
/// Counts down a fail point that is to strike at its n-th time; whether it strikes now.
bool strikes(uint64_t& in);
/// Remembers an error that leaves the context unusable and gives it back.
int stick(int error);
}  // namespace emu
