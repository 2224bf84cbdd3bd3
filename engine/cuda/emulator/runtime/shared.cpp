// Memory of a block: dynamic bytes that end at a guard page, and fenced slots for the arrays that kernels declare.
#include "device.hpp"
#include <sys/mman.h>

namespace emu {
namespace {
constexpr size_t PAGE = 4096;
/// Of an sm_90 and an sm_100: 227 KiB for a block, 48 KiB of them for declared arrays.
constexpr size_t MOST_SHARED = 227 << 10;
constexpr size_t MOST_DECLARED = 48 << 10;
constexpr size_t ARENA = 128 << 10;
constexpr size_t FENCE = 128;
constexpr unsigned char POISON = 0xff, FENCE_BYTE = 0xfe;

struct Slot {
    const void* tag;
    const char* name;
    char* at;
    size_t bytes;
};
struct Region {
    char* begin;
    size_t bytes;
};
/// Bytes between two pages that cannot be touched.
Region guarded(size_t bytes) {
    void* at = mmap(nullptr, bytes + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) abort();
    char* begin = static_cast<char*>(at) + PAGE;
    mprotect(begin, bytes, PROT_READ | PROT_WRITE);
    return {begin, bytes};
}

struct Shared {
    Region dynamic = guarded((MOST_SHARED + PAGE - 1) / PAGE * PAGE);
    Region arena = guarded(ARENA);
    std::vector<Slot> slots;
    size_t used = 0, declared = 0;
} memory;

bool is_filled(const char* at, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) {
        if (static_cast<unsigned char>(at[i]) != FENCE_BYTE) return false;
    }
    return true;
}
}  // namespace

void begin_shared(unsigned dynamic_bytes) {
    memory.slots.clear();
    memory.used = FENCE;
    memory.declared = 0;
    memset(memory.arena.begin, FENCE_BYTE, FENCE);
    const size_t rounded = (size_t(dynamic_bytes) + 15) / 16 * 16;
    block.dynamic_bytes = dynamic_bytes;
    block.dynamic_shared = memory.dynamic.begin + memory.dynamic.bytes - rounded;
    memset(block.dynamic_shared, POISON, rounded);
}

void* shared_slot(const void* tag, const char* name, size_t bytes, size_t align) {
    for (const Slot& slot : memory.slots) {
        if (slot.tag == tag) return slot.at;
    }
    const size_t begin = (memory.used + align - 1) / align * align;
    memory.declared += bytes;
    if (memory.declared > MOST_DECLARED || memory.declared + block.dynamic_bytes > MOST_SHARED || begin + bytes + FENCE > ARENA) {
        fault(Fault::LaunchFailed, "%zu bytes of declared shared memory and %u dynamic ones are more than a block has", memory.declared,
              block.dynamic_bytes);
    }
    char* at = memory.arena.begin + begin;
    memset(memory.arena.begin + memory.used, FENCE_BYTE, begin - memory.used);
    memset(at, POISON, bytes);
    memset(at + bytes, FENCE_BYTE, FENCE);
    memory.used = begin + bytes + FENCE;
    memory.slots.push_back({tag, name, at, bytes});
    return at;
}

void* dynamic_shared(const char* name, size_t align) {
    const uintptr_t at = uintptr_t(block.dynamic_shared);
    if (at % align) {
        fault(Fault::Misaligned, "dynamic shared memory %s wants an alignment of %zu bytes; the emulator gives 16", name, align);
    }
    return block.dynamic_shared;
}

bool in_shared(const void* at, size_t bytes) {
    const char* begin = static_cast<const char*>(at);
    const char* dynamic = static_cast<const char*>(block.dynamic_shared);
    if (begin >= dynamic && begin + bytes <= dynamic + block.dynamic_bytes) return true;
    for (const Slot& slot : memory.slots) {
        if (begin >= slot.at && begin + bytes <= slot.at + slot.bytes) return true;
    }
    return false;
}

bool end_shared(std::string& broken) {
    if (!memory.slots.empty() && !is_filled(memory.arena.begin, FENCE)) {
        broken = std::string("a write before the shared array ") + memory.slots.front().name;
        return false;
    }
    for (const Slot& slot : memory.slots) {
        if (is_filled(slot.at + slot.bytes, FENCE)) continue;
        broken = std::string("a write past the end of the shared array ") + slot.name + " (" + std::to_string(slot.bytes) + " bytes)";
        return false;
    }
    return true;
}
}  // namespace emu
