// The table of kernels that the .cu files add themselves to when the library is loaded.
#include "device.hpp"
#include <map>

namespace emu {
namespace {
std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> table;
    return table;
}
}  // namespace

bool add_kernel(Kernel kernel) { return kernels().emplace(kernel.name, kernel).second; }

const Kernel* find_kernel(const std::string& name) {
    const auto found = kernels().find(name);
    return found == kernels().end() ? nullptr : &found->second;
}
}  // namespace emu
