#include "vmm/cli/sandbox_alarm.hpp"

#include <linux/futex.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "kvm/host/format.hpp"
#include "kvm/host/thread.hpp"
#include "kvm/host/thread_rights.hpp"
#include "vmm/limits.hpp"
#include "vmm/output/stop_on_signals.hpp"
#include "vmm/sandbox/compiled_filters.hpp"
#include "vmm/sandbox/sandbox.hpp"

namespace vmm {

namespace {

constexpr std::chrono::seconds kPatience{5};
/// SYS_SECCOMP of sigaction(2). The C library has no name for it.
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

/// Work that the alarm's thread does for a confined thread.
struct Errand {
    SandboxAlarm::Handler handler = nullptr;
    int signal = 0;
    siginfo_t info{};
};
enum ErrandState : std::uint32_t { kNoErrand, kBeingWritten, kGiven, kDone };
Errand errand;
std::atomic<std::uint32_t> errand_state{kNoErrand};
static_assert(std::atomic<std::uint32_t>::is_always_lock_free && sizeof(errand_state) == sizeof(std::uint32_t),
              "for use in a signal handler, and as the word of a futex");

void wait_while(std::uint32_t state) noexcept {
    while (errand_state.load() == state) {
        ::syscall(SYS_futex, &errand_state, FUTEX_WAIT_PRIVATE, state, nullptr, nullptr, 0);
    }
}

std::string name_of(int call) {
    const std::string_view name = compiled_filters::name_of_call(call);
    return !name.empty() ? std::string(name) : "of number " + std::to_string(call);
}

} // namespace

SandboxAlarm::SandboxAlarm(StopRequest& stop, std::function<void(std::string_view)> say)
    : stop_(stop), say_(std::move(say)) {
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
    if (info->si_code != kBySeccomp || self == nullptr) { // the signal has another cause
        struct sigaction standard {};
        standard.sa_handler = SIG_DFL;
        ::sigaction(signal, self != nullptr ? &self->before_ : &standard, nullptr);
        ::raise(signal); // the signal is blocked until this handler returns
        return;
    }
    if (!is_taken.exchange(true)) {
        std::string_view thread = confined_thread();
        std::array<char, 17> own_name{}; // with a zero at its end
        if (thread.empty() && may_open_files() && ::prctl(PR_GET_NAME, own_name.data()) == 0) {
            thread = own_name.data();
        }
        first.thread_bytes = std::min(thread.size(), first.thread.size());
        std::copy_n(thread.begin(), first.thread_bytes, first.thread.begin());
        first.number = info->si_syscall;
        self->stop_.request(ExitReason::kSandbox);
        self->raised_.signal();
    }
    // The call was not made. This thread ends here, so joining it works.
    for (;;) {
        ::syscall(SYS_exit, 0);
    }
}

bool SandboxAlarm::takes_over(Handler handler, int signal, siginfo_t* info) noexcept {
    SandboxAlarm* const self = current.load();
    if (self == nullptr) {
        return false;
    }
    if (signal == SIGSYS && info->si_code == kBySeccomp) {
        on_signal(signal, info, nullptr);
    }
    if (may_open_files()) { // the thread is not confined
        return false;
    }
    std::uint32_t expected = kNoErrand;
    while (!errand_state.compare_exchange_strong(expected, kBeingWritten)) {
        wait_while(expected); // the process usually ends meanwhile
        expected = kNoErrand;
    }
    errand = {handler, signal, *info};
    errand_state.store(kGiven);
    self->raised_.signal();
    wait_while(kGiven);
    errand_state.store(kNoErrand);
    ::syscall(SYS_futex, &errand_state, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
    return true;
}

void SandboxAlarm::run_errand() noexcept {
    if (errand_state.load() == kGiven) {
        errand.handler(errand.signal, &errand.info, nullptr);
        errand_state.store(kDone);
        ::syscall(SYS_futex, &errand_state, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
    }
}

void SandboxAlarm::watch() {
    std::optional<std::chrono::steady_clock::time_point> deadline;
    for (;;) {
        std::array<pollfd, 2> fds{{{raised_.fd(), POLLIN, 0}, {over_.fd(), POLLIN, 0}}};
        int patience_ms = -1;
        if (deadline) {
            const auto left =
                std::chrono::ceil<std::chrono::milliseconds>(*deadline - std::chrono::steady_clock::now());
            patience_ms = static_cast<int>(std::max<std::int64_t>(left.count(), 0));
        }
        const int ready = ::poll(fds.data(), fds.size(), patience_ms);
        if (ready == 0) {
            perform_last_act();
            ::_exit(exit_codes::kGuestFailed);
        }
        if (ready > 0 && fds[0].revents != 0) {
            raised_.clear();
            run_errand();
            if (is_taken.load() && !deadline) {
                say();
                deadline = std::chrono::steady_clock::now() + kPatience;
            }
        } else if (ready > 0) {
            return;
        }
    }
}

void SandboxAlarm::say() const {
    try {
        const std::string thread = first.thread_bytes != 0
                                       ? "the thread " + std::string(first.thread.data(), first.thread_bytes)
                                       : std::string("a thread that a confined one had made");
        // raise(3) first asks for the process id, and the C library prints its own errors by writev(2).
        const bool ends_itself = first.number == SYS_tgkill || first.number == SYS_getpid || first.number == SYS_writev;
        const char* const other_cause =
            ends_itself
                ? "; it is also how a thread ends one of whose own checks has failed, in vmm or in the C library"
                : "";
        say_(vmm::format(
            "the sandbox ended the run: {} tried the system call {}, which it never needs; it was not made (the "
            "guest may have taken over this process: look at what runs in it, and at SECURITY.md; if it is "
            "something that you have added to this program, use --sandbox off{})",
            thread, name_of(first.number), other_cause));
    } catch (const std::exception&) { // there is no memory for the message
    }
}

} // namespace vmm
