// cp.async: a copy from global to shared memory that lands only when the thread that issued it waits for its group.
// Until then the destination holds 0xff, so a missing or too weak wait, or a barrier left out behind it, gives NaN.
// A copy that nobody waits for never lands.
#pragma once
#include "shared.hpp"

namespace emu {
/// `from_bytes` of the source are read, the rest of `bytes` is zero (cp.async's src-size operand).
void cp_async(void* to, const void* from, unsigned bytes, unsigned from_bytes);
void cp_async_commit();
/// Lands all groups but the last `pending` committed ones.
void cp_async_wait(int pending);
/// Lands all, committed or not (cp.async.wait_all).
void cp_async_wait_all();
}  // namespace emu
