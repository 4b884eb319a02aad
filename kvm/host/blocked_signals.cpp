#include "kvm/host/blocked_signals.hpp"

#include "kvm/host/error.hpp"

namespace vmm {

namespace {

/// Faults stay unblocked. If a thread faults while the signal is blocked, the kernel kills it without calling the
/// handler that the process may need to clean up.
sigset_t block_all_signals() {
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    for (const int fault : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS, SIGABRT}) {
        sigdelset(&all, fault);
    }
    if (const int error_number = ::pthread_sigmask(SIG_SETMASK, &all, &before); error_number != 0) {
        throw_errno(error_number, "block signals in a thread");
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

} // namespace vmm
