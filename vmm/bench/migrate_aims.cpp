#include "vmm/bench/migrate_aims.hpp"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace vmm::bench {

namespace {

constexpr double kIdleDowntimeSeconds = 0.010;
constexpr double kIdleDowntimeP99Seconds = 0.020;
constexpr double kLocalDowntimeSeconds = 0.010;
constexpr double kLateOverBaselineSeconds = 0.001;
constexpr double kFirstRatio = 1.05;
constexpr double kRateOverBareRatio = 0.9;
constexpr double kMillisecondInSeconds = 1e-3;

RoundValues round_values(const MigrateResult& result, MigrateFigure figure) {
    RoundValues values;
    for (const MigrateSample& sample : result.samples) {
        values.push_back(sample[figure]);
    }
    return values;
}

/// How much later the guest's beats are than before the migration, in each round.
RoundValues later_than_before(const MigrateResult& result) {
    RoundValues values;
    for (const MigrateSample& sample : result.samples) {
        const auto after = sample[MigrateFigure::kLateP99];
        const auto before = sample[MigrateFigure::kLateP99Before];
        values.push_back(after && before ? std::optional(std::max(*after - *before, 0.0)) : std::nullopt);
    }
    return values;
}

/// The number of runs in which a guest that writes nothing stayed.
RoundValues stays(const MigrateResult& result) {
    const std::vector<double> over = values_of(result.samples, MigrateFigure::kCameOver);
    return {over.empty() ? std::nullopt : std::optional(static_cast<double>(std::ranges::count(over, 0)))};
}

void add_downtime(const MigrateResult& result, const MigrateSettings& settings, AimList& aims) {
    const std::string name = to_string(result.of) + ": downtime";
    const RoundValues downtimes = round_values(result, MigrateFigure::kDowntime);
    switch (result.of.mode) {
    case MigrateMode::kIdle:
        aims.add(to_string(result.of) + ": runs in which it did not go over", Aim::Kind::kCount, stays(result), 0);
        aims.add(name, Aim::Kind::kSeconds, downtimes, kIdleDowntimeSeconds);
        aims.add(name + ", p99", Aim::Kind::kSeconds, {result.percentile(MigrateFigure::kDowntime, 99)},
                 kIdleDowntimeP99Seconds);
        break;
    case MigrateMode::kLocal:
        aims.add(to_string(result.of) + ": runs in which it did not go over", Aim::Kind::kCount, stays(result), 0);
        aims.add(name, Aim::Kind::kSeconds, downtimes, kLocalDowntimeSeconds);
        break;
    case MigrateMode::kWorker:
    case MigrateMode::kWriter:
    case MigrateMode::kPostCopy:
        aims.add(name + ", or not over", Aim::Kind::kSeconds,
                 {result.percentile(MigrateFigure::kDowntime, 100).value_or(0)},
                 settings.downtime_ms * kMillisecondInSeconds);
        break;
    }
}

} // namespace

std::vector<Aim> migrate_aims(const MigrateResults& results) {
    AimList aims;
    const auto each = [&](auto add) {
        for (const MigrateResult& result : results.cases) {
            if (!result.samples.empty()) {
                add(result, to_string(result.of));
            }
        }
    };
    each([&](const MigrateResult& result, const std::string& name) {
        if (result.of.fill == MigrateFill::kAll && result.of.mode != MigrateMode::kPostCopy) {
            aims.add(name + ": faults of the first second", Aim::Kind::kCount,
                     {result.percentile(MigrateFigure::kFaults, 100)}, 0);
        }
    });
    each([&](const MigrateResult& result, const std::string& name) {
        if (result.of.fill == MigrateFill::kAll) {
            aims.add(name + ": first pass over steady pass", Aim::Kind::kRatio,
                     round_values(result, MigrateFigure::kFirstOverSteady), kFirstRatio);
            aims.add(name + ": first pass over a rested one", Aim::Kind::kRatio,
                     round_values(result, MigrateFigure::kFirstOverRested), kFirstRatio);
        }
    });
    each([&](const MigrateResult& result, const std::string& /*name*/) {
        add_downtime(result, results.settings, aims);
    });
    each([&](const MigrateResult& result, const std::string& name) {
        aims.add(name + ": rate over a bare loop's", Aim::Kind::kRatio,
                 round_values(result, MigrateFigure::kRateOverBare), kRateOverBareRatio, Aim::Wanted::kAtLeast);
    });
    each([&](const MigrateResult& result, const std::string& name) {
        if (result.of.fill == MigrateFill::kAll) {
            aims.add(name + ": beats, p99, over before", Aim::Kind::kSeconds, later_than_before(result),
                     kLateOverBaselineSeconds);
        }
    });
    return std::move(aims).take();
}

} // namespace vmm::bench
