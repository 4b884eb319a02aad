#include "vmm/machine/vcpu_throttle.hpp"

#include <algorithm>
#include <chrono>

#include "kvm/host/thread.hpp"

namespace vmm {

namespace {

/// The length of one turn. It is short, so that the guest stays responsive.
constexpr std::chrono::microseconds kTurn{10'000};
/// If a guest runs for less than this in each turn, most of its time is spent on entering and leaving it.
constexpr std::chrono::microseconds kShortestRun{1'000};
constexpr unsigned kAll = 100;

/// The times of one turn: how long vCPUs run, and how long they are held for `percent` of it.
struct Turn {
    std::chrono::microseconds run;
    std::chrono::microseconds held;
};

Turn turn_of(unsigned percent) {
    const auto run = std::max(kTurn * (kAll - percent) / kAll, kShortestRun);
    return {run, run * percent / (kAll - percent)};
}

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
        const unsigned percent = percent_;
        const Turn turn = turn_of(percent);
        const auto is_another = [this, percent] { return is_over_ || percent_ != percent; };
        gate_.hold();
        changed_.wait_for(hold, turn.held, is_another);
        gate_.let_go();
        changed_.wait_for(hold, turn.run, is_another);
    }
}

} // namespace vmm
