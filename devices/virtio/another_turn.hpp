// How a device that has more to do than fits into one turn comes back to it.
#pragma once

#include <sys/epoll.h>

#include "devices/virtio/device.hpp"
#include "kvm/host/event_fd.hpp"

namespace vmm::devices::virtio {

/// A guest may have more to say than a turn is long, for ever. A device bounds its turns and asks for another one. Its
/// thread looks at everything else before that one comes, above all at a reset.
///
/// Threads: one, but for ask(): any.
class AnotherTurn {
  public:
    /// One of Device::sources().
    [[nodiscard]] Source source() const noexcept { return {event_.fd(), EPOLLIN}; }
    void ask() const noexcept { event_.signal(); }
    /// Device::ready() was called with `fd`. If that is another source, nothing happens.
    void take(int fd) const noexcept {
        if (fd == event_.fd()) {
            event_.clear();
        }
    }

  private:
    EventFd event_;
};

} // namespace vmm::devices::virtio
