// The embedding program, as a machine sees it.
#pragma once

#include <atomic>
#include <exception>
#include <mutex>
#include <string>

#include "vmm/log.hpp"
#include "vmm/stop_request.hpp"

namespace vmm {

/// Passes lines to the embedding program's log, and keeps the first exception that one of the program's functions threw
/// while the guest ran.
///
/// Threads: any, but for set_guest_runs() and rethrow_failure(), which are for the thread of Machine::run().
class Embedder {
  public:
    /// `log` may be empty. `stop` outlives this; a failure makes a request to it.
    Embedder(LogSink log, StopRequest& stop);

    /// Before the guest runs, what the log throws comes out of here. Afterwards it is kept as note_failure() does.
    void log(LogLevel level, const std::string& line);

    /// A warning from a device's thread. Nobody hears it after part().
    void warn(const std::string& line);

    /// Ends the run with what one of the program's functions threw. The first one counts.
    void note_failure(std::exception_ptr thrown) noexcept;
    /// Throws what note_failure() kept, if anything.
    void rethrow_failure();

    void set_guest_runs() noexcept { guest_runs_.store(true); }

    /// From now on devices that outlive their machine stay silent, because the program's log may be gone.
    void part();

  private:
    LogSink log_;
    StopRequest& stop_;
    std::atomic<bool> guest_runs_{false};
    std::mutex warning_; ///< held while a device warns
    bool has_parted_ = false;
    std::mutex failure_lock_;
    std::exception_ptr failure_;
};

} // namespace vmm
