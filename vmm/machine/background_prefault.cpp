#include "vmm/machine/background_prefault.hpp"

#include <pthread.h>

#include <utility>

#include "kvm/host/stoppable_read.hpp"
#include "kvm/host/thread.hpp"
#include "prefault/host/low_priority.hpp"
#include "vmm/machine/stop_bridge.hpp"

namespace vmm {

BackgroundPrefault::BackgroundPrefault(FirstState& first, MachineSecondLevel& second_level, prefault::Options options,
                                       const StopRequest& stop, std::function<void()> when_full)
    : thread_(start_thread("the prefault in the background", [this, &first, &second_level, options = std::move(options),
                                                              &stop, when_full = std::move(when_full)] {
          ::pthread_setname_np(::pthread_self(), "background");
          try {
              const StopBridge bridge(stop); // The bridge's thread is not nice, because a stop must not wait.
              const prefault::LowPriority nice(bridge.token());
              first.finish(bridge.token());
              result_.report = second_level.fill(options, bridge.token());
              if (result_.report.complete && options.scope == prefault::Scope::kAll) {
                  result_.full_at = std::chrono::steady_clock::now();
                  when_full();
              }
          } catch (const StoppedError&) {
              result_.report.scope = options.scope;
              result_.report.ranges = options.ranges;
          } catch (...) {
              result_.failure = std::current_exception();
          }
      })) {}

BackgroundPrefault::~BackgroundPrefault() {
    if (thread_.joinable()) {
        thread_.join();
    }
}

BackgroundPrefault::Result BackgroundPrefault::join() {
    thread_.join();
    return std::move(result_);
}

} // namespace vmm
