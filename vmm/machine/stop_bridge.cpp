#include "vmm/machine/stop_bridge.hpp"

#include <poll.h>

#include <array>
#include <chrono>

#include "kvm/host/thread.hpp"

namespace vmm {

StopBridge::StopBridge(const StopRequest& request)
    : watcher_(start_thread("the prefault", [this, &request] {
          std::array<pollfd, 2> events{{{request.fd(), POLLIN, 0}, {finished_.fd(), POLLIN, 0}}};
          // Whatever poll() returns, the loop notices a request and the end of this bridge.
          while (::poll(events.data(), events.size(), -1) < 0 && !request.is_requested() && !is_finished_.load()) {
              std::this_thread::sleep_for(std::chrono::milliseconds(10));
          }
          if (request.is_requested()) {
              source_.request_stop();
          }
      })) {
    // This comes before the thread runs, because work that was stopped already must not begin.
    if (request.is_requested()) {
        source_.request_stop();
    }
}

StopBridge::~StopBridge() {
    is_finished_.store(true);
    finished_.signal();
    watcher_.join();
}

} // namespace vmm
