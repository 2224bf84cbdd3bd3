// The scheduler: runs the fibers of one block after another, each to its next barrier or warp operation.
#include "device.hpp"
#include "fiber.hpp"
#include <algorithm>
#include <numeric>
#include <random>

namespace emu {
Thread* current = nullptr;
Block block{};

namespace {
struct Scheduler {
    Order order = Order::Forward;
    std::mt19937_64 random;
    const Launch* launch = nullptr;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    /// Warps in the order of their turns, and lanes within each.
    std::vector<unsigned> warp_turns, lane_turns;
    void* main_stack = nullptr;
    unsigned at_barrier = 0, left = 0;
    int barrier_result[3] = {0, 1, 0};
    Fault fault_kind{};
    bool failed = false;
    std::string fault_text;
    uint64_t switches = 0, blocks = 0;
} scheduler;

std::string where(const Thread& thread) {
    char text[256];
    snprintf(text, sizeof text, "kernel %s, block (%u,%u,%u), thread (%u,%u,%u)", scheduler.launch->kernel->name, block.index.x,
             block.index.y, block.index.z, thread.index.x, thread.index.y, thread.index.z);
    return text;
}

void fail(Fault kind, const std::string& text, const Thread* thread) {
    if (scheduler.failed) return;
    scheduler.failed = true;
    scheduler.fault_kind = kind;
    scheduler.fault_text = thread ? text + " (" + where(*thread) + ")" : text;
}

void enter() {
    scheduler.launch->kernel->call(scheduler.launch->arguments);
    current->state = State::Left;
    current->copies.clear();
    current->warp->left |= 1u << current->lane;
    scheduler.left++;
    give_way();
    abort();
}

void prepare_threads() {
    Scheduler& s = scheduler;
    const dim3 size = s.launch->block;
    const size_t count = size_t(size.x) * size.y * size.z;
    s.threads.resize(count);
    s.warps.resize((count + 31) / 32);
    for (size_t i = 0; i < count; i++) {
        Thread& t = s.threads[i];
        t.index = {unsigned(i % size.x), unsigned(i / size.x % size.y), unsigned(i / size.x / size.y)};
        t.rank = unsigned(i);
        t.lane = unsigned(i & 31);
        t.warp = &s.warps[i >> 5];
        t.stack_top = fiber_stack_top(i);
    }
    for (size_t w = 0; w < s.warps.size(); w++) {
        const size_t lanes = std::min<size_t>(32, count - w * 32);
        s.warps[w].lanes = lanes == 32 ? 0xffffffffu : (1u << lanes) - 1;
        s.warps[w].threads = &s.threads[w * 32];
    }
    s.warp_turns.resize(s.warps.size());
    s.lane_turns.resize(32);
    std::iota(s.warp_turns.begin(), s.warp_turns.end(), 0u);
    std::iota(s.lane_turns.begin(), s.lane_turns.end(), 0u);
    if (s.order != Order::Forward) std::reverse(s.warp_turns.begin(), s.warp_turns.end());
    if (s.order != Order::Forward) std::reverse(s.lane_turns.begin(), s.lane_turns.end());
}

void begin_block() {
    Scheduler& s = scheduler;
    s.at_barrier = s.left = 0;
    for (Warp& warp : s.warps) warp.groups = warp.left = 0;
    for (Thread& t : s.threads) {
        t.state = State::Ready;
        t.stack_pointer = new_fiber(t.stack_top, enter);
        t.open_group = 0;
        t.copies.clear();
    }
    begin_shared(s.launch->dynamic_bytes);
}

/// One turn for each lane that can run; whether any could.
bool run_lanes(Warp& warp) {
    Scheduler& s = scheduler;
    bool ran = false;
    for (unsigned lane : s.lane_turns) {
        if (!(warp.lanes >> lane & 1) || warp.threads[lane].state != State::Ready) continue;
        ran = true;
        current = &warp.threads[lane];
        s.switches++;
        emulator_switch(&s.main_stack, current->stack_pointer);
        current = nullptr;
        if (s.failed) return true;
    }
    return ran;
}

/// Forward and reverse run each warp until it can run no further before the next one starts; shuffled mixes them.
bool run_warps() {
    Scheduler& s = scheduler;
    const bool shuffled = s.order == Order::Shuffled;
    if (shuffled) std::shuffle(s.warp_turns.begin(), s.warp_turns.end(), s.random);
    bool ran = false;
    for (unsigned warp : s.warp_turns) {
        if (shuffled) std::shuffle(s.lane_turns.begin(), s.lane_turns.end(), s.random);
        while (run_lanes(s.warps[warp])) {
            if (s.failed) return true;
            ran = true;
            if (shuffled) break;
        }
    }
    return ran;
}

/// All threads of the block are at the barrier: they may go on, if it is the same one.
void open_barrier() {
    Scheduler& s = scheduler;
    const Thread& first = s.threads.front();
    for (Thread& t : s.threads) {
        if (t.waits_line != first.waits_line || strcmp(t.waits_at, first.waits_at) != 0) {
            char text[256];
            snprintf(text, sizeof text, "divergent barrier: threads wait at %s:%d and at %s:%d", first.waits_at, first.waits_line,
                     t.waits_at, t.waits_line);
            return fail(Fault::LaunchFailed, text, &t);
        }
        t.state = State::Ready;
    }
    s.at_barrier = 0;
}

void explain_standstill() {
    Scheduler& s = scheduler;
    const auto is_at_barrier = [](const Thread& t) { return t.state == State::AtBarrier; };
    const auto waits = std::find_if(s.threads.begin(), s.threads.end(), [](const Thread& t) { return t.state == State::InWarp; });
    char text[320];
    if (waits != s.threads.end()) {
        snprintf(text, sizeof text, "%s names inactive lanes: %u thread(s) wait at a barrier, lanes %08x have left the kernel", waits->waits_at,
                 s.at_barrier, waits->warp->left);
        return fail(Fault::LaunchFailed, text, &*waits);
    }
    const auto at = std::find_if(s.threads.begin(), s.threads.end(), is_at_barrier);
    snprintf(text, sizeof text, "divergent barrier: %u thread(s) wait at %s:%d, %u left the kernel without it", s.at_barrier,
             at->waits_at, at->waits_line, s.left);
    fail(Fault::LaunchTimeout, text, &*at);
}

void run_block() {
    Scheduler& s = scheduler;
    s.blocks++;
    begin_block();
    while (s.left < s.threads.size() && !s.failed) {
        const bool ran = run_warps();
        if (s.failed) return;
        if (s.at_barrier == s.threads.size()) {
            open_barrier();
        } else if (!ran) {
            explain_standstill();
        }
    }
    std::string broken;
    if (!s.failed && !end_shared(broken)) fail(Fault::IllegalAddress, broken, &s.threads.front());
}
}  // namespace

void give_way() { emulator_switch(&current->stack_pointer, scheduler.main_stack); }

void barrier(const char* file, int line) {
    current->waits_at = file;
    current->waits_line = line;
    current->state = State::AtBarrier;
    scheduler.at_barrier++;
    give_way();
}

int barrier_reduce(int predicate, int operation, const char* file, int line) {
    int* result = scheduler.barrier_result;
    // The first barrier orders this reduction behind the reading of the one before.
    barrier(file, line);
    result[0] = result[2] = 0;
    result[1] = 1;
    barrier(file, line);
    result[0] |= predicate != 0;
    result[1] &= predicate != 0;
    result[2] += predicate != 0;
    barrier(file, line);
    return result[operation];
}

void leave_kernel(Fault kind, const std::string& text) {
    fail(kind, text, current);
    give_way();
    abort();
}

int run_kernel(const Launch& launch) {
    Scheduler& s = scheduler;
    catch_signals();
    s.launch = &launch;
    s.failed = false;
    block.size = launch.block;
    block.grid = launch.grid;
    prepare_threads();
    for (unsigned z = 0; z < launch.grid.z && !s.failed; z++) {
        for (unsigned y = 0; y < launch.grid.y && !s.failed; y++) {
            for (unsigned x = 0; x < launch.grid.x && !s.failed; x++) {
                block.index = {x, y, z};
                run_block();
            }
        }
    }
    current = nullptr;
    s.launch = nullptr;
    if (!s.failed) return 0;
    set_fault(s.fault_text);
    return int(s.fault_kind);
}

void set_order(Order order, uint64_t seed) {
    scheduler.order = order;
    scheduler.random.seed(seed);
}
uint64_t switch_count() { return scheduler.switches; }
uint64_t block_count() { return scheduler.blocks; }
}  // namespace emu
