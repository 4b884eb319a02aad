// How a device comes back to what it left at a certain time.
#pragma once

#include <sys/epoll.h>

#include "devices/virtio/device.hpp"
#include "kvm/host/timer_fd.hpp"

namespace vmm::devices::virtio {

/// Wakes a device's thread once. Threads: one.
class Alarm {
  public:
    using Clock = TimerFd::Clock;

    /// One of Device::sources().
    [[nodiscard]] Source source() const noexcept { return {timer_.fd(), EPOLLIN}; }
    /// As TimerFd::set() has it.
    void set(Clock::time_point time) const noexcept { timer_.set(time); }
    /// Device::ready() was called with `fd`. If that is another source, nothing happens.
    void take(int fd) const noexcept {
        if (fd == timer_.fd()) {
            timer_.clear();
        }
    }

  private:
    TimerFd timer_;
};

} // namespace vmm::devices::virtio
