// The driver's virtual-memory calls: addresses are reserved, memory is made, one is mapped to the other, access is granted.
// As on a GPU, both come in multiples of 2 MiB, and memory can be mapped at two addresses.
#include "api.hpp"
#include "fiber.hpp"
#include "memory.hpp"
#include <sys/mman.h>
#include <unistd.h>

namespace emu {
namespace {
constexpr size_t GRANULE = 2ull << 20;
struct Handle {
    int file;
    size_t bytes;
    /// By its owner and by each mapping.
    int uses;
};
struct Mapping {
    size_t bytes;
    unsigned long long handle;
};
std::map<Address, size_t> reserved;
std::map<unsigned long long, Handle> handles;
std::map<Address, Mapping> mappings;
unsigned long long next_handle = 1;

void unuse(unsigned long long id) {
    Handle& handle = handles.at(id);
    if (--handle.uses) return;
    close(handle.file);
    give_memory(handle.bytes);
    handles.erase(id);
}
bool is_reserved(Address at, size_t bytes) {
    auto after = reserved.upper_bound(at);
    if (after == reserved.begin()) return false;
    const auto& [begin, room] = *std::prev(after);
    return at + bytes <= begin + room;
}
void unmap(Address at) {
    const Mapping mapping = mappings.at(at);
    mmap(reinterpret_cast<void*>(at), mapping.bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    mappings.erase(at);
    device_ranges().erase(at);
    unuse(mapping.handle);
}
}  // namespace

void forget_virtual_memory() {
    while (!mappings.empty()) unmap(mappings.begin()->first);
    while (!handles.empty()) {
        handles.begin()->second.uses = 1;
        unuse(handles.begin()->first);
    }
    for (const auto& [at, bytes] : reserved) munmap(reinterpret_cast<void*>(at), bytes);
    reserved.clear();
}

std::string describe_other_address(const void* pointer) {
    if (is_reserved(Address(pointer), 1)) return ", which is reserved and has no memory mapped to it (or no access)";
    if (in_stack_guard(pointer)) return ": the stack of a kernel's thread is full";
    return ", which is neither device memory nor the block's shared memory";
}

API cuMemGetAllocationGranularity(size_t* out, const void*, int) {
    *out = GRANULE;
    return SUCCESS;
}

API cuMemAddressReserve(Address* out, size_t bytes, size_t, Address, unsigned long long) {
    const Guarded guard;
    if (guard.error) return guard.error;
    if (!out || !bytes || bytes % GRANULE) return INVALID_VALUE;
    void* wide = mmap(nullptr, bytes + 2 * GRANULE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (wide == MAP_FAILED) return OUT_OF_MEMORY;
    const Address at = (Address(wide) + GRANULE - 1) / GRANULE * GRANULE;
    if (at != Address(wide)) munmap(wide, at - Address(wide));
    // A page behind it stays untouchable.
    const Address end = Address(wide) + bytes + 2 * GRANULE;
    munmap(reinterpret_cast<void*>(at + bytes + PAGE), end - at - bytes - PAGE);
    reserved[at] = bytes + PAGE;
    *out = at;
    return SUCCESS;
}

API cuMemAddressFree(Address at, size_t bytes) {
    const Guarded guard;
    const auto found = reserved.find(at);
    if (found == reserved.end() || found->second != bytes + PAGE) return INVALID_VALUE;
    for (const auto& [begin, mapping] : mappings) {
        if (begin >= at && begin < at + bytes) return INVALID_VALUE;
    }
    munmap(reinterpret_cast<void*>(at), found->second);
    reserved.erase(found);
    return SUCCESS;
}

API cuMemCreate(unsigned long long* out, size_t bytes, const void*, unsigned long long) {
    const Guarded guard;
    if (guard.error) return guard.error;
    if (!out || !bytes || bytes % GRANULE) return INVALID_VALUE;
    if (strikes(settings.fail_allocation_in)) return settings.fail_allocation_with;
    if (bytes > settings.memory_bytes || memory_used() + bytes > settings.memory_bytes) return OUT_OF_MEMORY;
    const int file = memfd_create("emulated-device-memory", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, off_t(bytes))) return OUT_OF_MEMORY;
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (at == MAP_FAILED) return OUT_OF_MEMORY;
    poison(at, bytes);
    munmap(at, bytes);
    take_memory(bytes);
    handles[next_handle] = {file, bytes, 1};
    *out = next_handle++;
    return SUCCESS;
}

API cuMemRelease(unsigned long long id) {
    const Guarded guard;
    if (!handles.count(id)) return INVALID_VALUE;
    unuse(id);
    return SUCCESS;
}

API cuMemMap(Address at, size_t bytes, size_t offset, unsigned long long id, unsigned long long) {
    const Guarded guard;
    if (guard.error) return guard.error;
    const auto handle = handles.find(id);
    if (handle == handles.end() || offset || bytes != handle->second.bytes || !is_reserved(at, bytes)) return INVALID_VALUE;
    for (const auto& [begin, mapping] : mappings) {
        if (at < begin + mapping.bytes && begin < at + bytes) return ALREADY_MAPPED;
    }
    void* mapped = mmap(reinterpret_cast<void*>(at), bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, handle->second.file, 0);
    if (mapped == MAP_FAILED) return OUT_OF_MEMORY;
    handle->second.uses++;
    mappings[at] = {bytes, id};
    return SUCCESS;
}

API cuMemUnmap(Address at, size_t bytes) {
    const Guarded guard;
    if (const int error = drain_all()) return error;
    // As on a GPU, one call may undo several mappings that lie side by side.
    std::vector<Address> inside;
    size_t covered = 0;
    for (const auto& [begin, mapping] : mappings) {
        if (begin < at || begin + mapping.bytes > at + bytes) continue;
        inside.push_back(begin);
        covered += mapping.bytes;
    }
    if (!bytes || covered != bytes) return INVALID_VALUE;
    for (const Address begin : inside) unmap(begin);
    return SUCCESS;
}

/// `CUmemAccessDesc`: a location (type, id) and flags; 3 is reading and writing, 1 reading.
struct Access {
    int location_type, location_id, flags;
};
API cuMemSetAccess(Address at, size_t bytes, const Access* access, size_t count) {
    const Guarded guard;
    if (guard.error) return guard.error;
    if (!access || count != 1 || access->location_type != 1 || access->location_id != 0) return INVALID_VALUE;
    size_t covered = 0;
    for (const auto& [begin, mapping] : mappings) {
        if (begin < at || begin + mapping.bytes > at + bytes) continue;
        covered += mapping.bytes;
        const int protection = access->flags == 3 ? PROT_READ | PROT_WRITE : access->flags == 1 ? PROT_READ : PROT_NONE;
        mprotect(reinterpret_cast<void*>(begin), mapping.bytes, protection);
        if (access->flags) device_ranges()[begin] = {begin, mapping.bytes, nullptr, 0, false};
    }
    return covered == bytes && bytes ? SUCCESS : INVALID_VALUE;
}
}  // namespace emu
