// One virtual machine, from configuration to exit.
#pragma once

#include <chrono>
#include <deque>
#include <memory>
#include <string>

#include "vmm/config.hpp"
#include "vmm/report.hpp"
#include "vmm/stop_request.hpp"

namespace vmm {

/// A guest: its memory, vCPUs and devices. Construction loads the kernel and creates everything, but populates nothing
/// and runs nothing; what cannot work is refused then, and nothing is left behind. Destruction gives everything back.
///
///     Machine machine(config);
///     machine.prefault();          // as config.prefault says; the report can be asked for later
///     ExitReason reason = machine.run();
///
/// Threads: request_stop() and is_stop_requested() may be called from any thread and from a signal handler, also while
/// prefault() or run() is under way. Everything else is for the thread that made it.
class Machine {
  public:
    /// `started` is when the clock of RunReport::seconds_to_first_instruction begins. Throws Error.
    explicit Machine(Config config, std::chrono::steady_clock::time_point started = std::chrono::steady_clock::now());
    ~Machine();
    Machine(const Machine&) = delete;
    Machine& operator=(const Machine&) = delete;

    /// Populates what `config.prefault` asks for; before run(). Ends early if a stop is requested. Throws Error.
    const prefault::Report& prefault();

    /// Runs the guest until it ends or is stopped. Once. Throws Error where the host fails.
    ExitReason run();

    /// Ends prefault() and run() soon; the first request counts.
    void request_stop(ExitReason reason = ExitReason::kStopped) noexcept;

    [[nodiscard]] bool is_stop_requested() const noexcept;

    /// What happened until now. After run() it is whole.
    [[nodiscard]] const RunReport& report() const noexcept;
    /// Where the guest crashed: the reason and the registers, as lines. Empty if it did not.
    [[nodiscard]] const std::string& crash_description() const noexcept;

  private:
    struct Parts;
    std::unique_ptr<Parts> parts_;
};

} // namespace vmm
