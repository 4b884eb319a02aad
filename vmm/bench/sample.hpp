// The figures of one run.
#pragma once

#include <array>
#include <cstddef>

#include "vmm/bench/figure_values.hpp"

namespace vmm::bench {

/// What is measured. Times are in seconds.
enum class Figure {
    kReady,           ///< from the program's start to the guest's first instruction
    kHost,            ///< populating the host side
    kPin,             ///< pinning
    kSecondLevel,     ///< filling and verifying the second level
    kPrefault,        ///< all three
    kReader,          ///< one of the guest's CPUs reading every page
    kFirst,           ///< the guest's first pass over its memory, of the slowest vCPU
    kFirstMedian,     ///< the same, median over vCPUs
    kSteady,          ///< a later pass, of the slowest vCPU; median over the later passes
    kSteadyMedian,    ///< the same, median over vCPUs
    kFirstOverSteady, ///< kFirst divided by kSteady
    kTotal,           ///< kPrefault + kReader + kFirst
    kFaults,          ///< second-level faults of all the guest's vCPUs
    kExits,           ///< exits of all the guest's vCPUs
};

inline constexpr std::array<FigureFacts, 14> kFigures{{{"ready_seconds", true},
                                                       {"host_seconds", true},
                                                       {"pin_seconds", true},
                                                       {"second_level_seconds", true},
                                                       {"prefault_seconds", true},
                                                       {"reader_seconds", true},
                                                       {"first_seconds", true},
                                                       {"first_median_seconds", true},
                                                       {"steady_seconds", true},
                                                       {"steady_median_seconds", true},
                                                       {"first_over_steady", false},
                                                       {"total_seconds", true},
                                                       {"faults", false},
                                                       {"exits", false}}};

[[nodiscard]] constexpr std::size_t index_of(Figure figure) noexcept {
    return static_cast<std::size_t>(figure);
}
static_assert(index_of(Figure::kExits) + 1 == kFigures.size());

/// The figures of one run.
using Sample = FigureValues<Figure, kFigures.size()>;

/// Fills in kTotal and kFirstOverSteady from the others.
inline void derive(Sample& sample) noexcept {
    if (const auto first = sample[Figure::kFirst]) {
        sample[Figure::kTotal] = *first + sample[Figure::kPrefault].value_or(0) + sample[Figure::kReader].value_or(0);
        if (const auto steady = sample[Figure::kSteady]; steady && *steady > 0) {
            sample[Figure::kFirstOverSteady] = *first / *steady;
        }
    }
}

} // namespace vmm::bench
