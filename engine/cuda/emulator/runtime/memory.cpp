// Device memory: every allocation ends at a page that cannot be touched, begins behind one, and is filled with 0xff.
// Freed addresses stay untouchable until the test ends, so that a use after free is found.
#include "memory.hpp"
#include "driver.hpp"
#include <algorithm>
#include <cerrno>
#include <sys/mman.h>

namespace emu {
namespace {
std::map<Address, Range> ranges, pinned;
std::vector<Range> buried;
size_t used = 0;

/// Whether bytes lie in one range, or in several side by side (memory that was mapped piece by piece).
bool covers(const std::map<Address, Range>& table, Address at, size_t bytes) {
    auto next = table.upper_bound(at);
    if (next == table.begin()) return false;
    Address end = std::prev(next)->second.begin + std::prev(next)->second.bytes;
    for (; end < at + bytes && next != table.end() && next->first == end; ++next) end += next->second.bytes;
    return at + bytes <= end;
}

/// Takes the memory back and keeps the addresses.
void bury(const Range& range) {
    mmap(range.mapping, range.mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    buried.push_back(range);
}

bool fence_is_whole(const Range& range) {
    const auto* byte = static_cast<const unsigned char*>(range.mapping) + PAGE;
    const auto* begin = reinterpret_cast<const unsigned char*>(range.begin);
    const auto* end = static_cast<const unsigned char*>(range.mapping) + range.mapped - PAGE;
    const auto is_poison = [](unsigned char b) { return b == POISON; };
    return std::all_of(byte, begin, is_poison) && std::all_of(begin + range.bytes, end, is_poison);
}
}  // namespace

std::map<Address, Range>& device_ranges() { return ranges; }
void take_memory(size_t bytes) { used += bytes; }
void give_memory(size_t bytes) { used -= bytes; }

void poison(void* at, size_t bytes) {
    // A page is only made where it is written, so large regions are poisoned at both ends.
    if (bytes <= MOST_POISON) {
        memset(at, POISON, bytes);
        return;
    }
    memset(at, POISON, MOST_POISON / 2);
    memset(static_cast<char*>(at) + bytes - MOST_POISON / 2, POISON, MOST_POISON / 2);
}

int allocate(Address* out, size_t bytes) {
    if (!bytes || !out) return INVALID_VALUE;
    if (strikes(settings.fail_allocation_in)) return settings.fail_allocation_with;
    if (bytes > settings.memory_bytes || used + bytes > settings.memory_bytes) return OUT_OF_MEMORY;
    const size_t room = (bytes + PAGE - 1) / PAGE * PAGE;
    void* mapping = mmap(nullptr, room + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) return OUT_OF_MEMORY;
    char* begin = static_cast<char*>(mapping) + PAGE;
    if (mprotect(begin, room, PROT_READ | PROT_WRITE)) return OUT_OF_MEMORY;
    poison(begin, room);
    // At the end of its pages, as far as 16-byte accesses allow.
    const Address at = Address(begin) + room - (bytes + 15) / 16 * 16;
    ranges[at] = {at, bytes, mapping, room + 2 * PAGE, true};
    used += bytes;
    *out = at;
    return SUCCESS;
}

int release(Address at) {
    if (!at) return SUCCESS;
    const auto found = ranges.find(at);
    if (found == ranges.end() || !found->second.is_allocation) return INVALID_VALUE;
    const Range range = found->second;
    const bool whole = fence_is_whole(range);
    ranges.erase(found);
    used -= range.bytes;
    bury(range);
    if (whole) return SUCCESS;
    set_fault("a write just outside of an allocation of " + std::to_string(range.bytes) + " bytes, found when it was freed");
    return stick(ILLEGAL_ADDRESS);
}

bool is_device_memory(Address at, size_t bytes) { return covers(ranges, at, bytes); }
bool is_pinned(const void* at, size_t bytes) { return covers(pinned, Address(at), bytes); }
bool is_known_pointer(Address at) { return at == 0 || covers(ranges, at, 0) || covers(pinned, at, 0); }

int register_host(void* at, size_t bytes) {
    if (!at || !bytes) return INVALID_VALUE;
    if (is_pinned(at, 1)) return HOST_MEMORY_ALREADY_REGISTERED;
    pinned[Address(at)] = {Address(at), bytes, nullptr, 0, false};
    return SUCCESS;
}
int unregister_host(void* at) { return pinned.erase(Address(at)) ? SUCCESS : HOST_MEMORY_NOT_REGISTERED; }

int allocate_host(void** out, size_t bytes) {
    if (!out || !bytes) return INVALID_VALUE;
    const size_t room = (bytes + PAGE - 1) / PAGE * PAGE;
    void* at = mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return OUT_OF_MEMORY;
    poison(at, room);
    pinned[Address(at)] = {Address(at), bytes, at, room, true};
    *out = at;
    return SUCCESS;
}
int release_host(void* at) {
    const auto found = pinned.find(Address(at));
    if (found == pinned.end() || !found->second.is_allocation) return INVALID_VALUE;
    munmap(found->second.mapping, found->second.mapped);
    pinned.erase(found);
    return SUCCESS;
}

size_t memory_used() { return used; }
size_t live_allocations() { return ranges.size(); }

void forget_memory() {
    forget_virtual_memory();
    for (const auto& [at, range] : ranges) {
        if (range.is_allocation) munmap(range.mapping, range.mapped);
    }
    for (const Range& range : buried) munmap(range.mapping, range.mapped);
    for (const auto& [at, range] : pinned) {
        if (range.is_allocation) munmap(range.mapping, range.mapped);
    }
    ranges.clear();
    buried.clear();
    pinned.clear();
    used = 0;
}

std::string describe_address(const void* pointer) {
    const Address at = Address(pointer);
    if (at < PAGE) return " (a null pointer)";
    for (const Range& range : buried) {
        if (at - Address(range.mapping) < range.mapped) return ", in an allocation of " + std::to_string(range.bytes) + " bytes that was freed";
    }
    for (const auto& [begin, range] : ranges) {
        if (at >= range.begin + range.bytes && at < range.begin + range.bytes + 2 * PAGE) {
            return ", " + std::to_string(at - range.begin - range.bytes) + " bytes past the end of an allocation of " +
                   std::to_string(range.bytes) + " bytes";
        }
        if (at < range.begin && at + PAGE >= range.begin) {
            return ", " + std::to_string(range.begin - at) + " bytes before an allocation of " + std::to_string(range.bytes) + " bytes";
        }
    }
    return describe_other_address(pointer);
}
}  // namespace emu
