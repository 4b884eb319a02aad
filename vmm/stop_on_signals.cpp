#include "vmm/stop_on_signals.hpp"

#include <atomic>
#include <cerrno>
#include <cstddef>

namespace vmm {

namespace {

std::atomic<StopOnSignals*> current{nullptr};
static_assert(std::atomic<StopOnSignals*>::is_always_lock_free, "for use in a signal handler");

} // namespace

void StopOnSignals::on_signal(int /*signal*/) {
    const int error_number = errno;
    if (StopOnSignals* const self = current.load(); self != nullptr) {
        self->stop_.request(ExitReason::kSignal);
        self->signalled_.signal();
    }
    errno = error_number;
}

StopOnSignals::StopOnSignals(StopRequest& stop) : stop_(stop) {
    current.store(this);
    struct sigaction action {};
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    for (std::size_t i = 0; i < kSignals.size(); ++i) {
        ::sigaction(kSignals[i], nullptr, &before_[i]);
        if (before_[i].sa_handler != SIG_IGN) {
            ::sigaction(kSignals[i], &action, nullptr);
        }
    }
}

StopOnSignals::~StopOnSignals() {
    for (std::size_t i = 0; i < kSignals.size(); ++i) {
        ::sigaction(kSignals[i], &before_[i], nullptr);
    }
    current.store(nullptr);
}

} // namespace vmm
