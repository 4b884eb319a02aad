#include "vmm/bench/compare.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "kvm/host/format.hpp"
#include "vmm/bench/table.hpp"

namespace vmm::bench {

namespace {

/// The figures that are compared. A smaller value of each is better.
constexpr std::array kCompared{Figure::kPrefault, Figure::kReader, Figure::kFirst, Figure::kSteady,
                               Figure::kTotal,    Figure::kFaults, Figure::kExits};
constexpr std::size_t kLeastRuns = 3;

/// With this number of runs on both sides, it is unlikely that all values of one side are smaller than all of the other
/// by chance (1 in 126).
constexpr std::size_t kManyRuns = 5;

/// Whether every value of one side is larger than every value of the other by more than the factor `margin`.
bool are_apart(const std::vector<double>& one, const std::vector<double>& other, double margin) {
    const auto [one_least, one_most] = std::ranges::minmax_element(one);
    const auto [other_least, other_most] = std::ranges::minmax_element(other);
    return *one_most * (1 + margin) < *other_least || *other_most * (1 + margin) < *one_least;
}

/// The least distance between times. A machine is not equally fast at all hours, and few runs prove little.
double margin_for(const std::vector<double>& one, const std::vector<double>& other, double threshold) {
    return std::min(one.size(), other.size()) >= kManyRuns ? threshold / 2 : 2 * threshold;
}

std::optional<Change> change_of(const Cell& cell, Figure figure, const std::vector<double>& before,
                                const std::vector<double>& after, double threshold) {
    Change change{cell, figure, median(before), median(after), ratio_interval(before, after, 0.99), false};
    const double difference = std::abs(change.after - change.before);
    const double smaller = std::min(change.before, change.after);
    const bool is_time = kFigures[index_of(figure)].is_time;
    if (difference <= threshold * smaller ||
        !are_apart(before, after, is_time ? margin_for(before, after, threshold) : 0) ||
        (change.ratio.low <= 1 && change.ratio.high >= 1)) {
        return std::nullopt;
    }
    if (is_time && difference <= kResolutionSeconds) {
        return std::nullopt;
    }
    change.worse = change.after > change.before;
    return change;
}

void warn_of_hosts(const Results& before, const Results& after, std::vector<std::string>& warnings) {
    const auto warn = [&](const char* what, const std::string& one, const std::string& other) {
        if (one != other) {
            warnings.push_back(vmm::format("these are different hosts: {} was '{}', and is '{}'", what, one, other));
        }
    };
    warn("its name", before.host.node, after.host.node);
    warn("the kernel", before.host.kernel, after.host.kernel);
    warn("the processor", before.host.cpu, after.host.cpu);
    warn("the number of CPUs", std::to_string(before.host.cpus), std::to_string(after.host.cpus));
    warn("the microcode", before.host.microcode, after.host.microcode);
    warn("memory", format_bytes(before.host.memory_bytes), format_bytes(after.host.memory_bytes));
    warn("the second level", before.host.second_level, after.host.second_level);
}

std::string value_text(Figure figure, double value) {
    return kFigures[index_of(figure)].is_time ? format_seconds(value) : format_count(value);
}

} // namespace

bool Comparison::any_worse() const noexcept {
    return std::ranges::any_of(changes, [](const Change& change) { return change.worse; });
}

Comparison compare(const Results& before, const Results& after, double threshold) {
    Comparison comparison;
    warn_of_hosts(before, after, comparison.warnings);
    if (before.settings.passes != after.settings.passes || before.settings.warm != after.settings.warm) {
        comparison.warnings.emplace_back("the two were measured in different ways (--passes, --no-warm)");
    }
    bool few_runs = false;
    std::size_t alone = 0;
    for (const CellResult& old : before.cells) {
        const CellResult* const now = after.find(old.cell);
        if (now == nullptr || now->samples.empty() || old.samples.empty()) {
            ++alone;
            continue;
        }
        for (const Figure figure : kCompared) {
            const std::vector<double> old_values = old.values(figure);
            const std::vector<double> new_values = now->values(figure);
            if (old_values.empty() || new_values.empty()) {
                continue;
            }
            if (kFigures[index_of(figure)].is_time && std::min(old_values.size(), new_values.size()) < kLeastRuns) {
                few_runs = true;
                continue;
            }
            ++comparison.compared;
            if (const auto change = change_of(old.cell, figure, old_values, new_values, threshold)) {
                comparison.changes.push_back(*change);
            }
        }
    }
    if (few_runs) {
        comparison.warnings.push_back(vmm::format("times of fewer than {} runs are not compared: what is noise cannot "
                                                  "be told (--runs)",
                                                  kLeastRuns));
    }
    alone += static_cast<std::size_t>(std::count_if(
        after.cells.begin(), after.cells.end(), [&](const auto& cell) { return before.find(cell.cell) == nullptr; }));
    if (alone != 0) {
        comparison.warnings.push_back(vmm::format("{} cell{} without a counterpart {} left out", alone,
                                                  alone == 1 ? "" : "s", alone == 1 ? "is" : "are"));
    }
    return comparison;
}

std::string to_text(const Comparison& comparison, double threshold) {
    std::string text;
    for (const std::string& warning : comparison.warnings) {
        text += "warning: " + warning + "\n";
    }
    for (const Change& change : comparison.changes) {
        const std::string factor =
            std::isfinite(change.ratio.high)
                ? vmm::format(" ({:+.0f}%, 99% interval {:.2f} .. {:.2f} times)",
                              (change.after / change.before - 1) * 100, change.ratio.low, change.ratio.high)
                : "";
        text += vmm::format("{} {}: {} {} -> {}{}\n", change.worse ? "WORSE " : "better", to_string(change.cell),
                            kFigures[index_of(change.figure)].name, value_text(change.figure, change.before),
                            value_text(change.figure, change.after), factor);
    }
    if (comparison.compared == 0) {
        return text + "nothing to compare\n";
    }
    if (comparison.changes.empty()) {
        return text + vmm::format("no change: none of {} figures differs by more than {:g}% and beyond noise\n",
                                  comparison.compared, threshold * 100);
    }
    return text + vmm::format("{} of {} figures changed by more than {:g}% and beyond noise\n",
                              comparison.changes.size(), comparison.compared, threshold * 100);
}

namespace {

/// Whether the hosts are the same machine, except for what an update changes.
bool same_but_for_updates(const HostFacts& one, HostFacts other) {
    other.kernel = one.kernel;
    other.microcode = one.microcode;
    other.prefault_ioctl = one.prefault_ioctl; // this one depends on the kernel
    return same_kind(one, other);
}

} // namespace

bool HostsComparison::any_worse() const noexcept {
    return std::ranges::any_of(kinds, [](const KindComparison& kind) { return kind.comparison.any_worse(); });
}

HostsComparison compare(const MergedResults& before, const MergedResults& after, double threshold) {
    HostsComparison all;
    if (before.groups.size() == 1 && after.groups.size() == 1) {
        all.kinds.push_back({"", compare(before.groups.front().results, after.groups.front().results, threshold)});
        return all;
    }
    std::vector<const HostGroup*> left; // groups of `after` without a counterpart until now
    for (const HostGroup& group : after.groups) {
        left.push_back(&group);
    }
    std::vector<const HostGroup*> counterparts(before.groups.size(), nullptr);
    const auto pair_up = [&](auto is_like) {
        for (std::size_t i = 0; i < before.groups.size(); ++i) {
            const auto found =
                counterparts[i] != nullptr ? left.end() : std::ranges::find_if(left, [&](const HostGroup* group) {
                    return is_like(before.groups[i].results.host, group->results.host);
                });
            if (found != left.end()) {
                counterparts[i] = *found;
                left.erase(found);
            }
        }
    };
    pair_up(same_kind);
    pair_up(same_but_for_updates);
    const auto alone = [&all](const HostGroup& group, const char* which) {
        all.alone.push_back(
            vmm::format("only the file of {} has hosts of this kind: {}", which, kind_text(group.results.host)));
    };
    for (std::size_t i = 0; i < before.groups.size(); ++i) {
        const HostGroup& group = before.groups[i];
        if (counterparts[i] == nullptr) {
            alone(group, "before");
            continue;
        }
        all.kinds.push_back(
            {kind_text(counterparts[i]->results.host), compare(group.results, counterparts[i]->results, threshold)});
    }
    for (const HostGroup* const group : left) {
        alone(*group, "after");
    }
    return all;
}

std::string to_text(const HostsComparison& comparison, double threshold) {
    std::string text;
    for (const KindComparison& kind : comparison.kinds) {
        text += (kind.kind.empty() ? "" : "=== " + kind.kind + "\n") + to_text(kind.comparison, threshold);
    }
    for (const std::string& alone : comparison.alone) {
        text += "warning: " + alone + "\n";
    }
    return comparison.kinds.empty() ? text + "nothing to compare\n" : text;
}

} // namespace vmm::bench
