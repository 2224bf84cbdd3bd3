// Meeting of lanes: who waits for whom, and who never comes.
#include "device.hpp"

namespace emu {
namespace {
std::string mask_text(unsigned mask) {
    char text[16];
    snprintf(text, sizeof text, "%08x", mask);
    return text;
}

/// By address, mostly: names are literals.
bool same_operation(const WarpOperation& a, const WarpOperation& b) { return a.name == b.name || strcmp(a.name, b.name) == 0; }

Warp::Group& group_of(Warp& warp, unsigned mask, const WarpOperation& operation) {
    for (unsigned i = 0; i < warp.groups; i++) {
        Warp::Group& group = warp.group[i];
        if (group.mask == mask && same_operation(*group.operation, operation)) return group;
        if (group.mask & mask) {
            leave_kernel(Fault::LaunchFailed, std::string("warp divergence: this lane is at ") + operation.name + " with mask " +
                                                  mask_text(mask) + ", another at " + group.operation->name + " with mask " +
                                                  mask_text(group.mask));
        }
    }
    Warp::Group& group = warp.group[warp.groups++];
    group.mask = mask;
    group.arrived = 0;
    group.operation = &operation;
    return group;
}

void remove_group(Warp& warp, Warp::Group& group) {
    Warp::Group& last = warp.group[--warp.groups];
    if (&last != &group) group = last;
}
}  // namespace

void collective(unsigned mask, const WarpOperation& operation, void* arguments) {
    Thread* me = current;
    Warp& warp = *me->warp;
    // Lanes that a last, partial warp does not have take no part, as on the hardware.
    mask &= warp.lanes;
    if (!(mask >> me->lane & 1)) {
        leave_kernel(Fault::LaunchFailed, std::string(operation.name) + " by a lane that its own mask " + mask_text(mask) + " leaves out");
    }
    if (mask & warp.left) {
        leave_kernel(Fault::LaunchFailed, std::string(operation.name) + " names inactive lanes: mask " + mask_text(mask) +
                                              ", and lanes " + mask_text(mask & warp.left) + " have left the kernel");
    }
    Warp::Group& group = group_of(warp, mask, operation);
    group.arguments[me->lane] = arguments;
    group.arrived |= 1u << me->lane;
    if (group.arrived != mask) {
        me->state = State::InWarp;
        me->waits_at = operation.name;
        give_way();
        return;
    }
    operation.run(group.arguments, mask);
    remove_group(warp, group);
    for (unsigned rest = mask; rest; rest &= rest - 1) warp.threads[__builtin_ctz(rest)].state = State::Ready;
}
}  // namespace emu
