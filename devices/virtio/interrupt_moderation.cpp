#include "devices/virtio/interrupt_moderation.hpp"

#include <algorithm>

namespace vmm::devices::virtio {

namespace {

constexpr InterruptModeration::Duration kShortestPatience = std::chrono::microseconds{20};
constexpr int kWeight = 8; // In a moving average the newest value has a weight of one in this number.

} // namespace

void InterruptModeration::took(Clock::time_point now, unsigned count, std::uint64_t bytes) noexcept {
    bytes_ = (bytes_ * (kWeight - 1) + bytes / count) / kWeight;
    // Several requests at once came since the last one, at unknown distances.
    const Duration gap = std::min((now - last_taken_) / count, is_for_sleeping() ? kLongestLargeGap : kLongestGap);
    gap_ += (gap - gap_) / kWeight;
    last_taken_ = last_event_ = now;
    at_driver_ -= std::min(at_driver_, count);
}

void InterruptModeration::finished(Clock::time_point now, unsigned count, bool small) noexcept {
    urgent_ = urgent_ || (small && is_for_sleeping());
    if (held_ == 0) {
        first_held_ = now;
    }
    held_ += count;
    last_event_ = now;
}

unsigned InterruptModeration::goal() const noexcept {
    if (is_for_sleeping()) {
        return probing_ ? kMostHeld : std::clamp(depth_ / 2, 1U, kMostHeld);
    }
    const unsigned more = probing_ ? 1 + batch_ / 4 : 0;
    return std::min(batch_ + more, kMostHeld);
}

bool InterruptModeration::is_due(Clock::time_point now, unsigned under_way) const noexcept {
    if (held_ == 0) {
        return false;
    }
    // If the host has work, half of the requests are enough: the driver adds more while the other half is being done.
    // For large requests that is the goal already.
    const bool half = !is_for_sleeping() && under_way != 0 && held_ >= under_way;
    return !on_ || urgent_ || half || held_ >= goal() || now >= deadline();
}

void InterruptModeration::told(Clock::time_point now, unsigned under_way) noexcept {
    // True if a probe found more than was known.
    const bool more = is_for_sleeping() ? learn_depth(now, under_way) : held_ >= goal();
    at_driver_ += held_;
    last_event_ = now;
    batch_ = std::clamp(held_, 1U, kMostHeld);
    held_ = 0;
    urgent_ = false;
    if (probing_) {
        probe_pause_ = more ? 1 : std::min(probe_pause_ * 2, kRarestProbe);
        until_probe_ = probe_pause_;
    } else if (until_probe_ != 0) {
        --until_probe_;
    }
    probing_ = until_probe_ == 0;
    if (probing_) {
        until_probe_ = probe_pause_;
    }
}

/// Returns true if the driver keeps more requests under way than was known.
bool InterruptModeration::learn_depth(Clock::time_point now, unsigned under_way) noexcept {
    const unsigned seen = held_ + under_way;
    const bool more = seen > depth_ + depth_ / 4;
    if (now >= deadline()) { // No more came: these are all, or the driver was late once.
        at_driver_ = 0;
        if (!probing_ && seen < depth_) {
            probe_pause_ = until_probe_ = 1;
        }
        depth_ = seen < depth_ ? depth_ - (depth_ - seen + 1) / 2 : seen;
    } else {
        depth_ = std::max(depth_, seen);
    }
    return more;
}

unsigned InterruptModeration::doorbell_after(Clock::time_point now) noexcept {
    if (now >= last_event_ + patience()) {
        at_driver_ = 0;
    }
    return on_ && is_for_sleeping() ? std::max(std::min(at_driver_, depth_ / 2), 1U) : 1;
}

InterruptModeration::Duration InterruptModeration::patience() const noexcept {
    const Duration usual = std::max(2 * gap_, kShortestPatience);
    return is_for_sleeping() ? usual : std::min(usual, kLongestGap);
}

InterruptModeration::Clock::time_point InterruptModeration::deadline() const noexcept {
    const Clock::time_point quiet = last_event_ + patience();
    const Duration longest = is_for_sleeping() ? kLongestLargeHold : kLongestHold;
    return held_ != 0 ? std::min(quiet, first_held_ + longest) : quiet;
}

} // namespace vmm::devices::virtio
