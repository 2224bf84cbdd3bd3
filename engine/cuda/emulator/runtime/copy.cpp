// cp.async with copies that land late.
#include "device.hpp"

namespace emu {
namespace {
void land(const PendingCopy& copy) {
    memcpy(copy.to, copy.from, copy.from_bytes);
    memset(static_cast<char*>(copy.to) + copy.from_bytes, 0, size_t(copy.bytes - copy.from_bytes));
}
/// Lands the copies of groups before `group`.
void land_before(int group) {
    std::vector<PendingCopy>& copies = current->copies;
    size_t kept = 0;
    for (const PendingCopy& copy : copies) {
        if (copy.group < group) {
            land(copy);
        } else {
            copies[kept++] = copy;
        }
    }
    copies.resize(kept);
}
}  // namespace

void cp_async(void* to, const void* from, unsigned bytes, unsigned from_bytes) {
    if (bytes != 4 && bytes != 8 && bytes != 16) fault(Fault::LaunchFailed, "cp.async of %u bytes; it can copy 4, 8 or 16", bytes);
    if (from_bytes > bytes) fault(Fault::LaunchFailed, "cp.async of %u bytes from %u", bytes, from_bytes);
    if (uintptr_t(to) % bytes || uintptr_t(from) % bytes) {
        fault(Fault::Misaligned, "cp.async of %u bytes from %p to %p, which are not both aligned to it", bytes, from, to);
    }
    if (!in_shared(to, bytes)) fault(Fault::IllegalAddress, "cp.async to %p, which is not in the block's shared memory", to);
    memset(to, 0xff, bytes);
    current->copies.push_back({to, from, uint16_t(bytes), uint16_t(from_bytes), current->open_group});
}

void cp_async_commit() { current->open_group++; }

void cp_async_wait(int pending) { land_before(current->open_group - pending); }

void cp_async_wait_all() { land_before(current->open_group + 1); }
}  // namespace emu
