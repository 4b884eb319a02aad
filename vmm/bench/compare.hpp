// The changes from one result to another.
#pragma once

#include <string>
#include <vector>

#include "vmm/bench/merge.hpp"
#include "vmm/bench/results.hpp"

namespace vmm::bench {

/// One figure of one cell that changed.
struct Change {
    Cell cell;
    Figure figure = Figure::kTotal;
    double before = 0; ///< medians
    double after = 0;
    Interval ratio; ///< of the medians, after to before, 99%
    bool worse = false;
};

struct Comparison {
    std::vector<Change> changes;
    std::size_t compared = 0;          ///< figures of the cells that both results have
    std::vector<std::string> warnings; ///< reasons why the comparison may mean little

    [[nodiscard]] bool any_worse() const noexcept;
};

/// Compares the figures. A figure has changed if its median differs by more than `threshold` (0.1: a tenth) and the
/// difference is beyond noise: the 99% interval of the ratio does not reach 1, and no value of one side is within the
/// values of the other.
///
/// The times of the two sides must be apart by half the threshold, or by twice the threshold if a side has fewer than
/// five runs, and their medians must differ by more than kResolutionSeconds. If a side has fewer than three runs, only
/// counts are compared.
[[nodiscard]] Comparison compare(const Results& before, const Results& after, double threshold);

inline constexpr double kResolutionSeconds = 0.001;

[[nodiscard]] std::string to_text(const Comparison& comparison, double threshold);

/// The comparison of hosts of one kind.
struct KindComparison {
    std::string kind; ///< for people; empty: there is only one kind on either side
    Comparison comparison;
};

struct HostsComparison {
    std::vector<KindComparison> kinds;
    std::vector<std::string> alone; ///< kinds of hosts that only one of the two results has, a sentence each

    [[nodiscard]] bool any_worse() const noexcept;
};

/// Compares hosts of the same kind with each other. If each side has only one kind, those two are compared in any case,
/// with a warning for each difference. Otherwise kinds that differ only in kernel and microcode are compared, too, if
/// there is no closer kind.
[[nodiscard]] HostsComparison compare(const MergedResults& before, const MergedResults& after, double threshold);

[[nodiscard]] std::string to_text(const HostsComparison& comparison, double threshold);

} // namespace vmm::bench
