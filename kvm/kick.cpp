#include "kvm/kick.hpp"

#include <csignal>
#include <ctime>

#include "kvm/error.hpp"
#include "kvm/kick_signal.hpp"

namespace vmm::kvm {

namespace {

/// Faults stay unblocked: the kernel kills a thread that faults with the signal blocked, without asking the handler by
/// which the process may want to clean up.
sigset_t block_all_signals() {
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    for (const int fault : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS, SIGABRT}) {
        sigdelset(&all, fault);
    }
    if (const int error_number = ::pthread_sigmask(SIG_SETMASK, &all, &before); error_number != 0) {
        throw_errno(error_number, "block signals in a vCPU's thread");
    }
    return before;
}

} // namespace

void block_signals_in_this_thread() {
    static_cast<void>(block_all_signals());
}

AllSignalsBlocked::AllSignalsBlocked() : before_(block_all_signals()) {}

AllSignalsBlocked::~AllSignalsBlocked() {
    ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

void kick(pthread_t thread) noexcept {
    ::pthread_kill(thread, kick_signal());
}

void discard_pending_kicks() noexcept {
    sigset_t only_kick;
    sigemptyset(&only_kick);
    sigaddset(&only_kick, kick_signal());
    const timespec no_wait{};
    while (::sigtimedwait(&only_kick, nullptr, &no_wait) >= 0) {
    }
}

} // namespace vmm::kvm
