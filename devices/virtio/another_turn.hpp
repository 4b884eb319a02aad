// How a device that has more to do than fits into one turn comes back to it.
#pragma once

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

#include "devices/virtio/device.hpp"
#include "kvm/host/error.hpp"
#include "kvm/host/unique_fd.hpp"

namespace vmm::devices::virtio {

/// A guest may have more to say than a turn is long, for ever. A device bounds its turns, asks for another one, and its
/// thread looks at everything else before that one comes: at a reset, above all.
///
/// Threads: one, but for ask(): any.
class AnotherTurn {
  public:
    /// Throws Error where the process has no descriptor left.
    AnotherTurn() : event_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
        if (!event_) {
            throw_errno(errno, "make an event for a device");
        }
    }

    /// One of Device::sources().
    [[nodiscard]] Source source() const noexcept { return {event_.get(), EPOLLIN}; }
    void ask() const noexcept {
        const std::uint64_t one = 1;
        static_cast<void>(::write(event_.get(), &one, sizeof(one)));
    }
    /// It has come. Where `fd` is another source, nothing happens.
    void take(int fd) const noexcept {
        std::uint64_t count = 0;
        if (fd == event_.get()) {
            static_cast<void>(::read(fd, &count, sizeof(count)));
        }
    }

  private:
    UniqueFd event_;
};

} // namespace vmm::devices::virtio
