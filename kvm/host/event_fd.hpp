// An eventfd: one thread wakes another's event loop with it, and a device raises an interrupt line with it.
#pragma once

#include "kvm/host/export.hpp"
#include "kvm/host/unique_fd.hpp"

VMM_API_BEGIN
namespace vmm {

/// A counter in the kernel with a file descriptor to wait on. Threads: any. signal() may be called from a signal
/// handler.
class EventFd {
  public:
    /// Throws Error if the process has no descriptor left.
    EventFd();

    /// Makes the descriptor readable. Never blocks.
    void signal() const noexcept;
    /// Makes it unreadable again. Never blocks.
    void clear() const noexcept;

    /// The descriptor, on loan.
    [[nodiscard]] int fd() const noexcept { return fd_.get(); }

  private:
    UniqueFd fd_;
};

} // namespace vmm
VMM_API_END
