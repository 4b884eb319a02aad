#include "vmm/bench/state_command.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/stopwatch.hpp"
#include "kvm/host/user_fault_fd.hpp"
#include "vmm/bench/matrix.hpp"
#include "vmm/bench/progress_text.hpp"
#include "vmm/bench/raised_pools.hpp"
#include "vmm/bench/result_files.hpp"
#include "vmm/bench/rounds.hpp"
#include "vmm/bench/state_plot.hpp"
#include "vmm/bench/state_results.hpp"
#include "vmm/bench/state_run.hpp"
#include "vmm/bench/state_table.hpp"
#include "vmm/bench/warm.hpp"
#include "vmm/limits.hpp"
#include "vmm/machine/stop_bridge.hpp"
#include "vmm/output/patient_write.hpp"
#include "vmm/output/stop_on_signals.hpp"
#include "vmm/version.hpp"

namespace vmm {

namespace {

using Clock = std::chrono::steady_clock;
using namespace bench;

StateSettings settings_of(const BenchStateCommand& command, const HostRoom& room, unsigned cpus) {
    const auto& standard = command.quick ? BenchStateCommand::kQuick : BenchStateCommand::kStandard;
    StateSettings settings;
    settings.memory_bytes = command.memory_bytes.value_or(standard.memory_bytes);
    settings.vcpus = command.vcpus;
    settings.workers = command.workers.value_or(cpus);
    settings.page_sizes = command.page_sizes;
    if (settings.page_sizes.empty()) {
        settings.page_sizes.assign(kPageSizesOfAnyHost.begin(), kPageSizesOfAnyHost.end());
        if (room.may_raise_pools || room.free_2m_bytes >= settings.memory_bytes) {
            settings.page_sizes.push_back(kPageSizeOfPool);
        }
    }
    settings.modes = command.modes;
    if (settings.modes.empty()) {
        settings.modes.assign(kRestoreModes.begin(), kRestoreModes.end());
        if (!UserFaultFd::problem().empty()) {
            std::erase(settings.modes, RestoreMode::kLazy);
        }
    }
    settings.runs = command.runs.value_or(standard.runs);
    settings.clones = command.clones.value_or(standard.clones);
    settings.warm = command.warm;
    return settings;
}

/// The guests, to check whether they fit.
std::vector<Cell> cells_of(const StateSettings& settings) {
    std::vector<Cell> cells;
    for (const PageSize page_size : settings.page_sizes) {
        Cell cell;
        cell.memory_bytes = settings.memory_bytes;
        cell.vcpus = settings.vcpus;
        cell.workers = settings.workers;
        cell.page_size = page_size;
        cells.push_back(cell);
    }
    return cells;
}

/// Makes all runs of all cases, round by round, so that slow changes of the host affect all cases alike.
class StateBenchmark {
  public:
    StateBenchmark(StateResults& results, double timeout_seconds, StopRequest& stop)
        : results_(results), stop_(stop), runner_(results.settings, "/proc/self/exe", timeout_seconds, stop) {}

    /// Throws Error if the guest from which the others go on cannot be saved.
    void run() {
        const auto started = Clock::now();
        progress_.show("a guest is saved");
        try {
            take(runner_.save());
        } catch (const Error& error) {
            if (!stop_.is_requested()) {
                throw Error(std::string("cannot measure restores: the guest to be saved: ") + error.what());
            }
        }
        run_rounds(results_.cases, results_.settings.runs, stop_, progress_, [this](StateResult& result) {
            if (is_before_snapshot(result.of.scenario)) {
                return;
            }
            if (results_.settings.warm) {
                warm_memory(results_.settings.memory_bytes, result.of.page_size, stop_);
            }
            result.samples.push_back(runner_.run(result.of));
        });
        results_.complete = have_all_runs(results_.cases, results_.settings.runs);
        results_.harness.run_seconds = runner_.cost().runs;
        results_.harness.own_cpu_seconds = runner_.cost().own_cpu;
        results_.harness.seconds = seconds_since(started);
    }

  private:
    void take(StateRunner::BeforeSnapshot before) {
        for (StateResult& result : results_.cases) {
            if (is_before_snapshot(result.of.scenario)) {
                result.samples = std::move(result.of.scenario == Scenario::kPause ? before.pauses : before.snapshots);
            }
        }
    }

    StateResults& results_;
    StopRequest& stop_;
    StateRunner runner_;
    ProgressText progress_;
};

} // namespace

int run_bench_state(const BenchStateCommand& command) {
    ResultFiles files({.json = command.json, .plot = command.plot});
    StateResults results;
    results.version = kVersion;
    results.host = read_host_facts();
    const HostRoom room = read_host_room();
    results.settings = settings_of(command, room, results.host.cpus);
    const std::vector<Cell> cells = cells_of(results.settings);
    check_fits(cells, room);
    for (const StateCase& each : state_cases(results.settings.page_sizes, results.settings.modes)) {
        results.cases.push_back({each});
    }
    results.load_before = load_average();

    StopRequest stop;
    const StopOnSignals stop_on_signals(stop);
    {
        const StopBridge bridge(stop); // raising a pool may take long
        const RaisedPools pools(cells, room, bridge.token());
        if (stop.is_requested()) {
            return exit_codes::kStoppedBySignal;
        }
        StateBenchmark(results, command.timeout_seconds, stop).run();
    }
    results.load_after = load_average();
    const WritePatience patience{.hurry_fd = stop_on_signals.fd()};
    const bool printed = print_result(to_table(results), patience);
    files.write({[&] { return to_json(results); }, {}, [&](PlotFormat format) { return plot_script(results, format); }},
                patience);
    if (stop.is_requested()) {
        return exit_codes::kStoppedBySignal;
    }
    return !printed || results.any_failed() ? exit_codes::kHostFailed : exit_codes::kSuccess;
}

} // namespace vmm
