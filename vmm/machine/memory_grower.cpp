#include "vmm/machine/memory_grower.hpp"

#include <pthread.h>

#include <chrono>
#include <exception>
#include <mutex>
#include <optional>

#include "kvm/host/error.hpp"
#include "kvm/host/stoppable_read.hpp"
#include "kvm/host/thread.hpp"
#include "vmm/machine/stop_bridge.hpp"

namespace vmm {

using devices::virtio::MemoryChange;
using devices::virtio::MemoryOutcome;

MemoryGrower::MemoryGrower(devices::virtio::MemoryDevice& device, FirstState& first, MachineSecondLevel& second_level,
                           const StopRequest& stop, Embedder& embedder)
    : device_(device), first_(first), second_level_(second_level), stop_(stop), embedder_(embedder),
      thread_(start_thread("the memory of " + device.identity().name, [this] { body(); })) {}

MemoryGrower::~MemoryGrower() {
    thread_.join();
}

void MemoryGrower::body() noexcept {
    ::pthread_setname_np(::pthread_self(), "grower");
    try {
        const StopBridge bridge(stop_);
        first_.finish(bridge.token());
        serve(bridge.token());
    } catch (const StoppedError&) { // The device cancels what the guest has asked for.
    } catch (...) {
        embedder_.note_failure(std::current_exception());
    }
}

void MemoryGrower::serve(const std::stop_token& stop) {
    constexpr std::chrono::milliseconds kBetweenTries{5};
    devices::virtio::MemoryWork& work = device_.work();
    while (const std::optional<MemoryChange> change = work.wait(stop)) {
        const MachineSecondLevel::Hold hold(second_level_, std::try_to_lock);
        if (!hold.has()) { // The device may withdraw the change until it has begun.
            std::this_thread::sleep_for(kBetweenTries);
        } else if (work.begin()) {
            work.finish(make(hold, *change, stop));
        }
    }
}

MemoryOutcome MemoryGrower::make(const MachineSecondLevel::Hold& hold, const MemoryChange& change,
                                 const std::stop_token& stop) {
    const std::string& name = device_.identity().name;
    try {
        if (!change.plug) {
            second_level_.unplug(hold, change.range, stop);
            return MemoryOutcome::kDone;
        }
        const prefault::Report report = second_level_.plug(hold, change.range, stop);
        if (!report.problem.empty()) {
            warn_once(name + ": the guest has the memory at " + to_string(change.range) +
                      ", and its second level is not full: " + report.problem);
        }
        return MemoryOutcome::kDone;
    } catch (const StoppedError&) {
        return MemoryOutcome::kCannot;
    } catch (const Error& error) {
        warn_once(name + ": the guest was refused a change of its memory at " + to_string(change.range) +
                  ", and may try again: " + error.what());
        return MemoryOutcome::kCannot;
    } catch (...) { // The embedding program threw it, or there is no memory for a message.
        embedder_.note_failure(std::current_exception());
        return MemoryOutcome::kCannot;
    }
}

void MemoryGrower::warn_once(const std::string& line) {
    if (line != warned_) {
        warned_ = line;
        embedder_.warn(line);
    }
}

} // namespace vmm
