// The size of the terminal at which the person sits.
#pragma once

#include <optional>

#include "devices/virtio/console.hpp"
#include "kvm/host/event_fd.hpp"

namespace vmm {

/// Returns nothing if `fd` is no terminal, or if the terminal does not know its size.
[[nodiscard]] std::optional<devices::virtio::ConsoleSize> window_size(int fd) noexcept;

/// Reports changes (SIGWINCH). Like RawTerminal it changes a signal's disposition, so it is for programs, not for the
/// library. At most one exists at a time. Threads: the main one.
class WindowSizeSignal {
  public:
    /// Throws Error if the process has no descriptor left.
    WindowSizeSignal();
    ~WindowSizeSignal();
    WindowSizeSignal(const WindowSizeSignal&) = delete;
    WindowSizeSignal& operator=(const WindowSizeSignal&) = delete;

    /// Becomes readable when the size has changed. The descriptor is on loan.
    [[nodiscard]] int fd() const noexcept { return changed_.fd(); }

  private:
    EventFd changed_;
};

} // namespace vmm
