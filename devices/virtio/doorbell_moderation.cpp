#include "devices/virtio/doorbell_moderation.hpp"

#include <algorithm>

namespace vmm::devices::virtio {

/// Notes how far `count` > 0 requests are from each other.
bool DoorbellModeration::is_stream(Clock::time_point now, unsigned count) noexcept {
    constexpr int kWeight = 8; // In a moving average the newest counts as one in so many.
    const Duration gap = std::min((now - last_) / count, 2 * kLongestGap);
    gap_ += (gap - gap_) / kWeight;
    last_ = now;
    return gap_ < kLongestGap;
}

unsigned DoorbellModeration::after(Clock::time_point now, unsigned count) noexcept {
    const bool is_late = wanted_ > 1 && now >= deadline_;
    if (count == 0) {
        wanted_ = is_late ? 1 : wanted_; // Otherwise another queue had work, and they may still come.
        return wanted_;
    }
    if (!is_stream(now, count)) {
        wanted_ = 1;
    } else if (count > wanted_ || (count == wanted_ && count > 1)) {
        wanted_ = std::min(wanted_ + 1, kMost);
    } else if (is_late) {
        wanted_ = std::max(count / 2, 1U);
    }
    deadline_ = now + std::min(2 * wanted_ * gap_, kLongestWait);
    return wanted_;
}

} // namespace vmm::devices::virtio
