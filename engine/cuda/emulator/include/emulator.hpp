// What a kernel sees on the host: the CUDA names, with CUDA's meaning, for g++.
//
// A .cu file is compiled twice: by nvcc for a GPU, and by g++ with FORESHOCK_EMULATOR defined, where dev.cuh includes this
// header in place of CUDA's own. Every CUDA thread is then a fiber; a fiber runs until it meets a barrier or a warp operation.
// The build (src/scan.rs) rewrites only declarations of shared memory, see shared.hpp.
#pragma once
#include "emulator/vocabulary.hpp"
#include "emulator/numbers.hpp"
#include "emulator/fp8.hpp"
#include "emulator/thread.hpp"
#include "emulator/shared.hpp"
#include "emulator/warp.hpp"
#include "emulator/copy.hpp"
#include "emulator/matrix.hpp"
#include "emulator/atomics.hpp"
#include "emulator/maths.hpp"
#include "emulator/device.hpp"
#include "emulator/registry.hpp"

// Last, since headers of the system write the word in a way that a macro would break.
#define __noinline__ __attribute__((noinline))
