// Shared memory. The build rewrites, where it stands,
//     __shared__ __align__(16) float part[4][32];      into   a reference to a slot of the block, and
//     extern __shared__ __align__(16) char raw[];      into   a pointer to the launch's dynamic bytes.
// Slots are made when the first thread of a block comes by, filled with 0xff (NaN in every float format, -1 as an index), and
// fenced: bytes before and behind a slot are looked at when the block ends. Dynamic memory ends at a page that cannot be touched.
#pragma once
#include "thread.hpp"

namespace emu {
/// The slot of a declaration in the running block; `tag` is an address of its own for each declaration and instantiation.
void* shared_slot(const void* tag, const char* name, size_t bytes, size_t align);
void* dynamic_shared(const char* name, size_t align);
/// Whether bytes lie in the running block's shared memory.
bool in_shared(const void* at, size_t bytes);

template <class T> T& shared(const void* tag, const char* name, size_t align) {
    return *static_cast<T*>(shared_slot(tag, name, sizeof(T), align));
}
template <class T> T* dynamic(const char* name, size_t align) { return static_cast<T*>(dynamic_shared(name, align)); }
}  // namespace emu
