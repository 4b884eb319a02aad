// The descriptors on which a virtio device waits, in the event loop of its thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "devices/virtio/device.hpp"
#include "vmm/machine/event_loop.hpp"

namespace vmm {

/// Watches exactly the sources that a device or a lane names. Threads: that of the loop.
class SourceWatch {
  public:
    using Ready = std::function<void(int fd, std::uint32_t events)>;

    /// `loop` must outlive it. The loop calls `ready` for each source that is ready.
    SourceWatch(EventLoop& loop, Ready ready);

    /// Watches `wanted` from now on. Throws as EventLoop::watch() does.
    void follow(const std::vector<devices::virtio::Source>& wanted);
    /// The number of sources that it watches.
    [[nodiscard]] std::size_t size() const noexcept { return watched_.size(); }

  private:
    EventLoop& loop_;
    const Ready ready_;
    std::vector<devices::virtio::Source> watched_;
};

} // namespace vmm
