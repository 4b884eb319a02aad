// What a virtio device waits on, in the event loop of its thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "devices/virtio/device.hpp"
#include "vmm/machine/event_loop.hpp"

namespace vmm {

/// Watches the sources that a device or a lane names, and no others. Threads: that of the loop.
class SourceWatch {
  public:
    using Ready = std::function<void(int fd, std::uint32_t events)>;

    /// `loop` outlives it. `ready` is called by the loop for a source that is ready.
    SourceWatch(EventLoop& loop, Ready ready);

    /// Watches `wanted` from now on. Throws as EventLoop::watch() does.
    void follow(const std::vector<devices::virtio::Source>& wanted);
    /// Says how many it watches.
    [[nodiscard]] std::size_t size() const noexcept { return watched_.size(); }

  private:
    EventLoop& loop_;
    const Ready ready_;
    std::vector<devices::virtio::Source> watched_;
};

} // namespace vmm
