#include "kvm/kick.hpp"

#include <csignal>
#include <ctime>

#include "kvm/error.hpp"
#include "kvm/kick_signal.hpp"

namespace vmm::kvm {

void block_signals_in_this_thread() {
    sigset_t all;
    sigfillset(&all);
    if (const int error_number = ::pthread_sigmask(SIG_SETMASK, &all, nullptr); error_number != 0) {
        throw_errno(error_number, "block signals in a vCPU's thread");
    }
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
