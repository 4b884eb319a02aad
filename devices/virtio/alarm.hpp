// How a device comes back to what it left at a certain time.
#pragma once

#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>

#include "devices/virtio/device.hpp"
#include "kvm/host/error.hpp"
#include "kvm/host/unique_fd.hpp"

namespace vmm::devices::virtio {

/// Wakes a device's thread once (timerfd, CLOCK_MONOTONIC). Threads: one.
class Alarm {
  public:
    using Clock = std::chrono::steady_clock;

    /// Throws Error where the process has no descriptor left.
    Alarm() : timer_(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)) {
        if (!timer_) {
            throw_errno(errno, "make a timer for a device");
        }
    }

    /// One of Device::sources().
    [[nodiscard]] Source source() const noexcept { return {timer_.get(), EPOLLIN}; }
    /// Instead of the time it was set to before. One that has passed: at once.
    void set(Clock::time_point time) const noexcept {
        const auto since_boot = std::max<Clock::duration>(time.time_since_epoch(), std::chrono::nanoseconds{1});
        const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(since_boot);
        itimerspec when{};
        when.it_value.tv_sec = seconds.count();
        when.it_value.tv_nsec = std::chrono::nanoseconds(since_boot - seconds).count();
        static_cast<void>(::timerfd_settime(timer_.get(), TFD_TIMER_ABSTIME, &when, nullptr));
    }
    /// It has come. Where `fd` is another source, nothing happens.
    void take(int fd) const noexcept {
        std::uint64_t count = 0;
        if (fd == timer_.get()) {
            static_cast<void>(::read(fd, &count, sizeof(count)));
        }
    }

  private:
    UniqueFd timer_;
};

} // namespace vmm::devices::virtio
