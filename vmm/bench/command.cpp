#include "vmm/bench/command.hpp"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <numeric>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/stopwatch.hpp"
#include "kvm/system.hpp"
#include "prefault/host/cpu_list.hpp"
#include "prefault/host/warm_piece.hpp"
#include "vmm/bench/child.hpp"
#include "vmm/bench/compare.hpp"
#include "vmm/bench/merge.hpp"
#include "vmm/bench/model.hpp"
#include "vmm/bench/plot.hpp"
#include "vmm/bench/progress_text.hpp"
#include "vmm/bench/raised_pools.hpp"
#include "vmm/bench/result_files.hpp"
#include "vmm/bench/results.hpp"
#include "vmm/bench/run.hpp"
#include "vmm/bench/table.hpp"
#include "vmm/bench/warm.hpp"
#include "vmm/host/capabilities.hpp"
#include "vmm/limits.hpp"
#include "vmm/machine/stop_bridge.hpp"
#include "vmm/output/file_roles.hpp"
#include "vmm/output/patient_write.hpp"
#include "vmm/output/stop_on_signals.hpp"
#include "vmm/version.hpp"

namespace vmm {

namespace {

using Clock = std::chrono::steady_clock;
using namespace bench;

template <typename Value>
void take_default(std::vector<Value>& list, const std::vector<Value>& preset) {
    if (list.empty()) {
        list = preset;
    }
}

void complete_matrix(Matrix& matrix, const Matrix& preset) {
    take_default(matrix.memory_bytes, preset.memory_bytes);
    take_default(matrix.vcpus, preset.vcpus);
    take_default(matrix.workers, preset.workers);
    take_default(matrix.page_sizes, preset.page_sizes);
    if (matrix.methods.empty()) { // If the pool was asked for, its absence is an error.
        matrix.has_thp_pool = preset.has_thp_pool;
    }
    take_default(matrix.methods, preset.methods);
    take_default(matrix.orders, preset.orders);
}

bool has_thp_pool() {
    try {
        prefault::check_warm_page_size(PageSize::kThp);
        return true;
    } catch (const Error&) {
        return false;
    }
}

/// Throws Error before the first run for everything that `vmm run` would refuse.
void check_cells(const std::vector<Cell>& cells) {
    const kvm::System system;
    for (const Cell& cell : cells) {
        if (cell.contender != Contender::kVmm) {
            continue;
        }
        try {
            const Config config = config_of(cell);
            validate(config);
            check_host(system, config);
        } catch (const Error& error) {
            throw Error("cannot measure " + to_string(cell) + ": " + error.what());
        }
    }
}

std::string qemu_version(const RunSettings& settings) {
    ChildSpec spec;
    spec.words = {settings.qemu, "--version"};
    spec.timeout_seconds = 60;
    const ChildEnd end = run_child(spec);
    if (!end.succeeded()) {
        throw Error("cannot measure against QEMU: " + settings.qemu + ": " + end.problem() +
                    (end.problem().find(errno_reason(ENOENT)) != std::string::npos
                         ? " (install the package qemu-system-x86, or name it with --qemu)"
                         : " (name another with --qemu)"));
    }
    return end.output.substr(0, end.output.find('\n'));
}

/// Makes all runs of all cells, round by round, so that slow changes of the host affect all cells alike.
class Benchmark {
  public:
    /// If `run_limited`, the settings' timeout is that of the preset, and a run that exceeds it is no failure.
    Benchmark(const BenchCommand& command, const RunSettings& settings, bool run_limited, Results& results,
              StopRequest& stop)
        : command_(command), results_(results), runs_(results.settings.runs), stop_(stop),
          runner_(settings, "/proc/self/exe", stop.fd()), run_limited_(run_limited),
          cell_seconds_(results.cells.size()) {}

    void run() {
        const auto started = Clock::now();
        for (unsigned round = 0; round < runs_ && !stop_.is_requested(); ++round) {
            const auto& limit = results_.settings.time_limit_seconds;
            if (round > 0 && limit && seconds_since(started) + round_seconds() > *limit) {
                break;
            }
            run_round(round);
        }
        results_.complete = !stop_.is_requested() && std::ranges::all_of(results_.cells, [](const CellResult& cell) {
            return cell.failure.empty() && !cell.samples.empty();
        });
        results_.harness.run_seconds = runner_.cost().runs;
        results_.harness.own_cpu_seconds = runner_.cost().own_cpu;
        if (!stop_.is_requested()) {
            results_.harness.empty_run_seconds = runner_.measure_empty_run(5);
        }
        results_.harness.seconds = seconds_since(started);
    }

  private:
    /// The duration of a round, by the last run of each cell that is still measured.
    [[nodiscard]] double round_seconds() const {
        return std::accumulate(cell_seconds_.begin(), cell_seconds_.end(), 0.0);
    }

    void run_round(unsigned round) {
        std::size_t number = 0;
        for (const std::size_t i : round_order(results_.cells.size(), round)) {
            ++number;
            CellResult& result = results_.cells[i];
            if (stop_.is_requested()) {
                return;
            }
            if (!result.failure.empty()) {
                continue;
            }
            const double left = round > 0 ? round_seconds() * (runs_ - round) : 0;
            progress_.show(vmm::format("run {} of {}, cell {} of {}: {}{}", round + 1, runs_, number,
                                       results_.cells.size(), to_string(result.cell),
                                       left > 0 ? vmm::format(", at most {:.0f} s left", left) : ""));
            const auto started = Clock::now();
            if (command_.warm) {
                warm_memory(result.cell.memory_bytes, result.cell.page_size, stop_);
            }
            const RunEnd end = runner_.run(result.cell);
            cell_seconds_[i] = seconds_since(started);
            if (end.sample) {
                result.samples.push_back(*end.sample);
            } else if (!end.stopped) {
                result.failure = command_.words ? command_.words(end.failure) : end.failure;
                result.left_out = end.timed_out && run_limited_;
                cell_seconds_[i] = 0;
            }
        }
    }

    const BenchCommand& command_;
    Results& results_;
    unsigned runs_;
    StopRequest& stop_;
    Runner runner_;
    ProgressText progress_;
    bool run_limited_;
    std::vector<double> cell_seconds_;
};

} // namespace

int run_bench(const BenchCommand& command) {
    ResultFiles files({command.json, command.csv, command.plot});
    Results results;
    results.version = kVersion;
    results.host = read_host_facts();
    const HostRoom room = read_host_room();
    const PresetHost host{results.host.cpus, results.host.prefault_ioctl && results.host.second_level != "shadow",
                          results.host.nested, has_thp_pool()};
    const PresetFacts preset = preset_facts(command.preset, room, host, command.full);
    Matrix matrix = command.matrix;
    complete_matrix(matrix, preset.matrix);
    std::vector<Cell> cells = cells_of(matrix);
    if (command.cells) {
        results.matrix = cells;
        cells = cells_of_share(results.matrix, *command.cells);
        if (cells.empty()) {
            throw Error(vmm::format("cannot measure share {} of the cells: the matrix has only {} (take fewer shares)",
                                    to_string(*command.cells), results.matrix.size()));
        }
    }
    check_fits(cells, room);

    results.settings.preset = to_string(command.preset);
    results.settings.runs = command.runs.value_or(preset.runs);
    results.settings.passes = command.settings.passes;
    results.settings.warm = command.warm;
    results.settings.share = command.cells;
    results.settings.attempt = command.attempt;
    results.settings.time_limit_seconds =
        command.time_limit_seconds ? command.time_limit_seconds : preset.time_limit_seconds;
    if (matrix.qemu) {
        results.settings.qemu_version = qemu_version(command.settings);
    }
    if (matrix.command) {
        results.settings.command = command.settings.command;
        static_cast<void>(expand_template(cells.front(), command.settings, "guest.elf"));
    }
    for (const Cell& cell : cells) {
        results.cells.push_back({cell, {}, {}});
    }

    StopRequest stop;
    const StopOnSignals stop_on_signals(stop);
    {
        const StopBridge bridge(stop); // raising a pool may take long
        const RaisedPools pools(cells, room, bridge.token());
        if (stop.is_requested()) {
            return exit_codes::kStoppedBySignal;
        }
        check_cells(cells);
        if (command.model) {
            results.settings.bandwidth = measure_bandwidth(bridge.token());
        }
        RunSettings settings = command.settings;
        settings.timeout_seconds =
            command.timeout_seconds.value_or(preset.run_limit_seconds.value_or(settings.timeout_seconds));
        const bool run_limited = !command.timeout_seconds && preset.run_limit_seconds;
        Benchmark(command, settings, run_limited, results, stop).run();
    }
    derive_prealloc(results);
    std::string text = to_table(results);
    if (command.preset == Preset::kScale || command.model) {
        const std::vector<PageCosts> costs = fit_costs(results);
        text += '\n' + fit_table(costs);
        if (command.model) {
            text += '\n' + model_table(costs, results);
        }
    }
    const WritePatience patience{.hurry_fd = stop_on_signals.fd()};
    const bool printed = print_result(text, patience);
    files.write({[&] { return to_json(results); }, [&] { return to_csv(results); },
                 [&](PlotFormat format) { return plot_script(results, format); }},
                patience);
    if (stop.is_requested()) {
        return exit_codes::kStoppedBySignal;
    }
    return !printed || results.any_failed() ? exit_codes::kHostFailed : exit_codes::kSuccess;
}

int run_bench_compare(const BenchCompareCommand& command) {
    const MergedResults before = read_merged(command.before);
    const MergedResults after = read_merged(command.after);
    const HostsComparison comparison = compare(before, after, command.threshold);
    const bool printed = print_result(to_text(comparison, command.threshold));
    return !printed || comparison.any_worse() ? exit_codes::kHostFailed : exit_codes::kSuccess;
}

int run_bench_merge(const BenchMergeCommand& command) {
    FileRoles roles;
    for (const std::string& file : command.files) {
        roles.add(FileRoles::Use::kRead, "a file of results", file);
    }
    for (const auto& [role, path] : {std::pair("--json", &command.json), {"--plot", &command.plot}}) {
        if (!path->empty()) {
            roles.add(FileRoles::Use::kWrite, role, *path); // emptied below, so it may not be a file that is read
        }
    }
    std::vector<MergeInput> inputs;
    for (const std::string& file : command.files) {
        inputs.push_back({file, read_results(file)});
    }
    const MergedResults merged = merge(inputs, kVersion);
    ResultFiles files({.json = command.json, .plot = command.plot});
    const bool printed = print_result(to_table(merged));
    files.write({[&] { return to_json(merged); }, {}, [&](PlotFormat format) { return plot_script(merged, format); }},
                {});
    return !printed || merged.any_failed() ? exit_codes::kHostFailed : exit_codes::kSuccess;
}

} // namespace vmm
