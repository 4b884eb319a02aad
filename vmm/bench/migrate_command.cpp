#include "vmm/bench/migrate_command.hpp"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <string>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/stopwatch.hpp"
#include "kvm/host/user_fault_fd.hpp"
#include "vmm/bench/matrix.hpp"
#include "vmm/bench/migrate_plot.hpp"
#include "vmm/bench/migrate_results.hpp"
#include "vmm/bench/migrate_run.hpp"
#include "vmm/bench/migrate_table.hpp"
#include "vmm/bench/progress_text.hpp"
#include "vmm/bench/raised_pools.hpp"
#include "vmm/bench/result_files.hpp"
#include "vmm/bench/rounds.hpp"
#include "vmm/bench/warm.hpp"
#include "vmm/limits.hpp"
#include "vmm/machine/stop_bridge.hpp"
#include "vmm/output/patient_write.hpp"
#include "vmm/output/stop_on_signals.hpp"
#include "vmm/version.hpp"

namespace vmm {

namespace {

using namespace bench;

/// Memory exists three times: in the guest, and at both ends of a bare loop at the same time.
constexpr std::uint64_t kCopiesOfMemory = 3;

template <typename Value>
void fill_in(std::vector<Value>& list, std::vector<Value> standard) {
    if (list.empty()) {
        list = std::move(standard);
    }
}

MigrateSettings settings_of(const BenchMigrateCommand& command, const HostRoom& room, unsigned cpus) {
    MigrateSettings settings;
    settings.memory_bytes = command.memory_bytes;
    settings.lists = command.lists;
    fill_in(settings.lists.page_sizes, {kPageSizesOfAnyHost.begin(), kPageSizesOfAnyHost.end()});
    if (command.lists.page_sizes.empty() &&
        (room.may_raise_pools || room.free_2m_bytes >= kCopiesOfMemory * settings.memory_bytes)) {
        settings.lists.page_sizes.push_back(kPageSizeOfPool);
    }
    if (settings.lists.vcpus.empty()) {
        std::ranges::copy_if(BenchMigrateCommand::kVcpus, std::back_inserter(settings.lists.vcpus),
                             [cpus](unsigned vcpus) { return vcpus <= std::max(cpus, 1U); });
    }
    fill_in(settings.lists.links, {kMigrateLinks.begin(), kMigrateLinks.end()});
    fill_in(settings.lists.streams, {BenchMigrateCommand::kStreams.begin(), BenchMigrateCommand::kStreams.end()});
    fill_in(settings.lists.fills, {kMigrateFills.begin(), kMigrateFills.end()});
    fill_in(settings.lists.modes, {kMigrateModes.begin(), kMigrateModes.end()});
    if (command.lists.modes.empty() && !UserFaultFd::problem().empty()) {
        std::erase(settings.lists.modes, MigrateMode::kPostCopy);
    }
    settings.every = command.every;
    settings.runs = command.runs;
    settings.workers = command.workers.value_or(cpus);
    settings.downtime_ms = command.downtime_ms;
    settings.give_up_seconds = command.give_up_seconds;
    settings.warm = command.warm;
    return settings;
}

/// The memory of each case, to check whether it fits.
std::vector<Cell> cells_of(const MigrateResults& results) {
    std::vector<Cell> cells;
    for (const MigrateResult& result : results.cases) {
        Cell cell;
        cell.memory_bytes = kCopiesOfMemory * results.settings.memory_bytes;
        cell.vcpus = result.of.vcpus;
        cell.workers = results.settings.workers;
        cell.page_size = result.of.page_size;
        cells.push_back(cell);
    }
    return cells;
}

void measure_migrations(MigrateResults& results, double timeout_seconds, StopRequest& stop) {
    const auto started = std::chrono::steady_clock::now();
    MigrateRunner runner(results.settings, "/proc/self/exe", timeout_seconds, stop);
    ProgressText progress;
    const MigrateSettings& settings = results.settings;
    run_rounds(results.cases, settings.runs, stop, progress, [&](MigrateResult& result) {
        if (settings.warm && !copies_first(result.of.mode)) { // otherwise a bare loop uses as much memory
            warm_memory(kCopiesOfMemory * settings.memory_bytes, result.of.page_size, stop);
        }
        MigrateRunner::Run run = runner.run(result.of);
        result.samples.push_back(run.sample);
        if (!run.stayed_because.empty()) {
            result.stayed_because = std::move(run.stayed_because);
        }
    });
    results.complete = have_all_runs(results.cases, settings.runs);
    results.harness.run_seconds = runner.cost().runs;
    results.harness.own_cpu_seconds = runner.cost().own_cpu;
    results.harness.seconds = seconds_since(started);
}

} // namespace

int run_bench_migrate(const BenchMigrateCommand& command) {
    ResultFiles files({.json = command.json, .plot = command.plot});
    MigrateResults results;
    results.version = kVersion;
    results.host = read_host_facts();
    const HostRoom room = read_host_room();
    results.settings = settings_of(command, room, results.host.cpus);
    for (const MigrateCase& each : migrate_cases(results.settings.lists, results.settings.every)) {
        results.cases.push_back({each});
    }
    if (results.cases.empty()) {
        throw Error("cannot measure what cannot be: 'local' has a unix socket, one stream and a prefault, and "
                    "'post-copy' has a prefault and no pages of 1G (--mode, --link, --streams, --prefault)");
    }
    const std::vector<Cell> cells = cells_of(results);
    try {
        check_fits(cells, room);
    } catch (const Error& error) {
        throw Error(std::string("the memory of a guest that migrates is needed three times, because a bare loop is "
                                "measured beside it: ") +
                    error.what());
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
        measure_migrations(results, command.timeout_seconds, stop);
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
