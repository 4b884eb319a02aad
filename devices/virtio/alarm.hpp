// Wakes a device at a certain time, for work that it has put off.
#pragma once

#include <sys/epoll.h>

#include "devices/virtio/device.hpp"
#include "kvm/host/timer_fd.hpp"

namespace vmm::devices::virtio {

/// Wakes a device's thread once. Threads: one.
class Alarm {
  public:
    using Clock = TimerFd::Clock;

    /// One of the sources that Device::sources() returns.
    [[nodiscard]] Source source() const noexcept { return {timer_.fd(), EPOLLIN}; }
    /// Like TimerFd::set().
    void set(Clock::time_point time) const noexcept { timer_.set(time); }
    /// Call this from Device::ready(), with its `fd`. If that is another source, nothing happens.
    void take(int fd) const noexcept {
        if (fd == timer_.fd()) {
            timer_.clear();
        }
    }

  private:
    TimerFd timer_;
};

} // namespace vmm::devices::virtio
