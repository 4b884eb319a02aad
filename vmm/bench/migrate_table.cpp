#include "vmm/bench/migrate_table.hpp"

#include <algorithm>

#include "kvm/host/format.hpp"
#include "vmm/bench/migrate_aims.hpp"
#include "vmm/bench/table.hpp"

namespace vmm::bench {

namespace {

constexpr double kMegabyte = 1e6;

/// The median in the form of `text`, or a dash.
template <typename Text>
std::string median_text(const MigrateResult& result, MigrateFigure figure, Text text) {
    const auto statistics = result.statistics(figure);
    return statistics ? text(statistics->median) : "-";
}

std::string seconds_text(const MigrateResult& result, MigrateFigure figure) {
    return median_text(result, figure, format_seconds);
}

std::string number_text(const MigrateResult& result, MigrateFigure figure) {
    return median_text(result, figure, format_count);
}

std::string ratio_text(const MigrateResult& result, MigrateFigure figure) {
    return median_text(result, figure, [](double value) { return vmm::format("{:.2f}", value); });
}

std::string megabytes_text(const MigrateResult& result, MigrateFigure figure) {
    return median_text(result, figure, [](double value) { return format_count(value / kMegabyte); });
}

std::string downtime_text(const MigrateResult& result) {
    const auto statistics = result.statistics(MigrateFigure::kDowntime);
    const auto p99 = result.percentile(MigrateFigure::kDowntime, 99);
    return statistics && p99
               ? vmm::format("{} / {} / {} / {}", format_seconds(statistics->least), format_seconds(statistics->median),
                             format_seconds(*p99), format_seconds(statistics->most))
               : "-";
}

std::string parts_text(const MigrateResult& result) {
    return result.statistics(MigrateFigure::kDowntime)
               ? vmm::format("{} + {} + {} + {}", seconds_text(result, MigrateFigure::kPause),
                             seconds_text(result, MigrateFigure::kPages), seconds_text(result, MigrateFigure::kState),
                             seconds_text(result, MigrateFigure::kTakeover))
               : "-";
}

/// "12.3 us, 1.20 ms": the 99th percentile, and the most.
std::string late_text(const MigrateResult& result, MigrateFigure p99, MigrateFigure most) {
    return result.statistics(p99) ? seconds_text(result, p99) + ", " + seconds_text(result, most) : "-";
}

std::string stopped_row(const MigrateResult& result) {
    return vmm::format("  {:<36} {:>37} {:>42}\n", to_string(result.of), downtime_text(result), parts_text(result));
}

std::string copied_row(const MigrateResult& result) {
    return vmm::format("  {:<36} {:>8} {:>7} {:>8} {:>9} {:>6} {:>5} {:>8} {:>8} {:>8}\n", to_string(result.of),
                       seconds_text(result, MigrateFigure::kTotal), number_text(result, MigrateFigure::kRounds),
                       megabytes_text(result, MigrateFigure::kRate), megabytes_text(result, MigrateFigure::kBareRate),
                       ratio_text(result, MigrateFigure::kRateOverBare), number_text(result, MigrateFigure::kThrottled),
                       megabytes_text(result, MigrateFigure::kLastBytes), seconds_text(result, MigrateFigure::kFill),
                       ratio_text(result, MigrateFigure::kMappedShare));
}

std::string arrived_row(const MigrateResult& result) {
    return vmm::format(
        "  {:<36} {:>6} {:>7} {:>7} {:>6} {:>6} {:>16} {:>16} {:>8}\n", to_string(result.of),
        number_text(result, MigrateFigure::kFaults), seconds_text(result, MigrateFigure::kFirst),
        seconds_text(result, MigrateFigure::kSteady), ratio_text(result, MigrateFigure::kFirstOverSteady),
        ratio_text(result, MigrateFigure::kFirstOverRested),
        late_text(result, MigrateFigure::kLateP99Before, MigrateFigure::kLateMaxBefore),
        late_text(result, MigrateFigure::kLateP99, MigrateFigure::kLateMax), seconds_text(result, MigrateFigure::kGap));
}

template <typename Row>
std::string rows_of(const MigrateResults& results, Row row) {
    std::string text;
    for (const MigrateResult& result : results.cases) {
        text += result.samples.empty() ? "" : row(result);
    }
    return text;
}

/// The guests that did not go over in time.
std::string stayed(const MigrateResults& results) {
    std::string text;
    for (const MigrateResult& result : results.cases) {
        const std::vector<double> over = values_of(result.samples, MigrateFigure::kCameOver);
        if (const auto count = std::ranges::count(over, 0); count != 0) {
            text += vmm::format("  {}: not convergent in {} of {} runs: {}\n", to_string(result.of), count, over.size(),
                                result.stayed_because);
        }
    }
    return text;
}

} // namespace

std::string to_table(const MigrateResults& results) {
    const MigrateSettings& settings = results.settings;
    std::size_t runs = 0;
    for (const MigrateResult& result : results.cases) {
        runs = std::max(runs, result.samples.size());
    }
    std::string text = vmm::format("{}, {} worker{}, at most {} ms of downtime asked for ({} run{}; medians)\n",
                                   format_bytes(settings.memory_bytes), settings.workers,
                                   settings.workers == 1 ? "" : "s", settings.downtime_ms, runs, runs == 1 ? "" : "s");
    text += vmm::format("  {:<36} {:>37} {:>42}\n", "the guest stands still", "min / p50 / p99 / max",
                        "to pause + pages + state + takeover");
    text += rows_of(results, stopped_row);
    text += vmm::format("  {:<36} {:>8} {:>7} {:>8} {:>9} {:>6} {:>5} {:>8} {:>8} {:>8}\n", "memory goes over", "total",
                        "rounds", "MB/s", "bare MB/s", "ratio", "held", "last MB", "fill", "mapped");
    text += rows_of(results, copied_row);
    text += vmm::format("  {:<36} {:>6} {:>7} {:>7} {:>6} {:>6} {:>16} {:>16} {:>8}\n", "after it", "faults", "first",
                        "steady", "ratio", "rested", "before: p99, max", "after: p99, max", "gap");
    text += rows_of(results, arrived_row);
    text += stayed(results);
    text += aims_table(migrate_aims(results));
    for (const MigrateResult& result : results.cases) {
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
