// The figures of one run of `vmm bench migrate`.
#pragma once

#include <array>
#include <cstddef>

#include "vmm/bench/figure_values.hpp"

namespace vmm::bench {

/// What is measured. Times are in seconds.
enum class MigrateFigure {
    kCameOver,      ///< 1: the guest went over; 0: it stayed, because the time was too short
    kDowntime,      ///< how long the guest stood still, as the source reports it
    kPause,         ///< of it: until nothing moved any more
    kPages,         ///< of it: until the last page had been sent
    kState,         ///< of it: until the destination had the state
    kTakeover,      ///< of it: the rest
    kTotal,         ///< of the migration
    kRounds,        ///< over memory
    kSentBytes,     ///< over the wire
    kLastBytes,     ///< of memory, while the guest stood still
    kThrottled,     ///< the most that vCPUs were held, in percent of their time
    kRate,          ///< bytes a second over the wire, in the first round
    kBareRate,      ///< bytes a second of a bare loop that sends and receives
    kRateOverBare,  ///< kRate divided by kBareRate
    kFill,          ///< of the destination's memory and second level
    kMappedShare,   ///< what KVM had mapped there before the first instruction, as a share of memory
    kFaults,        ///< second-level faults in the first second there, of all vCPUs, by KVM's count
    kGap,           ///< the latest of the guest's beats from before the migration until the first one after the switch
    kLateP99Before, ///< how late the guest's beats were in the second before the migration
    kLateMaxBefore, ///< the same, for the latest beat
    kLateP99,       ///< how late they were in the first second after the switch
    kLateMax,       ///< the same, for the latest beat
    kBackward,      ///< how often the guest's clock went back
    kFirst,         ///< the first pass over memory after the switch, of the slowest vCPU
    kSteady,        ///< a later pass; median over the later passes
    kFirstOverSteady, ///< kFirst divided by kSteady
    kRested,          ///< the first pass after another second like the first one there, of the slowest vCPU
    kFirstOverRested, ///< kFirst divided by kRested
};

inline constexpr std::array<FigureFacts, 28> kMigrateFigures{{{"came_over", false},
                                                              {"downtime_seconds", true},
                                                              {"pause_seconds", true},
                                                              {"pages_seconds", true},
                                                              {"state_seconds", true},
                                                              {"takeover_seconds", true},
                                                              {"total_seconds", true},
                                                              {"rounds", false},
                                                              {"sent_bytes", false},
                                                              {"last_bytes", false},
                                                              {"throttled_percent", false},
                                                              {"bytes_per_second", false},
                                                              {"bare_bytes_per_second", false},
                                                              {"rate_over_bare", false},
                                                              {"fill_seconds", true},
                                                              {"mapped_share", false},
                                                              {"faults_in_first_second", false},
                                                              {"gap_seconds", true},
                                                              {"late_p99_before_seconds", true},
                                                              {"late_max_before_seconds", true},
                                                              {"late_p99_seconds", true},
                                                              {"late_max_seconds", true},
                                                              {"backward", false},
                                                              {"first_seconds", true},
                                                              {"steady_seconds", true},
                                                              {"first_over_steady", false},
                                                              {"rested_seconds", true},
                                                              {"first_over_rested", false}}};
static_assert(static_cast<std::size_t>(MigrateFigure::kFirstOverRested) + 1 == kMigrateFigures.size());

/// The figures of one run.
using MigrateSample = FigureValues<MigrateFigure, kMigrateFigures.size()>;

} // namespace vmm::bench
