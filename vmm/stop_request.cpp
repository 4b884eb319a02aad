#include "vmm/stop_request.hpp"

namespace vmm {

std::string_view to_string(ExitReason reason) noexcept {
    switch (reason) {
    case ExitReason::kPowerOff:
        return "poweroff";
    case ExitReason::kReboot:
        return "reboot";
    case ExitReason::kCrash:
        return "crash";
    case ExitReason::kSignal:
        return "signal";
    case ExitReason::kStopped:
        return "stopped";
    case ExitReason::kMigrated:
        return "migrated";
    case ExitReason::kSandbox:
        return "sandbox";
    }
    return "?";
}

void StopRequest::set(int state) noexcept {
    int expected = kNone;
    if (state_.compare_exchange_strong(expected, state, std::memory_order_acq_rel)) {
        event_.signal();
    }
}

void StopRequest::request(ExitReason reason) noexcept {
    set(static_cast<int>(reason));
}

void StopRequest::request_for_failure() noexcept {
    set(kFailure);
}

ExitReason StopRequest::reason() const noexcept {
    const int state = state_.load(std::memory_order_acquire);
    return state >= 0 ? static_cast<ExitReason>(state) : ExitReason::kStopped;
}

} // namespace vmm
