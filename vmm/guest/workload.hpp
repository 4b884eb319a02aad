// The work itself: passes over the free memory, measured and reported.
#pragma once

#include <cstddef>
#include <cstdint>

#include "vmm/guest/memory_ranges.hpp"
#include "vmm/guest/options.hpp"

namespace vmm::guest {

/// Above this number of CPUs, results are printed after the last pass unless the option report= says otherwise. CPUs
/// that wait for CPU 0 to print use up the host's time: on a host that has far fewer CPUs than the guest, most of it.
inline constexpr std::size_t kMaxCpusReportedLive = 8;

struct WorkloadPlan {
    Options options;
    /// How many CPUs are up, this one included.
    std::size_t cpus = 1;

    [[nodiscard]] constexpr bool report_at_end() const noexcept {
        return options.report_at_end.value_or(cpus > kMaxCpusReportedLive && !options.heartbeat_khz);
    }
    /// How much memory the results need, in whole pages. It is mapped, and not part of the memory that is worked on.
    [[nodiscard]] std::uint64_t result_bytes() const noexcept;
};

// What follows is for CPU 0.

/// Says what run_passes() is to do: all of `memory` is mapped, and will be written to. `results_address` is that of
/// result_bytes() bytes. Comes before all else, once.
void plan_workload(const WorkloadPlan& plan, const MemoryRanges& memory, std::uint64_t results_address) noexcept;

/// Runs the passes, and prints a line for each CPU and pass, and a summary. May be called again, unless the results are
/// printed at the end.
void run_passes() noexcept;

/// How many places a pass writes to.
[[nodiscard]] std::uint64_t slot_count() noexcept;

/// Writes to the slots [first, first + count) what is there, or to those of them that exist.
void touch(std::uint64_t first, std::uint64_t count) noexcept;

} // namespace vmm::guest
