#include "vmm/bench/state_table.hpp"

#include <algorithm>

#include "kvm/host/format.hpp"
#include "vmm/bench/state_aims.hpp"
#include "vmm/bench/table.hpp"

namespace vmm::bench {

namespace {

std::string time_text(const StateResult& result, StateFigure figure) {
    const auto statistics = result.statistics(figure);
    return statistics ? format_seconds(statistics->median) : "-";
}

std::string count_text(const StateResult& result, StateFigure figure) {
    const auto statistics = result.statistics(figure);
    return statistics ? format_count(statistics->median) : "-";
}

/// The main figure of a case.
StateFigure main_figure(Scenario scenario) {
    switch (scenario) {
    case Scenario::kBareRead:
        return StateFigure::kRead;
    case Scenario::kSnapshot:
        return StateFigure::kStopped;
    case Scenario::kPause:
        return StateFigure::kLateMax;
    case Scenario::kPasses:
        return StateFigure::kFirst;
    case Scenario::kCold:
    case Scenario::kRestore:
    case Scenario::kClones:
        break;
    }
    return StateFigure::kReady;
}

std::string_view main_name(Scenario scenario) {
    switch (scenario) {
    case Scenario::kBareRead:
        return "read";
    case Scenario::kSnapshot:
        return "stopped";
    case Scenario::kPause:
        return "latest";
    case Scenario::kPasses:
        return "first pass";
    case Scenario::kCold:
    case Scenario::kRestore:
    case Scenario::kClones:
        break;
    }
    return "ready";
}

std::string main_text(const StateResult& result) {
    const auto statistics = result.statistics(main_figure(result.of.scenario));
    if (!statistics) {
        return "-";
    }
    std::string text = format_seconds(statistics->median);
    if (result.samples.size() > 1) {
        text += vmm::format(" [{} .. {}]", format_seconds(statistics->least), format_seconds(statistics->most));
    }
    return text;
}

std::string row(const StateResult& result) {
    const bool has_lateness = result.statistics(StateFigure::kLateMax).has_value();
    const std::string late =
        has_lateness ? vmm::format("{} / {} / {}", time_text(result, StateFigure::kLateP50),
                                   time_text(result, StateFigure::kLateP99), time_text(result, StateFigure::kLateMax))
                     : "-";
    return vmm::format("  {:<24} {:<10} {:>29} {:>9} {:>9} {:>32}\n", to_string(result.of),
                       main_name(result.of.scenario), main_text(result), count_text(result, StateFigure::kFaults),
                       count_text(result, StateFigure::kExits), late);
}

/// The details of a case that have no column.
std::string details(const StateResult& result) {
    switch (result.of.scenario) {
    case Scenario::kBareRead:
        return vmm::format("  {}: populating that memory takes {} before\n", to_string(result.of),
                           time_text(result, StateFigure::kPopulate));
    case Scenario::kSnapshot:
        return vmm::format("  {}: {} bytes written in {}, of them {} while the guest stood still\n",
                           to_string(result.of), count_text(result, StateFigure::kWrittenBytes),
                           time_text(result, StateFigure::kTotal), count_text(result, StateFigure::kStoppedBytes));
    case Scenario::kPasses:
        return vmm::format("  {}: a steady pass takes {}, and the first one after a second of other work {}\n",
                           to_string(result.of), time_text(result, StateFigure::kSteady),
                           time_text(result, StateFigure::kRested));
    case Scenario::kRestore:
        return vmm::format("  {}: from snapshot to restore, the guest's clock says that its latest beat was {} late\n",
                           to_string(result.of), time_text(result, StateFigure::kGap));
    case Scenario::kClones:
        return vmm::format("  {}: the last one is ready after {}\n", to_string(result.of),
                           time_text(result, StateFigure::kReadyMost));
    case Scenario::kPause:
    case Scenario::kCold:
        break;
    }
    return "";
}

} // namespace

std::string to_table(const StateResults& results) {
    const StateSettings& settings = results.settings;
    std::size_t runs = 0;
    for (const StateResult& result : results.cases) {
        runs = std::max(runs, result.samples.size());
    }
    std::string text = vmm::format("{}, {} vCPU{}, {} worker{} ({} run{}: median [least .. most])\n",
                                   format_bytes(settings.memory_bytes), settings.vcpus, settings.vcpus == 1 ? "" : "s",
                                   settings.workers, settings.workers == 1 ? "" : "s", runs, runs == 1 ? "" : "s");
    text += vmm::format("  {:<24} {:<10} {:>29} {:>9} {:>9} {:>32}\n", "case", "figure", "", "faults", "exits",
                        "late p50 / p99 / max");
    for (const StateResult& result : results.cases) {
        text += result.samples.empty() ? "" : row(result);
    }
    for (const StateResult& result : results.cases) {
        text += result.samples.empty() ? "" : details(result);
    }
    text += aims_table(state_aims(results));
    for (const StateResult& result : results.cases) {
        if (!result.failure.empty()) {
            text += vmm::format("FAILED {}: {}\n", to_string(result.of), result.failure);
        }
    }
    text += load_line(results.load_before, results.load_after, results.host.cpus);
    if (!results.complete) {
        text += results.any_failed() ? "NOT COMPLETE: see what failed\n" : "NOT COMPLETE: stopped\n";
    }
    return text;
}

} // namespace vmm::bench
