// How the exported functions of the fake driver are written.
#pragma once
#include "driver.hpp"
#define API extern "C" __attribute__((visibility("default"))) int

namespace emu {
/// Holds the driver's lock; `error` is what a lost device, or a driver that was never started, answers to every call.
struct Guarded {
    std::unique_lock<std::recursive_mutex> lock{driver_lock()};
    int error = settings.sticky;
};
}  // namespace emu
