// Kernels by name. The build adds, behind the text of each .cu file, one line for every `extern "C" __global__` entry.
#pragma once
#include "vocabulary.hpp"

namespace emu {
struct Parameter {
    size_t bytes;
    bool is_pointer;
};
struct Kernel {
    const char* name;
    void (*call)(void** arguments);
    std::vector<Parameter> parameters;
    /// From __launch_bounds__, else 1024.
    unsigned most_threads;
};
bool add_kernel(Kernel kernel);

template <auto F> struct Entry;
template <class... A, void (*F)(A...)> struct Entry<F> {
    template <size_t... I> static void unpack(void** arguments, std::index_sequence<I...>) {
        F(*static_cast<std::remove_cv_t<A>*>(arguments[I])...);
    }
    static void call(void** arguments) { unpack(arguments, std::index_sequence_for<A...>{}); }
    static Kernel kernel(const char* name, unsigned most_threads) {
        return {name, call, {Parameter{sizeof(A), std::is_pointer_v<A>}...}, most_threads};
    }
};
}  // namespace emu
#define EMULATOR_KERNEL(name, most_threads) \
    static const bool emulator_knows_##name = emu::add_kernel(emu::Entry<&name>::kernel(#name, most_threads));
