// A timer as a file descriptor.
#pragma once

#include "kvm/host/unique_fd.hpp"

namespace vmm {

/// Becomes readable once an interval (timerfd, CLOCK_MONOTONIC). Threads: one.
class IntervalTimer {
  public:
    /// `seconds` more than 0. Throws Error where the process has no descriptor left.
    explicit IntervalTimer(double seconds);

    /// The descriptor, on loan.
    [[nodiscard]] int fd() const noexcept { return fd_.get(); }
    /// Makes it unreadable until the next interval ends. Never blocks.
    void clear() const noexcept;

  private:
    UniqueFd fd_;
};

} // namespace vmm
