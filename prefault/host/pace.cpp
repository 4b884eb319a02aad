#include "prefault/host/pace.hpp"

#include <algorithm>

namespace vmm::prefault {

Pace::Clock::time_point Pace::next_after(std::uint64_t bytes, Clock::time_point now) {
    if (bytes_per_second_ == 0) {
        return now;
    }
    const std::chrono::duration<double> time(static_cast<double>(bytes) / static_cast<double>(bytes_per_second_));
    const std::lock_guard hold(lock_);
    next_ = std::max(next_, now) + std::chrono::duration_cast<Clock::duration>(time);
    return next_;
}

void Pace::wait_after(std::uint64_t bytes, const std::stop_token& stop) {
    const Clock::time_point until = next_after(bytes, Clock::now());
    std::unique_lock hold(lock_);
    stopped_.wait_until(hold, stop, until, [until] { return Clock::now() >= until; });
}

} // namespace vmm::prefault
