// Waiting for several descriptors at once (epoll).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>

#include "kvm/host/unique_fd.hpp"

namespace vmm {

/// Calls a handler when its descriptor is ready. Level-triggered. Threads: one.
class EventLoop {
  public:
    using Handler = std::function<void(std::uint32_t events)>; ///< EPOLLIN, EPOLLOUT, ...

    EventLoop();

    /// Watches `fd`, a loan, for `events`. False where the kernel has no such thing as readiness for it (a regular
    /// file): it is always ready. Throws Error for other failures.
    [[nodiscard]] bool watch(int fd, std::uint32_t events, Handler handler);
    /// No more calls for `fd`. Nothing happens if it is not watched. A handler may do this to itself.
    void unwatch(int fd) noexcept;

    /// Waits at most `timeout_ms` (-1: for ever) and calls the handlers of what is ready. Throws what they throw.
    void run_once(int timeout_ms);
    /// Whether something is ready now, so that run_once() would not wait.
    [[nodiscard]] bool has_events() const;

  private:
    UniqueFd epoll_;
    std::map<int, std::shared_ptr<Handler>> handlers_;
};

} // namespace vmm
