// Atomic operations. Fibers give way nowhere inside them, so plain reads and writes are atomic; they return the old value.
#pragma once
#include "thread.hpp"

namespace emu {
template <class T, class F> T exchange_with(T* at, F next) {
    aligned(at);
    const T old = *at;
    *at = next(old);
    return old;
}
}  // namespace emu
template <class T> T atomicAdd(T* at, T value) {
    return emu::exchange_with(at, [&](T old) { return T(old + value); });
}
template <class T> T atomicSub(T* at, T value) {
    return emu::exchange_with(at, [&](T old) { return T(old - value); });
}
template <class T> T atomicMax(T* at, T value) {
    return emu::exchange_with(at, [&](T old) { return old < value ? value : old; });
}
template <class T> T atomicMin(T* at, T value) {
    return emu::exchange_with(at, [&](T old) { return value < old ? value : old; });
}
template <class T> T atomicExch(T* at, T value) {
    return emu::exchange_with(at, [&](T) { return value; });
}
template <class T> T atomicAnd(T* at, T value) {
    return emu::exchange_with(at, [&](T old) { return T(old & value); });
}
template <class T> T atomicOr(T* at, T value) {
    return emu::exchange_with(at, [&](T old) { return T(old | value); });
}
template <class T> T atomicCAS(T* at, T compare, T value) {
    return emu::exchange_with(at, [&](T old) { return old == compare ? value : old; });
}
inline unsigned atomicInc(unsigned* at, unsigned limit) {
    return emu::exchange_with(at, [&](unsigned old) { return old >= limit ? 0u : old + 1u; });
}
