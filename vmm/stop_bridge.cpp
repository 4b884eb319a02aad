#include "vmm/stop_bridge.hpp"

#include <poll.h>

#include <array>

#include "vmm/vcpu_thread.hpp"

namespace vmm {

StopBridge::StopBridge(const StopRequest& request)
    : watcher_(start_thread("the prefault", [this, &request] {
          std::array<pollfd, 2> events{{{request.fd(), POLLIN, 0}, {finished_.fd(), POLLIN, 0}}};
          while (::poll(events.data(), events.size(), -1) < 0) {
          }
          if (request.is_requested()) {
              source_.request_stop();
          }
      })) {
    if (request.is_requested()) { // Before the thread runs: who has been told to stop already must not begin.
        source_.request_stop();
    }
}

StopBridge::~StopBridge() {
    finished_.signal();
    watcher_.join();
}

} // namespace vmm
