#include "vmm/bench/state_aims.hpp"

#include <algorithm>
#include <cstddef>

#include "kvm/host/format.hpp"

namespace vmm::bench {

namespace {

using Values = std::vector<std::optional<double>>; ///< one for each round

Values values_of(const StateResult* result, StateFigure figure) {
    Values values;
    if (result != nullptr) {
        for (const StateSample& sample : result->samples) {
            values.push_back(sample[figure]);
        }
    }
    return values;
}

/// `combine` of what two cases have in the same round.
template <typename Combine>
Values by_round(const Values& one, const Values& other, Combine combine) {
    Values values;
    for (std::size_t i = 0; i < std::min(one.size(), other.size()); ++i) {
        values.push_back(one[i] && other[i] ? combine(*one[i], *other[i]) : std::nullopt);
    }
    return values;
}

Values ratios(const Values& of, const Values& over) {
    return by_round(of, over,
                    [](double value, double base) { return base > 0 ? std::optional(value / base) : std::nullopt; });
}

Values sums(const Values& one, const Values& other) {
    return by_round(one, other, [](double value, double more) { return std::optional(value + more); });
}

/// Collects aims, and leaves out those for which nothing was measured.
class Aims {
  public:
    void add(std::string name, StateAim::Kind kind, const Values& values, double bound) {
        std::vector<double> known;
        for (const auto& value : values) {
            if (value) {
                known.push_back(*value);
            }
        }
        if (!known.empty()) {
            aims_.push_back({std::move(name), kind, describe(known), bound});
        }
    }
    [[nodiscard]] std::vector<StateAim> take() && { return std::move(aims_); }

  private:
    std::vector<StateAim> aims_;
};

void add_restores(const StateResults& results, Aims& aims) {
    for (const StateResult& result : results.cases) {
        if (result.of.scenario != Scenario::kRestore || !comes_back_full(*result.of.mode)) {
            continue;
        }
        const StateResult* const bare = results.find({Scenario::kBareRead, result.of.page_size});
        const Values ready = values_of(&result, StateFigure::kReady);
        const Values read = values_of(bare, StateFigure::kRead);
        const std::string name = to_string(result.of) + ": ready over a bare read";
        aims.add(name + " into populated memory", StateAim::Kind::kRatio, ratios(ready, read), 1.1);
        aims.add(name + ", populating included", StateAim::Kind::kRatio,
                 ratios(ready, sums(read, values_of(bare, StateFigure::kPopulate))), 1.1);
    }
    for (const StateResult& result : results.cases) {
        if (result.of.scenario == Scenario::kRestore && !comes_back_full(*result.of.mode)) {
            const StateResult* const cold = results.find({Scenario::kCold, result.of.page_size});
            aims.add(to_string(result.of) + ": ready over a cold start", StateAim::Kind::kRatio,
                     ratios(values_of(&result, StateFigure::kReady), values_of(cold, StateFigure::kReady)), 1.5);
        }
    }
}

void add_memory(const StateResults& results, Aims& aims) {
    for (const StateResult& result : results.cases) {
        if (result.of.scenario == Scenario::kPasses) {
            aims.add(to_string(result.of) + ": first pass over steady pass", StateAim::Kind::kRatio,
                     values_of(&result, StateFigure::kFirstOverSteady), 1.05);
        }
    }
    for (const StateResult& result : results.cases) {
        if (result.of.scenario != Scenario::kRestore) {
            continue;
        }
        const Values faults = values_of(&result, StateFigure::kFaults);
        if (comes_back_full(*result.of.mode)) {
            aims.add(to_string(result.of) + ": faults of the first second", StateAim::Kind::kCount, faults, 0);
        } else if (*result.of.mode != RestoreMode::kCow) {
            const StateResult* const cow = results.find({Scenario::kRestore, result.of.page_size, RestoreMode::kCow});
            aims.add(to_string(result.of) + ": faults of the first second over those of cow", StateAim::Kind::kRatio,
                     ratios(faults, values_of(cow, StateFigure::kFaults)), 0.1);
        }
    }
}

void add_snapshot(const StateResults& results, Aims& aims) {
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
        aims.add(to_string(result.of) + ": the guest stood still", StateAim::Kind::kSeconds,
                 values_of(&result, StateFigure::kStopped), bound);
        aims.add(to_string(result.of) + ": the guest's latest beat", StateAim::Kind::kSeconds,
                 values_of(&result, StateFigure::kLateMax), bound);
    }
}

void add_clones(const StateResults& results, Aims& aims) {
    for (const StateResult& result : results.cases) {
        if (result.of.scenario == Scenario::kClones) {
            const StateResult* const one = results.find({Scenario::kRestore, result.of.page_size, result.of.mode});
            aims.add(vmm::format("{} at once, {}: ready of the 95th percentile over one", results.settings.clones,
                                 to_string(result.of)),
                     StateAim::Kind::kRatio,
                     ratios(values_of(&result, StateFigure::kReady), values_of(one, StateFigure::kReady)), 3);
        }
    }
}

void add_clock(const StateResults& results, Aims& aims) {
    Values backward;
    for (const StateResult& result : results.cases) {
        const Values values = values_of(&result, StateFigure::kBackward);
        backward.insert(backward.end(), values.begin(), values.end());
    }
    // One run in which it went back is one too many, which a median would hide.
    std::optional<double> sum;
    for (const auto& value : backward) {
        sum = value ? std::optional(sum.value_or(0) + *value) : sum;
    }
    aims.add("all guests: how often the clock went back", StateAim::Kind::kCount, {sum}, 0);
}

} // namespace

double wanted_stop_seconds(double bytes, double written_bytes, double total_seconds) noexcept {
    constexpr double kBesideDirty = 0.020;
    return kBesideDirty + (written_bytes > 0 ? bytes * total_seconds / written_bytes : 0);
}

std::vector<StateAim> state_aims(const StateResults& results) {
    Aims aims;
    add_restores(results, aims);
    add_memory(results, aims);
    add_snapshot(results, aims);
    add_clones(results, aims);
    add_clock(results, aims);
    return std::move(aims).take();
}

} // namespace vmm::bench
