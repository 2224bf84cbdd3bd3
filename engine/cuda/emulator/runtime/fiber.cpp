// Stacks of fibers and the switch between them.
#include "fiber.hpp"
#include <cstdint>
#include <cstdlib>
#include <sys/mman.h>

#ifndef __x86_64__
#error "the emulator's fibers are written for x86-64"
#endif

// Saves the registers that a called function must keep (System V ABI), swaps stacks, restores them.
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch,@function
emulator_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp,(%rdi)
  mov %rsi,%rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size emulator_switch, .-emulator_switch
)");

namespace emu {
namespace {
constexpr size_t PAGE = 4096;
constexpr size_t SAVED_REGISTERS = 6;

char* map_stacks() {
    const size_t bytes = MOST_THREADS * STACK_BYTES;
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) abort();
    char* stacks = static_cast<char*>(at);
    for (size_t i = 0; i < MOST_THREADS; i++) mprotect(stacks + i * STACK_BYTES, PAGE, PROT_NONE);
    return stacks;
}
char* stacks() {
    static char* const mapped = map_stacks();
    return mapped;
}
}  // namespace

char* fiber_stack_top(size_t rank) {
    const size_t stagger = rank * 9 % 64 * 64;
    return stacks() + (rank + 1) * STACK_BYTES - stagger;
}

bool in_stack_guard(const void* at) {
    const uintptr_t offset = uintptr_t(at) - uintptr_t(stacks());
    return offset < MOST_THREADS * STACK_BYTES && offset % STACK_BYTES < PAGE;
}

void* new_fiber(char* stack_top, void (*entry)()) {
    // Where `ret` of the switch leaves the stack pointer, it is 8 past a multiple of 16, as at any function's entry.
    void** at = reinterpret_cast<void**>(stack_top) - 2;
    *at = reinterpret_cast<void*>(entry);
    return at - SAVED_REGISTERS;
}
}  // namespace emu
