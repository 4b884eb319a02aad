#include "vmm/machine/vcpu_throttle.hpp"

#include <chrono>

#include "vmm/machine/vcpu_thread.hpp"

namespace vmm {

namespace {

/// A guest's timer ticks more seldom than this, and so it stays responsive.
constexpr std::chrono::microseconds kTurn{10'000};

} // namespace

VcpuThrottle::~VcpuThrottle() {
    {
        const std::lock_guard hold(lock_);
        is_over_ = true;
    }
    changed_.notify_all();
    if (thread_.joinable()) {
        thread_.join();
    }
}

void VcpuThrottle::set_percent(unsigned percent) {
    {
        const std::lock_guard hold(lock_);
        percent_ = percent;
    }
    changed_.notify_all();
    if (percent != 0 && !thread_.joinable()) {
        thread_ = start_thread("the throttle of a migration", [this] { hold_by_turns(); });
    }
}

void VcpuThrottle::hold_by_turns() {
    std::unique_lock hold(lock_);
    while (!is_over_) {
        changed_.wait(hold, [this] { return is_over_ || percent_ != 0; });
        if (is_over_) {
            break;
        }
        const auto held = kTurn * percent_ / 100;
        gate_.hold();
        changed_.wait_for(hold, held, [this] { return is_over_; });
        gate_.let_go();
        changed_.wait_for(hold, kTurn - held, [this] { return is_over_; });
    }
}

} // namespace vmm
