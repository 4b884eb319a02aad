#include "vmm/bench/state_aims.hpp"

#include <algorithm>
#include <cstddef>

#include "kvm/host/format.hpp"

namespace vmm::bench {

namespace {

RoundValues values_of(const StateResult* result, StateFigure figure) {
    RoundValues values;
    if (result != nullptr) {
        for (const StateSample& sample : result->samples) {
            values.push_back(sample[figure]);
        }
    }
    return values;
}

/// Combines the values of two cases in the same round by `combine`.
template <typename Combine>
RoundValues by_round(const RoundValues& one, const RoundValues& other, Combine combine) {
    RoundValues values;
    for (std::size_t i = 0; i < std::min(one.size(), other.size()); ++i) {
        values.push_back(one[i] && other[i] ? combine(*one[i], *other[i]) : std::nullopt);
    }
    return values;
}

RoundValues ratios(const RoundValues& of, const RoundValues& over) {
    return by_round(of, over,
                    [](double value, double base) { return base > 0 ? std::optional(value / base) : std::nullopt; });
}

RoundValues sums(const RoundValues& one, const RoundValues& other) {
    return by_round(one, other, [](double value, double more) { return std::optional(value + more); });
}

void add_restores(const StateResults& results, AimList& aims) {
    for (const StateResult& result : results.cases) {
        if (result.of.scenario != Scenario::kRestore || !comes_back_full(*result.of.mode)) {
            continue;
        }
        const StateResult* const bare = results.find({Scenario::kBareRead, result.of.page_size});
        const RoundValues ready = values_of(&result, StateFigure::kReady);
        const RoundValues read = values_of(bare, StateFigure::kRead);
        const std::string name = to_string(result.of) + ": ready over a bare read";
        aims.add(name + " into populated memory", Aim::Kind::kRatio, ratios(ready, read), 1.1);
        aims.add(name + ", populating included", Aim::Kind::kRatio,
                 ratios(ready, sums(read, values_of(bare, StateFigure::kPopulate))), 1.1);
    }
    for (const StateResult& result : results.cases) {
        if (result.of.scenario == Scenario::kRestore && !comes_back_full(*result.of.mode)) {
            const StateResult* const cold = results.find({Scenario::kCold, result.of.page_size});
            aims.add(to_string(result.of) + ": ready over a cold start", Aim::Kind::kRatio,
                     ratios(values_of(&result, StateFigure::kReady), values_of(cold, StateFigure::kReady)), 1.5);
        }
    }
}

void add_memory(const StateResults& results, AimList& aims) {
    for (const StateResult& result : results.cases) {
        if (result.of.scenario == Scenario::kPasses) {
            aims.add(to_string(result.of) + ": first pass over steady pass", Aim::Kind::kRatio,
                     values_of(&result, StateFigure::kFirstOverSteady), 1.05);
            aims.add(to_string(result.of) + ": first pass over a rested one", Aim::Kind::kRatio,
                     values_of(&result, StateFigure::kFirstOverRested), 1.05);
        }
    }
    for (const StateResult& result : results.cases) {
        if (result.of.scenario != Scenario::kRestore) {
            continue;
        }
        const RoundValues faults = values_of(&result, StateFigure::kFaults);
        if (comes_back_full(*result.of.mode)) {
            aims.add(to_string(result.of) + ": faults of the first second", Aim::Kind::kCount, faults, 0);
        } else if (*result.of.mode != RestoreMode::kCow) {
            const StateResult* const cow = results.find({Scenario::kRestore, result.of.page_size, RestoreMode::kCow});
            aims.add(to_string(result.of) + ": faults of the first second over those of cow", Aim::Kind::kRatio,
                     ratios(faults, values_of(cow, StateFigure::kFaults)), 0.1);
        }
    }
}

void add_snapshot(const StateResults& results, AimList& aims) {
    for (const StateResult& result : results.cases) {
        if (result.of.scenario != Scenario::kSnapshot) {
            continue;
        }
        std::vector<double> bounds;
        for (const StateSample& sample : result.samples) {
            const auto bytes = sample[StateFigure::kStoppedBytes];
            const auto written = sample[StateFigure::kWrittenBytes];
            const auto total = sample[StateFigure::kTotal];
            if (bytes && written && total) {
                bounds.push_back(wanted_stop_seconds(*bytes, *written, *total));
            }
        }
        if (bounds.empty()) {
            continue;
        }
        const double bound = median(bounds);
        aims.add(to_string(result.of) + ": the guest stood still", Aim::Kind::kSeconds,
                 values_of(&result, StateFigure::kStopped), bound);
        aims.add(to_string(result.of) + ": the guest's latest beat", Aim::Kind::kSeconds,
                 values_of(&result, StateFigure::kLateMax), bound);
    }
}

void add_clones(const StateResults& results, AimList& aims) {
    for (const StateResult& result : results.cases) {
        if (result.of.scenario == Scenario::kClones) {
            const StateResult* const one = results.find({Scenario::kRestore, result.of.page_size, result.of.mode});
            aims.add(vmm::format("{} at once, {}: ready of the 95th percentile over one", results.settings.clones,
                                 to_string(result.of)),
                     Aim::Kind::kRatio,
                     ratios(values_of(&result, StateFigure::kReady), values_of(one, StateFigure::kReady)), 3);
        }
    }
}

void add_clock(const StateResults& results, AimList& aims) {
    RoundValues backward;
    for (const StateResult& result : results.cases) {
        const RoundValues values = values_of(&result, StateFigure::kBackward);
        backward.insert(backward.end(), values.begin(), values.end());
    }
    // If the clock goes back in one run, that is a failure, and a median would hide it.
    std::optional<double> sum;
    for (const auto& value : backward) {
        sum = value ? std::optional(sum.value_or(0) + *value) : sum;
    }
    aims.add("all guests: how often the clock went back", Aim::Kind::kCount, {sum}, 0);
}

} // namespace

double wanted_stop_seconds(double bytes, double written_bytes, double total_seconds) noexcept {
    constexpr double kBesideDirty = 0.020;
    return kBesideDirty + (written_bytes > 0 ? bytes * total_seconds / written_bytes : 0);
}

std::vector<Aim> state_aims(const StateResults& results) {
    AimList aims;
    add_restores(results, aims);
    add_memory(results, aims);
    add_snapshot(results, aims);
    add_clones(results, aims);
    add_clock(results, aims);
    return std::move(aims).take();
}

} // namespace vmm::bench
