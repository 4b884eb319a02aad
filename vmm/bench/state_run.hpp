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

/// Runs guests, each in a process of its own, and reads what they and `vmm` say of themselves. Threads: one.
class StateRunner {
  public:
    /// `program` is the path of `vmm` itself. A run that takes longer than `timeout_seconds` is ended, and has failed.
    /// `settings` and `stop` outlive this. Throws Error: a file cannot be written, or the disk has no room for the
    /// snapshots.
    StateRunner(const StateSettings& settings, std::string program, double timeout_seconds, const StopRequest& stop);

    /// What happens to a guest that is saved in the end: it is paused, and a snapshot is taken of it, once in each
    /// run.
    struct BeforeSnapshot {
        std::vector<StateSample> pauses;
        std::vector<StateSample> snapshots;
    };
    /// Runs the guest, and leaves the snapshot from which the other cases go on. Throws Error: that failed, or a stop
    /// was requested.
    [[nodiscard]] BeforeSnapshot save();

    /// Runs a case once that is not before the snapshot. Throws Error: it failed, or a stop was requested.
    [[nodiscard]] StateSample run(const StateCase& each);

    [[nodiscard]] const HarnessCost& cost() const noexcept { return programs_.cost(); }

  private:
    /// Has the snapshot know what a guest needs first.
    void record_working_set();
    [[nodiscard]] StateSample run_cold(PageSize page_size);
    [[nodiscard]] StateSample run_bare(PageSize page_size) const;
    [[nodiscard]] StateSample run_restore(const StateCase& each);
    [[nodiscard]] StateSample run_passes(const StateCase& each);
    [[nodiscard]] StateSample run_clones(const StateCase& each);

    [[nodiscard]] std::string snapshot() const { return folder_.file("snapshot"); }
    /// The words of a guest that goes on from the snapshot, and writes its report to `report`.
    [[nodiscard]] std::vector<std::string> restore_words(const StateCase& each, const std::string& report) const;
    const StateSettings& settings_;
    double timeout_seconds_;
    const StopRequest& stop_;
    WorkFolder folder_;
    CycleClock clock_;
    ProgramRunner programs_;
};

} // namespace vmm::bench
