#include "vmm/stop_on_signals.hpp"

#include <atomic>
#include <cstddef>

namespace vmm {

namespace {

std::atomic<Machine*> machine_to_stop{nullptr};
static_assert(std::atomic<Machine*>::is_always_lock_free, "for use in a signal handler");

void on_stop_signal(int /*signal*/) {
    if (Machine* const machine = machine_to_stop.load(); machine != nullptr) {
        machine->request_stop(ExitReason::kSignal);
    }
}

} // namespace

StopOnSignals::StopOnSignals(Machine& machine) {
    machine_to_stop.store(&machine);
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
    machine_to_stop.store(nullptr);
}

} // namespace vmm
