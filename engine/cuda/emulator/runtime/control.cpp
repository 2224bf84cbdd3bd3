// What a test sets and reads, called by the Rust package (src/control.rs), never by the product.
#include "api.hpp"
#include <cstring>
#include <memory>
#define CONTROL extern "C" __attribute__((visibility("default"))) void

namespace emu {
/// A device as new: nothing allocated, no settings.
CONTROL foreshock_emulator_reset() {
    const Guarded guard;
    forget_streams();
    forget_memory();
    forget_functions();
    settings = Settings{};
    counters = Counters{};
    set_order(Order::Forward, 0);
    set_submission(false, 0);
    set_fault("");
}
CONTROL foreshock_emulator_order(int order, uint64_t seed) {
    const Guarded guard;
    set_order(Order(order), seed);
}
CONTROL foreshock_emulator_submission(int deferred, uint64_t seed) {
    const Guarded guard;
    set_submission(deferred != 0, seed);
}
CONTROL foreshock_emulator_memory(uint64_t bytes) {
    const Guarded guard;
    settings.memory_bytes = bytes;
}
CONTROL foreshock_emulator_devices(int count, int capability_major, int capability_minor, int driver_version) {
    const Guarded guard;
    settings.devices = count;
    settings.capability_major = capability_major;
    settings.capability_minor = capability_minor;
    settings.driver_version = driver_version;
}
/// The `nth` allocation from now (1 is the next) fails with an error; 0 takes it back.
CONTROL foreshock_emulator_fail_allocation(uint64_t nth, int error) {
    const Guarded guard;
    settings.fail_allocation_in = nth;
    settings.fail_allocation_with = error;
}
/// The `nth` launch from now fails with an error, and everything after it.
CONTROL foreshock_emulator_fail_launch(uint64_t nth, int error) {
    const Guarded guard;
    settings.fail_launch_in = nth;
    settings.fail_launch_with = error;
}
/// After its `nth` launch from now, a kernel has written 0xff over the first bytes behind a pointer among its arguments: the one
/// that stands at word `argument` of them, words having 8 bytes and an argument beginning a new one.
CONTROL foreshock_emulator_corrupt(const char* kernel, uint64_t nth, int argument, uint64_t bytes) {
    const Guarded guard;
    settings.corrupt_kernel = kernel;
    settings.corrupt_in = nth;
    settings.corrupt_argument = argument;
    settings.corrupt_bytes = bytes;
}
/// Text of the last fault, cut to `room` bytes with a zero at the end.
CONTROL foreshock_emulator_fault(char* out, uint64_t room) {
    const Guarded guard;
    snprintf(out, room, "%s", last_fault().c_str());
}
/// Launches, launches of graphs, host synchronisations, copies, blocks, switches of fibers, live allocations, bytes in use.
CONTROL foreshock_emulator_counters(uint64_t* out) {
    const Guarded guard;
    const uint64_t values[] = {counters.launches, counters.graph_launches, counters.synchronisations, counters.copies,
                               block_count(),     switch_count(),          live_allocations(),        memory_used()};
    memcpy(out, values, sizeof values);
}
/// For the plain cublasLt, which is a library of its own: work on a stream.
extern "C" __attribute__((visibility("default"))) int foreshock_emulator_submit(void* stream, int (*work)(void*), void* data,
                                                                                 void (*drop)(void*)) {
    const Guarded guard;
    if (guard.error) return guard.error;
    const std::shared_ptr<void> kept(data, drop);
    return submit(stream, [work, kept] { return work(kept.get()); });
}
extern "C" __attribute__((visibility("default"))) int foreshock_emulator_is_device_memory(uint64_t at, uint64_t bytes) {
    const Guarded guard;
    return is_device_memory(at, bytes);
}
}  // namespace emu
