// Reports the frames that a guest in user mode sent to the host itself and that were dropped.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>

namespace vmm {

/// Counts all such frames, and warns at most once a minute, because a guest can send them as fast as it likes.
///
/// Threads: add() one; count() and summary() any.
class KeptFrames {
  public:
    using Clock = std::chrono::steady_clock;
    static constexpr std::chrono::minutes kPause{1};

    KeptFrames(std::string name, std::function<void(const std::string&)> warn,
               std::function<Clock::time_point()> now = &Clock::now)
        : name_(std::move(name)), warn_(std::move(warn)), now_(std::move(now)) {}

    /// Counts a frame to `destination`.
    void add(const std::string& destination) {
        const std::uint64_t count = count_.fetch_add(1, std::memory_order_relaxed) + 1;
        const auto now = now_();
        if (warn_ && (!warned_at_ || now - *warned_at_ >= kPause)) {
            warned_at_ = now;
            warn_(name_ + ": a frame of the guest's to " + destination +
                  " was dropped, because that is the host itself (" + std::to_string(count) +
                  " so far; host-loopback lets them through)");
        }
    }
    [[nodiscard]] std::uint64_t count() const noexcept { return count_.load(std::memory_order_relaxed); }
    /// A line for the end of the run.
    [[nodiscard]] std::string summary() const {
        return name_ + ": " + std::to_string(count()) + " frames of the guest's to the host itself were dropped";
    }

  private:
    const std::string name_;
    const std::function<void(const std::string&)> warn_;
    const std::function<Clock::time_point()> now_;
    std::optional<Clock::time_point> warned_at_;
    std::atomic<std::uint64_t> count_{0};
};

} // namespace vmm
