// Faults of kernels: an error that the driver returns and a text that says where, never the end of the process.
#include "device.hpp"
#include <csignal>
#include <cstdarg>
#include <pthread.h>
#include <ucontext.h>

namespace emu {
namespace {
std::string fault_text;
constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
constexpr int COUNT = sizeof SIGNALS / sizeof *SIGNALS;
struct sigaction before[COUNT];
pthread_t kernel_thread;
bool caught = false;
/// Of the signal that is being turned into a fault.
int signal_number, signal_code;
void* signal_address;

/// Where the handler makes the fiber go on: at the top of its own stack, whose frames are given up.
[[noreturn]] void after_signal() {
    if (signal_number == SIGFPE) leave_kernel(Fault::LaunchFailed, "an integer was divided by zero");
    // Kernels are compiled with checks of alignment that end in an undefined instruction.
    if (signal_number == SIGILL) leave_kernel(Fault::Misaligned, "an access that is not aligned to its type");
    // The processor gives no address for what it refuses by form: here, an aligned move to an address that is not.
    if (signal_number == SIGSEGV && signal_code == SI_KERNEL) {
        leave_kernel(Fault::Misaligned, "misaligned access (or an address that no memory can have)");
    }
    char address[32];
    snprintf(address, sizeof address, "%p", signal_address);
    leave_kernel(Fault::IllegalAddress, std::string("access of memory at ") + address + describe_address(signal_address));
}

void pass_on(int number, siginfo_t* information, void* context) {
    for (int i = 0; i < COUNT; i++) {
        if (SIGNALS[i] != number) continue;
        if (before[i].sa_flags & SA_SIGINFO && before[i].sa_sigaction) return before[i].sa_sigaction(number, information, context);
        // As it was before us: the instruction is tried again and meets the old action.
        sigaction(number, &before[i], nullptr);
    }
}

void on_signal(int number, siginfo_t* information, void* context) {
    if (!current || !pthread_equal(pthread_self(), kernel_thread)) return pass_on(number, information, context);
    signal_number = number;
    signal_code = information->si_code;
    signal_address = information->si_addr;
    greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    registers[REG_RIP] = greg_t(&after_signal);
    registers[REG_RSP] = greg_t(uintptr_t(current->stack_top) / 16 * 16 - 8);
}

void own_signal_stack() {
    stack_t now{};
    sigaltstack(nullptr, &now);
    if (!(now.ss_flags & SS_DISABLE)) return;
    static thread_local char room[64 << 10];
    stack_t ours{};
    ours.ss_sp = room;
    ours.ss_size = sizeof room;
    sigaltstack(&ours, nullptr);
}
}  // namespace

void catch_signals() {
    kernel_thread = pthread_self();
    own_signal_stack();
    if (caught) return;
    caught = true;
    struct sigaction action{};
    action.sa_sigaction = on_signal;
    // Not masked while it runs: the handler returns into the fiber, not out of the signal.
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < COUNT; i++) sigaction(SIGNALS[i], &action, &before[i]);
}

void fault(Fault kind, const char* format, ...) {
    char text[512];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    leave_kernel(kind, text);
}

const std::string& last_fault() { return fault_text; }
void set_fault(const std::string& text) { fault_text = text; }
}  // namespace emu
