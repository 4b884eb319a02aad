#include "vmm/machine/background_prefault.hpp"

#include <pthread.h>

#include <utility>

#include "prefault/host/parallel.hpp"
#include "vmm/machine/stop_bridge.hpp"
#include "vmm/machine/vcpu_thread.hpp"

namespace vmm {

BackgroundPrefault::BackgroundPrefault(Prefaulter& prefaulter, prefault::Options options, const StopRequest& stop,
                                       std::function<void()> when_full)
    : thread_(start_thread("the prefault in the background",
                           [this, &prefaulter, options = std::move(options), &stop, when_full = std::move(when_full)] {
                               ::pthread_setname_np(::pthread_self(), "background");
                               try {
                                   const StopBridge bridge(stop); // Its thread is not nice: a stop must not wait.
                                   const prefault::LowPriority nice(bridge.token());
                                   outcome_.report = prefaulter.run(options, bridge.token());
                                   if (outcome_.report.complete && options.scope == prefault::Scope::kAll) {
                                       outcome_.full_at = std::chrono::steady_clock::now();
                                       when_full();
                                   }
                               } catch (...) {
                                   outcome_.failure = std::current_exception();
                               }
                           })) {}

BackgroundPrefault::~BackgroundPrefault() {
    if (thread_.joinable()) {
        thread_.join();
    }
}

BackgroundPrefault::Outcome BackgroundPrefault::join() {
    thread_.join();
    return std::move(outcome_);
}

} // namespace vmm
