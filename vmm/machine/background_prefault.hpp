// A prefault that runs beside the guest.
#pragma once

#include <chrono>
#include <exception>
#include <functional>
#include <optional>
#include <thread>

#include "vmm/machine/first_state.hpp"
#include "vmm/machine/machine_second_level.hpp"
#include "vmm/stop_request.hpp"

namespace vmm {

/// A thread that prefaults what `options` ask for, as soon as all of memory has its content, until it is done or the
/// machine stops. Destruction waits for it, so a stop must have been requested before, unless the work is done.
///
/// Threads: the one that made it.
class BackgroundPrefault {
  public:
    /// What the prefault did.
    struct Result {
        prefault::Report report;
        std::exception_ptr failure; ///< then the report says nothing
        /// When the second level was full; nothing if it was not.
        std::optional<std::chrono::steady_clock::time_point> full_at;
    };

    /// `when_full` is called on the new thread, when the second level is full. `first`, `second_level` and `stop`
    /// outlive this. Throws Error if the host gives no thread.
    BackgroundPrefault(FirstState& first, MachineSecondLevel& second_level, prefault::Options options,
                       const StopRequest& stop, std::function<void()> when_full);
    ~BackgroundPrefault();
    BackgroundPrefault(const BackgroundPrefault&) = delete;
    BackgroundPrefault& operator=(const BackgroundPrefault&) = delete;

    /// Waits for the end. Once.
    [[nodiscard]] Result join();

  private:
    Result result_;
    std::thread thread_; // last: it uses the above
};

} // namespace vmm
