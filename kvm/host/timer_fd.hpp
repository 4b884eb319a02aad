// A timer as a file descriptor (timerfd).
#pragma once

#include <chrono>

#include "kvm/host/unique_fd.hpp"

namespace vmm {

/// Becomes readable at a given time, or at every interval (CLOCK_MONOTONIC). Threads: one.
class TimerFd {
  public:
    using Clock = std::chrono::steady_clock;

    /// A timer that is not set. Throws Error if the process has no descriptor left.
    TimerFd();
    /// Becomes readable every `seconds`, which must be more than 0. Throws Error, as above.
    explicit TimerFd(double seconds);

    /// Becomes readable once, at `time`; this replaces the time set before. If `time` has passed, it becomes readable
    /// at once.
    void set(Clock::time_point time) const noexcept;
    /// Makes it unreadable until the next time comes. Never blocks.
    void clear() const noexcept;

    /// The descriptor, on loan.
    [[nodiscard]] int fd() const noexcept { return fd_.get(); }

  private:
    UniqueFd fd_;
};

} // namespace vmm
