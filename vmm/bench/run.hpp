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
#include "vmm/bench/x86/cycle_clock.hpp"

namespace vmm::bench {

/// A folder for the files that runs write. Destruction deletes it.
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

/// The end of a run: a sample, or why there is none. A run that was stopped has neither.
struct RunEnd {
    std::optional<Sample> sample;
    std::string failure;
    bool stopped = false;
    bool timed_out = false;
};

/// The cost of running, in seconds.
struct HarnessCost {
    double runs = 0;    ///< from the start to the end of each measured program
    double own_cpu = 0; ///< of this process meanwhile
};

/// Runs cells, each in a process of its own. Threads: one.
class Runner {
  public:
    /// `program` is the path of `vmm` itself. `stop_fd` becomes readable when a run must end. Throws Error.
    Runner(RunSettings settings, std::string program, int stop_fd);

    /// Throws Error if no process can be made. Every other failure is in the result.
    [[nodiscard]] RunEnd run(const Cell& cell);

    /// Measures the cost of starting, reading and ending: how long a guest that does almost nothing takes from start to
    /// end, without the time that it reports. Returns the median of `runs`.
    [[nodiscard]] std::optional<double> measure_empty_run(unsigned runs);

    [[nodiscard]] const HarnessCost& cost() const noexcept { return cost_; }

  private:
    class Pool;

    [[nodiscard]] ChildEnd run_child(const ChildSpec& spec);
    [[nodiscard]] RunEnd run_vmm(const Cell& cell);
    [[nodiscard]] RunEnd run_qemu(const Cell& cell);
    [[nodiscard]] RunEnd run_command(const Cell& cell);

    RunSettings settings_;
    std::string program_;
    int stop_fd_;
    WorkFolder folder_;
    std::string kernel_;
    CycleClock clock_;
    HarnessCost cost_;
};

/// Adds the figures in the report of a `vmm run`. Throws Error if the text is no report, or if the prefault was not
/// complete.
void add_report_figures(const std::string& report, Sample& sample);

/// Adds faults and exits of all vCPUs, from QEMU's answer to query-stats; none if the text has no such answer.
void add_qmp_figures(std::string_view qmp, Sample& sample);

/// Adds faults and exits of the VMs of process group `group`, from KVM's debugfs; none if that cannot be read.
void add_debugfs_figures(const std::string& kvm_debugfs, int group, Sample& sample);

} // namespace vmm::bench
