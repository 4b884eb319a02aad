// The figures of one run of `vmm bench state`.
#pragma once

#include <array>
#include <cstddef>

#include "vmm/bench/figure_values.hpp"

namespace vmm::bench {

/// What is measured. Times are in seconds.
enum class StateFigure {
    kReady,           ///< from the program's start to the guest's first instruction; of clones: of the 95th percentile
    kReadyMost,       ///< of the last of the clones
    kPopulate,        ///< making the memory that a bare read goes to
    kRead,            ///< the bare read itself
    kPrefault,        ///< populating both sides, as the guest's report has it
    kTotal,           ///< of a snapshot: from the request to its end
    kWrittenBytes,    ///< of a snapshot: all that went to the file
    kStopped,         ///< for how long the guest stood still, as the report of the snapshot has it
    kStoppedBytes,    ///< what was written meanwhile
    kGap,             ///< the latest of the guest's beats from before the snapshot until the first after the restore
    kLateP50,         ///< how late the guest's beats were
    kLateP99,         ///< likewise
    kLateMax,         ///< likewise
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
