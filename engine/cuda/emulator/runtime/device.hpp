// What the parts of the runtime share: the running kernel, its scheduler, how a fault is told.
#pragma once
#include "../include/emulator.hpp"
#include <string>
#undef __noinline__
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

namespace emu {
enum class Order : int { Forward = 0, Reverse = 1, Shuffled = 2 };

struct Launch {
    const Kernel* kernel;
    dim3 grid, block;
    unsigned dynamic_bytes;
    void** arguments;
};
/// Runs a kernel to its end, or to its first fault, which becomes the return value (CUDA's number, 0 for none).
int run_kernel(const Launch& launch);
void set_order(Order order, uint64_t seed);
/// Text of the last fault.
const std::string& last_fault();
void set_fault(const std::string& text);
/// Switches between fibers so far, and blocks run.
uint64_t switch_count();
uint64_t block_count();

const Kernel* find_kernel(const std::string& name);

// Among the files of the runtime.
/// Makes the running block's shared memory anew.
void begin_shared(unsigned dynamic_bytes);
/// Whether all fences are whole; if not, the text says which slot was written past.
bool end_shared(std::string& broken);
/// Where the static slots may grow to.
size_t shared_bytes();
/// Gives way to the scheduler.
void give_way();
struct Warp {
    /// Lanes that wait for one operation; a diverged warp can have several such groups.
    struct Group {
        unsigned mask, arrived;
        const WarpOperation* operation;
        void* arguments[32];
    };
    unsigned lanes, left;
    unsigned groups;
    Group group[32];
    Thread* threads;
};
/// Why memory at an address cannot be accessed, as far as the fake driver knows.
std::string describe_address(const void* at);
/// Catches SIGSEGV and the like while a fiber runs, and only then.
void catch_signals();
/// Ends the running kernel from its fiber.
[[noreturn]] void leave_kernel(Fault kind, const std::string& text);
}  // namespace emu
