#include "vmm/stop_on_signals.hpp"

#include <atomic>
#include <cstddef>

namespace vmm {

namespace {

std::atomic<StopRequest*> stop_to_request{nullptr};
static_assert(std::atomic<StopRequest*>::is_always_lock_free, "for use in a signal handler");

void on_stop_signal(int /*signal*/) {
    if (StopRequest* const stop = stop_to_request.load(); stop != nullptr) {
        stop->request(ExitReason::kSignal);
    }
}

} // namespace

StopOnSignals::StopOnSignals(StopRequest& stop) {
    stop_to_request.store(&stop);
    struct sigaction action {};
    action.sa_handler = on_stop_signal;
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
    stop_to_request.store(nullptr);
}

} // namespace vmm
