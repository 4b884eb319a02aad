// The figures of one run of `vmm bench state`.
#pragma once

#include <array>
#include <cstddef>

#include "vmm/bench/figure_values.hpp"

namespace vmm::bench {

/// What is measured. Times are in seconds.
enum class StateFigure {
    kReady,           ///< from the program's start to the guest's first instruction; for clones: the 95th percentile
    kReadyMost,       ///< for clones: the last of them
    kPopulate,        ///< making the memory for a bare read
    kRead,            ///< the bare read itself
    kPrefault,        ///< populating both sides, as the guest's report says
    kTotal,           ///< for a snapshot: from the request to its end
    kWrittenBytes,    ///< for a snapshot: all bytes that were written to the file
    kStopped,         ///< how long the guest stood still, as the report of the snapshot says
    kStoppedBytes,    ///< the bytes that were written meanwhile
    kGap,             ///< the latest of the guest's beats from before the snapshot until the first after the restore
    kLateP50,         ///< how late the guest's beats were
    kLateP99,         ///< the same, 99th percentile
    kLateMax,         ///< the same, the latest beat
    kBackward,        ///< how often the guest's clock went back
    kFirst,           ///< the first pass over memory after a restore, of the slowest vCPU
    kSteady,          ///< a later pass; median over the later passes
    kFirstOverSteady, ///< kFirst divided by kSteady
    kRested,          ///< the first pass after a second of other work, of the slowest vCPU
    kFirstOverRested, ///< kFirst divided by kRested
    kFaults,          ///< second-level faults of all the guest's vCPUs
    kExits,           ///< exits of all the guest's vCPUs
};

inline constexpr std::array<FigureFacts, 21> kStateFigures{{{"ready_seconds", true},
                                                            {"ready_most_seconds", true},
                                                            {"populate_seconds", true},
                                                            {"read_seconds", true},
                                                            {"prefault_seconds", true},
                                                            {"total_seconds", true},
                                                            {"written_bytes", false},
                                                            {"stopped_seconds", true},
                                                            {"stopped_bytes", false},
                                                            {"gap_seconds", true},
                                                            {"late_p50_seconds", true},
                                                            {"late_p99_seconds", true},
                                                            {"late_max_seconds", true},
                                                            {"backward", false},
                                                            {"first_seconds", true},
                                                            {"steady_seconds", true},
                                                            {"first_over_steady", false},
                                                            {"rested_seconds", true},
                                                            {"first_over_rested", false},
                                                            {"faults", false},
                                                            {"exits", false}}};
static_assert(static_cast<std::size_t>(StateFigure::kExits) + 1 == kStateFigures.size());

/// The figures of one run.
using StateSample = FigureValues<StateFigure, kStateFigures.size()>;

} // namespace vmm::bench
