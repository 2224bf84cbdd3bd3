// Operations that the lanes of a warp do together: shuffles, votes, __syncwarp.
//
// Each lane of the mask arrives with its arguments and waits; the last to arrive does the operation for all. So a lane that
// is named by the mask and never comes, comes with another operation, or is read without being in the mask, is found.
#pragma once
#include "thread.hpp"

namespace emu {
struct WarpOperation {
    const char* name;
    /// Arguments of the lanes in the mask, by lane.
    void (*run)(void** arguments, unsigned mask);
};
void collective(unsigned mask, const WarpOperation& operation, void* arguments);

template <class T> struct Shuffle {
    T value, result;
    int source;
};
template <class T> void run_shuffle(void** arguments, unsigned mask) {
    for (unsigned rest = mask; rest; rest &= rest - 1) {
        auto* one = static_cast<Shuffle<T>*>(arguments[__builtin_ctz(rest)]);
        if (!(mask >> one->source & 1)) {
            fault(Fault::LaunchFailed, "shuffle from inactive lane: lane %d reads lane %d, which is not in the mask %08x",
                  __builtin_ctz(rest), one->source, mask);
        }
        one->result = static_cast<Shuffle<T>*>(arguments[one->source])->value;
    }
}
template <class T> T shuffle(const char* name, unsigned mask, T value, int source) {
    const WarpOperation operation{name, run_shuffle<T>};
    Shuffle<T> arguments{value, value, source};
    collective(mask, operation, &arguments);
    return arguments.result;
}
inline int first_of_segment(int width) { return int(current->lane) & ~(width - 1); }

struct Vote {
    bool predicate;
    unsigned ballot;
};
inline void run_vote(void** arguments, unsigned mask) {
    unsigned ballot = 0;
    for (unsigned rest = mask; rest; rest &= rest - 1) {
        const int lane = __builtin_ctz(rest);
        ballot |= unsigned(static_cast<Vote*>(arguments[lane])->predicate) << lane;
    }
    for (unsigned rest = mask; rest; rest &= rest - 1) static_cast<Vote*>(arguments[__builtin_ctz(rest)])->ballot = ballot;
}
inline unsigned vote(const char* name, unsigned mask, bool predicate) {
    const WarpOperation operation{name, run_vote};
    Vote arguments{predicate, 0};
    collective(mask, operation, &arguments);
    return arguments.ballot;
}
}  // namespace emu

inline void __syncwarp(unsigned mask = 0xffffffffu) { emu::vote("__syncwarp", mask, false); }
inline unsigned __ballot_sync(unsigned mask, int predicate) { return emu::vote("__ballot_sync", mask, predicate != 0); }
inline int __any_sync(unsigned mask, int predicate) { return emu::vote("__any_sync", mask, predicate != 0) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return emu::vote("__all_sync", mask, predicate == 0) == 0; }

template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    return emu::shuffle("__shfl_sync", mask, value, emu::first_of_segment(width) + (source & (width - 1)));
}
// As the PTX manual has it for shfl.bfly: a source past the segment's last lane gives the lane's own value.
template <class T> T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
    const int lane = int(emu::current->lane), source = lane ^ lane_mask;
    const bool beyond = source > emu::first_of_segment(width) + width - 1;
    return emu::shuffle("__shfl_xor_sync", mask, value, beyond ? lane : source);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const int lane = int(emu::current->lane), source = lane + int(delta);
    const bool beyond = source > emu::first_of_segment(width) + width - 1;
    return emu::shuffle("__shfl_down_sync", mask, value, beyond ? lane : source);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const int lane = int(emu::current->lane), source = lane - int(delta);
    return emu::shuffle("__shfl_up_sync", mask, value, source < emu::first_of_segment(width) ? lane : source);
}

namespace emu {
template <class T> struct Reduction {
    T value;
};
template <class T, class F> void reduce_lanes(void** arguments, unsigned mask, F join) {
    T total = static_cast<Reduction<T>*>(arguments[__builtin_ctz(mask)])->value;
    for (unsigned rest = mask & (mask - 1); rest; rest &= rest - 1) {
        total = join(total, static_cast<Reduction<T>*>(arguments[__builtin_ctz(rest)])->value);
    }
    for (unsigned rest = mask; rest; rest &= rest - 1) static_cast<Reduction<T>*>(arguments[__builtin_ctz(rest)])->value = total;
}
template <class T> T reduce(const char* name, unsigned mask, T value, void (*run)(void**, unsigned)) {
    const WarpOperation operation{name, run};
    Reduction<T> arguments{value};
    collective(mask, operation, &arguments);
    return arguments.value;
}
}  // namespace emu
// Integer reductions of sm_80.
template <class T> T __reduce_add_sync(unsigned mask, T value) {
    return emu::reduce<T>("__reduce_add_sync", mask, value,
                          [](void** a, unsigned m) { emu::reduce_lanes<T>(a, m, [](T x, T y) { return T(x + y); }); });
}
template <class T> T __reduce_max_sync(unsigned mask, T value) {
    return emu::reduce<T>("__reduce_max_sync", mask, value,
                          [](void** a, unsigned m) { emu::reduce_lanes<T>(a, m, [](T x, T y) { return x < y ? y : x; }); });
}
template <class T> T __reduce_min_sync(unsigned mask, T value) {
    return emu::reduce<T>("__reduce_min_sync", mask, value,
                          [](void** a, unsigned m) { emu::reduce_lanes<T>(a, m, [](T x, T y) { return y < x ? y : x; }); });
}
