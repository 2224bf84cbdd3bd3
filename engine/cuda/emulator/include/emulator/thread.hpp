// A CUDA thread as a fiber, the block that it runs in, and the barrier.
//
// One kernel runs at a time, one block of it at a time, on one thread of the process: `current` and `block` are plain
// globals. A fiber gives way only in `barrier` and in a warp operation that others have not reached, so what a kernel does
// between two such points happens at once, and the order of fibers (forward, reverse, shuffled) decides which races show.
#pragma once
#include "vocabulary.hpp"

namespace emu {
enum class State : uint8_t { Ready, AtBarrier, InWarp, Left };

/// A copy that was issued and has not landed, see copy.hpp.
struct PendingCopy {
    void* to;
    const void* from;
    uint16_t bytes, from_bytes;
    int group;
};

struct Warp;
struct Thread {
    uint3 index;
    unsigned lane, rank;
    Warp* warp;
    void* stack_pointer;
    char* stack_top;
    State state;
    const char* waits_at;
    int waits_line;
    int open_group;
    std::vector<PendingCopy> copies;
};
struct Block {
    uint3 index;
    dim3 size, grid;
    void* dynamic_shared;
    unsigned dynamic_bytes;
};
extern Thread* current;
extern Block block;

/// What CUDA calls the error that a fault becomes.
enum class Fault : int { IllegalAddress = 700, LaunchTimeout = 702, Misaligned = 716, LaunchFailed = 719 };
/// Ends the kernel, from the fiber that is running, with a message that names kernel, block and thread.
[[noreturn]] void fault(Fault kind, const char* format, ...) __attribute__((format(printf, 2, 3)));

void barrier(const char* file, int line);
int barrier_reduce(int predicate, int operation, const char* file, int line);

template <class T> const T* aligned(const T* pointer, size_t to = sizeof(T)) {
    if (reinterpret_cast<uintptr_t>(pointer) % to) {
        fault(Fault::Misaligned, "access of %zu bytes at %p, which is not aligned to it", to, (const void*)pointer);
    }
    return pointer;
}
}  // namespace emu

#define threadIdx (emu::current->index)
#define blockIdx (emu::block.index)
#define blockDim (emu::block.size)
#define gridDim (emu::block.grid)
// Threads that wait at different lines have diverged, even where the hardware's barrier would count them together.
#define __syncthreads() emu::barrier(__FILE__, __LINE__)
#define __syncthreads_or(predicate) emu::barrier_reduce(predicate, 0, __FILE__, __LINE__)
#define __syncthreads_and(predicate) emu::barrier_reduce(predicate, 1, __FILE__, __LINE__)
#define __syncthreads_count(predicate) emu::barrier_reduce(predicate, 2, __FILE__, __LINE__)

inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
