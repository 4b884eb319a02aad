// Makes a stop token of a machine's request to stop.
#pragma once

#include <atomic>
#include <stop_token>
#include <thread>

#include "kvm/host/event_fd.hpp"
#include "vmm/stop_request.hpp"

namespace vmm {

/// While it lives, a request to stop also stops token(). A thread does that, because a request may come from a signal
/// handler, and a stop source must not be used there. Threads: one; the token may be used from any.
class StopBridge {
  public:
    /// `request` must outlive the bridge. Throws Error if the host cannot make a thread.
    explicit StopBridge(const StopRequest& request);
    ~StopBridge();
    StopBridge(const StopBridge&) = delete;
    StopBridge& operator=(const StopBridge&) = delete;

    /// Stops token() for another reason.
    void request_stop() noexcept { source_.request_stop(); }
    [[nodiscard]] std::stop_token token() const { return source_.get_token(); }

  private:
    EventFd finished_;
    std::atomic<bool> is_finished_{false};
    std::stop_source source_;
    std::thread watcher_; // last: it uses all of the above
};

} // namespace vmm
