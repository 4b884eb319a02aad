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
/// Threads: any, but set_guest_runs() and rethrow_failure() are for the thread of Machine::run().
class Embedder {
  public:
    /// `log` may be empty. `stop` must outlive this object; it gets a request if something fails.
    Embedder(LogSink log, StopRequest& stop);

    /// Logs `line`. What the log throws comes out of here before the guest runs; afterwards it is kept as by
    /// note_failure().
    void log(LogLevel level, const std::string& line);

    /// Logs a warning from a device's thread. It does nothing after part().
    void warn(const std::string& line);

    /// Ends the run with what one of the program's functions threw. Only the first exception is kept.
    void note_failure(std::exception_ptr thrown) noexcept;
    /// Throws what note_failure() kept, if there is anything.
    void rethrow_failure();

    void set_guest_runs() noexcept { guest_runs_.store(true); }

    /// Silences the warnings of devices that outlive their machine, because the program's log may be gone.
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
