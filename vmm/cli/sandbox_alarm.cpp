#include "vmm/cli/sandbox_alarm.hpp"

#include <poll.h>
#include <seccomp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <string>
#include <string_view>

#include "kvm/host/format.hpp"
#include "vmm/limits.hpp"
#include "vmm/machine/vcpu_thread.hpp"
#include "vmm/output/stop_on_signals.hpp"
#include "vmm/sandbox/sandbox.hpp"

namespace vmm {

namespace {

constexpr int kPatienceMs = 5000;
/// SYS_SECCOMP of sigaction(2), for which the C library has no name.
constexpr int kBySeccomp = 1;

std::atomic<SandboxAlarm*> current{nullptr};
static_assert(std::atomic<SandboxAlarm*>::is_always_lock_free, "for use in a signal handler");

/// The first call that was refused. It is written once, before `raised_` is signalled.
struct RefusedCall {
    std::array<char, 16> thread{};
    std::size_t thread_bytes = 0;
    int number = 0;
};
RefusedCall first;
std::atomic<bool> is_taken{false};

std::string name_of(int call) {
    struct Free {
        void operator()(char* text) const noexcept { std::free(text); }
    };
    const std::unique_ptr<char, Free> name(::seccomp_syscall_resolve_num_arch(SCMP_ARCH_NATIVE, call));
    return name ? std::string(name.get()) : "of number " + std::to_string(call);
}

} // namespace

SandboxAlarm::SandboxAlarm(StopRequest& stop, Messages& messages) : stop_(stop), messages_(messages) {
    is_taken.store(false);
    current.store(this);
    struct sigaction action {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO;
    sigemptyset(&action.sa_mask);
    ::sigaction(SIGSYS, &action, &before_);
    try {
        thread_ = start_thread("the alarm of the sandbox", [this] { watch(); });
    } catch (...) {
        ::sigaction(SIGSYS, &before_, nullptr);
        current.store(nullptr);
        throw;
    }
}

SandboxAlarm::~SandboxAlarm() {
    over_.signal();
    thread_.join();
    ::sigaction(SIGSYS, &before_, nullptr);
    current.store(nullptr);
}

void SandboxAlarm::on_signal(int signal, siginfo_t* info, void* /*context*/) {
    SandboxAlarm* const self = current.load();
    if (info->si_code != kBySeccomp || self == nullptr || confined_thread().empty()) { // Somebody else's.
        struct sigaction standard {};
        standard.sa_handler = SIG_DFL;
        ::sigaction(signal, self != nullptr ? &self->before_ : &standard, nullptr);
        ::raise(signal); // The signal is blocked until we return.
        return;
    }
    if (!is_taken.exchange(true)) {
        const std::string_view thread = confined_thread();
        first.thread_bytes = std::min(thread.size(), first.thread.size());
        std::copy_n(thread.begin(), first.thread_bytes, first.thread.begin());
        first.number = info->si_syscall;
        self->stop_.request(ExitReason::kSandbox);
        self->raised_.signal();
    }
    // The call was not made, and this thread does nothing more: whoever joins it finds that it has ended.
    for (;;) {
        ::syscall(SYS_exit, 0);
    }
}

void SandboxAlarm::watch() {
    std::array<pollfd, 2> fds{{{raised_.fd(), POLLIN, 0}, {over_.fd(), POLLIN, 0}}};
    while (::poll(fds.data(), fds.size(), -1) < 0) {
    }
    if (fds[0].revents == 0) {
        return;
    }
    say();
    pollfd over{over_.fd(), POLLIN, 0};
    if (::poll(&over, 1, kPatienceMs) == 0) {
        perform_last_act();
        ::_exit(exit_codes::kGuestFailed);
    }
}

void SandboxAlarm::say() const {
    try {
        messages_.say_error(vmm::format(
            "the sandbox ended the run: the thread {} tried the system call {}, which it never needs; it was not made "
            "(the "
            "guest may have taken over this process: look at what runs in it, and at SECURITY.md; if it is something "
            "that you have added to this program, use --sandbox off)",
            std::string_view(first.thread.data(), first.thread_bytes), name_of(first.number)));
    } catch (const std::exception&) { // There is no memory even to say so.
    }
}

} // namespace vmm
