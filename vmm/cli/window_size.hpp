// The size of the terminal a person sits at.
#pragma once

#include <optional>

#include "devices/virtio/console.hpp"
#include "kvm/host/event_fd.hpp"

namespace vmm {

/// Nothing where `fd` is no terminal, or one that does not know its size.
[[nodiscard]] std::optional<devices::virtio::ConsoleSize> window_size(int fd) noexcept;

/// Hears of changes (SIGWINCH). Like RawTerminal it changes a signal's disposition, so it is for programs, not for the
/// library. At most one exists at a time. Threads: the main one.
class WindowSizeSignal {
  public:
    /// Throws Error where the process has no descriptor left.
    WindowSizeSignal();
    ~WindowSizeSignal();
    WindowSizeSignal(const WindowSizeSignal&) = delete;
    WindowSizeSignal& operator=(const WindowSizeSignal&) = delete;

    /// Readable once the size has changed. On loan.
    [[nodiscard]] int fd() const noexcept { return changed_.fd(); }

  private:
    EventFd changed_;
};

} // namespace vmm
