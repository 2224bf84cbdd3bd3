// Switching between stacks: six registers and the stack pointer, about a nanosecond.
#pragma once
#include <cstddef>

namespace emu {
constexpr size_t STACK_BYTES = 64 << 10;
constexpr size_t MOST_THREADS = 1024;

/// Saves where we are in `*from` and goes on at `to`.
extern "C" void emulator_switch(void** from, void* to);

/// Top of a fiber's stack, below which lies a page that cannot be touched at its other end. Tops are staggered: at one
/// distance from a large power of two, all stacks would share a few lines of the first cache.
char* fiber_stack_top(size_t rank);
/// Whether an address lies in a guard page of a fiber's stack.
bool in_stack_guard(const void* at);
/// A stack pointer from which `emulator_switch` enters `entry`, which must never return.
void* new_fiber(char* stack_top, void (*entry)());
}  // namespace emu
