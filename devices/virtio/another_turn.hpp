// Gives another turn to a device that has more work than fits into one turn.
#pragma once

#include <sys/epoll.h>

#include "devices/virtio/device.hpp"
#include "kvm/host/event_fd.hpp"

namespace vmm::devices::virtio {

/// A guest may always have more work than a turn is long. A device bounds its turns and asks for another one. Before
/// that turn its thread handles everything else, above all a reset.
///
/// Threads: one, except for ask(): any.
class AnotherTurn {
  public:
    /// One of the sources that Device::sources() returns.
    [[nodiscard]] Source source() const noexcept { return {event_.fd(), EPOLLIN}; }
    void ask() const noexcept { event_.signal(); }
    /// Call this from Device::ready(), with its `fd`. If that is another source, nothing happens.
    void take(int fd) const noexcept {
        if (fd == event_.fd()) {
            event_.clear();
        }
    }

  private:
    EventFd event_;
};

} // namespace vmm::devices::virtio
