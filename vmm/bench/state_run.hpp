// Runs the cases of `vmm bench state`.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "vmm/bench/program_runner.hpp"
#include "vmm/bench/run.hpp"
#include "vmm/bench/state_results.hpp"
#include "vmm/stop_request.hpp"

namespace vmm::bench {

/// Runs guests, each in a process of its own, and reads their output and that of `vmm`. Threads: one.
class StateRunner {
  public:
    /// `program` is the path of `vmm` itself. A run that takes longer than `timeout_seconds` is ended, and counts as
    /// failed. `settings` and `stop` must outlive this object. Throws Error if a file cannot be written, or if the disk
    /// has no room for the snapshots.
    StateRunner(const StateSettings& settings, std::string program, double timeout_seconds, const StopRequest& stop);

    /// The measurements on the guest before it is saved. In each run it is paused once, and one snapshot of it is
    /// taken.
    struct BeforeSnapshot {
        std::vector<StateSample> pauses;
        std::vector<StateSample> snapshots;
    };
    /// Runs the guest, and leaves the snapshot from which the other cases go on. Throws Error if that failed, or if a
    /// stop was requested.
    [[nodiscard]] BeforeSnapshot save();

    /// Runs a case once. The case must not be one before the snapshot. Throws Error if it failed, or if a stop was
    /// requested.
    [[nodiscard]] StateSample run(const StateCase& each);

    [[nodiscard]] const HarnessCost& cost() const noexcept { return programs_.cost(); }

  private:
    /// Adds the working set to the snapshot.
    void record_working_set();
    [[nodiscard]] StateSample run_cold(PageSize page_size);
    [[nodiscard]] StateSample run_bare(PageSize page_size) const;
    [[nodiscard]] StateSample run_restore(const StateCase& each);
    [[nodiscard]] StateSample run_passes(const StateCase& each);
    [[nodiscard]] StateSample run_clones(const StateCase& each);

    [[nodiscard]] std::string snapshot() const { return folder_.file("snapshot"); }
    /// The command line of a guest that goes on from the snapshot, and writes its report to `report`.
    [[nodiscard]] std::vector<std::string> restore_words(const StateCase& each, const std::string& report) const;
    const StateSettings& settings_;
    double timeout_seconds_;
    const StopRequest& stop_;
    WorkFolder folder_;
    CycleClock clock_;
    ProgramRunner programs_;
};

} // namespace vmm::bench
