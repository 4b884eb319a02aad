#include "devices/virtio/interrupt_moderation.hpp"

#include <algorithm>

namespace vmm::devices::virtio {

namespace {

constexpr InterruptModeration::Duration kShortestPatience = std::chrono::microseconds{20};
constexpr int kWeight = 8; // In a moving average the newest counts as one in so many.

} // namespace

void InterruptModeration::took(Clock::time_point now, unsigned count, std::uint64_t bytes) noexcept {
    bytes_ = (bytes_ * (kWeight - 1) + bytes / count) / kWeight;
    // Several at once came within the time since the last one, at distances nobody saw.
    const Duration gap = std::min((now - last_taken_) / count, is_for_sleeping() ? kLongestLargeGap : kLongestGap);
    gap_ += (gap - gap_) / kWeight;
    last_taken_ = last_event_ = now;
}

void InterruptModeration::finished(Clock::time_point now, unsigned count) noexcept {
    if (held_ == 0) {
        first_held_ = now;
    }
    held_ += count;
    last_event_ = now;
}

unsigned InterruptModeration::goal() const noexcept {
    const unsigned more = probing_ ? 1 + batch_ / 4 : 0;
    return std::min(batch_ + more, kMostHeld);
}

bool InterruptModeration::is_due(Clock::time_point now, unsigned under_way) const noexcept {
    if (held_ == 0) {
        return false;
    }
    // With work at the host, half of it is enough: the driver gives more to do while the other half is being done. But a
    // driver that is slower than the host has little there, and is in no hurry.
    const bool half = under_way != 0 && held_ >= under_way && (!is_for_sleeping() || 2 * held_ > goal());
    return held_ >= goal() || half || now >= deadline();
}

void InterruptModeration::told() noexcept {
    const bool reached = held_ >= goal();
    batch_ = std::clamp(held_, 1U, kMostHeld);
    held_ = 0;
    if (probing_) {
        probe_pause_ = reached ? 1 : std::min(probe_pause_ * 2, kRarestProbe);
        until_probe_ = probe_pause_;
    } else if (until_probe_ != 0) {
        --until_probe_;
    }
    probing_ = until_probe_ == 0;
    if (probing_) {
        until_probe_ = probe_pause_;
    }
}

InterruptModeration::Duration InterruptModeration::patience() const noexcept {
    const Duration usual = std::max(2 * gap_, kShortestPatience);
    return is_for_sleeping() ? usual : std::min(usual, kLongestGap);
}

InterruptModeration::Clock::time_point InterruptModeration::deadline() const noexcept {
    return std::min(last_event_ + patience(), first_held_ + kLongestHold);
}

} // namespace vmm::devices::virtio
