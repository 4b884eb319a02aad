// Waits for several descriptors at once (epoll).
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

    /// Watches `fd`, a loan, for `events`. Returns false if `fd` is always ready and epoll cannot watch it: a regular
    /// file, for example. Throws Error for other failures.
    [[nodiscard]] bool watch(int fd, std::uint32_t events, Handler handler);
    /// Ends the calls for `fd`. Does nothing if it is not watched. A handler may unwatch itself.
    void unwatch(int fd) noexcept;

    /// Waits at most `timeout_ms` (-1: for ever), and calls the handlers of descriptors that are ready. Throws what the
    /// handlers throw.
    void run_once(int timeout_ms);
    /// True if a descriptor is ready now, so that run_once() would not wait.
    [[nodiscard]] bool has_events() const;

  private:
    UniqueFd epoll_;
    std::map<int, std::shared_ptr<Handler>> handlers_;
};

} // namespace vmm
