// One run of one cell.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "vmm/bench/cell.hpp"
#include "vmm/bench/child.hpp"
#include "vmm/bench/contenders.hpp"
#include "vmm/bench/sample.hpp"

namespace vmm::bench {

/// How long a cycle of the time-stamp counter takes, which the built-in guest counts in: the guest's counter runs at
/// the host's rate, since nobody asked for another (Documentation/virt/kvm/api.rst, KVM_SET_TSC_KHZ). Measured against
/// the monotonic clock since construction, so that it gets better with time. Threads: one.
class CycleClock {
  public:
    CycleClock();
    /// Waits until 20 ms have passed since construction.
    [[nodiscard]] double seconds_per_cycle() const;

  private:
    std::chrono::steady_clock::time_point started_;
    std::uint64_t cycles_;
};

/// A folder for what runs write, gone afterwards.
class WorkFolder {
  public:
    /// Throws Error.
    WorkFolder();
    ~WorkFolder();
    WorkFolder(const WorkFolder&) = delete;
    WorkFolder& operator=(const WorkFolder&) = delete;
    [[nodiscard]] std::string file(const std::string& name) const { return path_ + "/" + name; }

  private:
    std::string path_;
};

/// What came of a run: a sample, or the reason why not; neither where it was stopped.
struct Outcome {
    std::optional<Sample> sample;
    std::string failure;
    bool stopped = false;
    bool timed_out = false;
};

/// What running cost, in seconds.
struct HarnessCost {
    double runs = 0;    ///< from the start to the end of each measured program
    double own_cpu = 0; ///< of this process meanwhile
};

/// Runs cells, each in a process of its own. Threads: one.
class Runner {
  public:
    /// `program` is the path of `vmm` itself; `stop_fd`: readable when a run is to end. Throws Error.
    Runner(RunSettings settings, std::string program, int stop_fd);

    /// Throws Error where no process can be made; whatever else goes wrong is the outcome's.
    [[nodiscard]] Outcome run(const Cell& cell);

    /// How long a guest that does next to nothing takes from start to end, less what it says itself that it took: what
    /// starting, reading and ending cost. Median of `runs`.
    [[nodiscard]] std::optional<double> measure_empty_run(unsigned runs);

    [[nodiscard]] const HarnessCost& cost() const noexcept { return cost_; }

  private:
    [[nodiscard]] ChildEnd run_child(const ChildSpec& spec);
    [[nodiscard]] Outcome run_vmm(const Cell& cell);
    [[nodiscard]] Outcome run_qemu(const Cell& cell);
    [[nodiscard]] Outcome run_command(const Cell& cell);

    RunSettings settings_;
    std::string program_;
    int stop_fd_;
    WorkFolder folder_;
    std::string kernel_;
    CycleClock clock_;
    HarnessCost cost_;
};

/// Figures from the text of a `vmm run --report`. Throws Error where it is none, or the prefault was not complete.
void add_report_figures(const std::string& report, Sample& sample);

/// Faults and exits of all vCPUs, from QEMU's answer to query-stats; nothing where the text has no such answer.
void add_qmp_figures(std::string_view qmp, Sample& sample);

/// Faults and exits of the VMs of process group `group`, from KVM's debugfs where that can be read.
void add_debugfs_figures(const std::string& kvm_debugfs, int group, Sample& sample);

} // namespace vmm::bench
