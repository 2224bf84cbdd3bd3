// Device memory as ranges of this process's addresses.
#pragma once
#include "driver.hpp"
#include <map>

namespace emu {
constexpr size_t PAGE = 4096;
constexpr unsigned char POISON = 0xff;
/// Above this, only the two ends of a region are poisoned, to leave the machine its memory.
constexpr size_t MOST_POISON = 512ull << 20;

struct Range {
    Address begin;
    size_t bytes;
    /// What was asked of the operating system.
    void* mapping;
    size_t mapped;
    /// Made by an allocating call; else mapped to reserved addresses, or registered.
    bool is_allocation;
};
/// All that kernels and copies may touch.
std::map<Address, Range>& device_ranges();
void take_memory(size_t bytes);
void give_memory(size_t bytes);
void poison(void* at, size_t bytes);
/// Unmaps and forgets reserved addresses and memory for them (virtual.cpp).
void forget_virtual_memory();
/// For addresses that are in no allocation: reserved ones, shared memory, stacks.
std::string describe_other_address(const void* at);
}  // namespace emu
